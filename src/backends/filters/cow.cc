// cow: writes go into an overlay that is thrown away at the end; the disk below is only read. All
// connections see the same overlay.
//
// Parallel-safe: what is present in the overlay is read and written in place without a lock; a
// block that is not yet there is locked while it is filled (block_store.h).
#include <bit>
#include <cerrno>

#include "src/backends/filters/stored_device.h"
#include "src/backends/filters/switch_param.h"
#include "src/core/spec.h"

namespace blk {
namespace {

struct Config {
  Size block_size{64 << 10};
  bool on_cache = false;
  SwitchParam on_read;
};

class CowDevice final : public StoredDevice {
 public:
  CowDevice(DevicePtr below, const Config& config, BlockStore* store, bool read_only)
      : StoredDevice(below, CowFacts(*below, *store, read_only), store), config_(config) {}

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    if (config_.on_read.never()) return StoredDevice::DoRead(call, offset, into);
    return ReadAndKeep(call, offset, into);
  }
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override;
  // The overlay outlives nothing that a flush could save it from.
  Task<absl::Status> DoFlush(const Call&) override { return absl::OkStatus(); }
  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override {
    return MakeZero(call, offset, length);
  }
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override {
    if (call.flags & kNoHole) return Device::DoZero(call, offset, length);
    return MakeZero(call, offset, length);
  }
  Task<absl::Status> ZeroBlocks(const Call&, uint64_t first, uint64_t blocks) override {
    return store().SetZero(first, blocks);
  }
  Task<absl::Status> DoCache(const Call& call, uint64_t offset, uint64_t length) override;

 private:
  static Facts CowFacts(const Device& below, const BlockStore& store, bool read_only) {
    Facts facts = StoredFacts(below, store.block_bytes());
    facts.read_only = read_only;
    return facts;
  }

  Task<absl::Status> ReadAndKeep(const Call& call, uint64_t offset, std::span<char> into);
  Task<absl::Status> WriteIntoBlocks(const Call& call, uint64_t offset, std::span<const char> from);

  const Config& config_;
};

Task<absl::Status> CowDevice::ReadAndKeep(const Call& call, uint64_t offset, std::span<char> into) {
  // What cannot be kept (the disk of the overlay is full) is read all the same.
  if (config_.on_read.on()) (void)co_await Fetch(call, offset, into.size());
  co_return co_await StoredDevice::DoRead(call, offset, into);
}

// ---- Writing

Task<absl::Status> CowDevice::DoWrite(const Call& call, uint64_t offset,
                                      std::span<const char> from) {
  uint64_t length = from.size();
  BlockStore::Run run = PartAt(offset, &length);
  if (length == from.size() && run.state == State::kPresent)
    return store().WriteAt(run.position + offset % block_bytes(), from);
  return WriteIntoBlocks(call, offset, from);
}

Task<absl::Status> CowDevice::WriteIntoBlocks(const Call& call, uint64_t offset,
                                              std::span<const char> from) {
  bool store_failed;
  while (!from.empty()) {
    const uint64_t block = BlockOf(offset);
    uint64_t length = StepAt(offset, from.size(), kLockedBytes);
    BlockStore::Run run = PartAt(offset, &length);
    if (run.state != State::kPresent) {
      RangeLock::Guard guard = co_await store().locks().Lock(block, BlocksOver(offset, length));
      run = PartAt(offset, &length);
      if (run.state != State::kPresent)
        BLK_CO_RETURN_IF_ERROR(co_await Fill(call, run.state, block, BlocksOver(offset, length),
                                             offset, from.first(length), false, &store_failed));
    }
    if (run.state == State::kPresent)
      BLK_CO_RETURN_IF_ERROR(
          co_await store().WriteAt(run.position + offset % block_bytes(), from.first(length)));
    offset += length;
    from = from.subspan(length);
  }
  co_return absl::OkStatus();
}

Task<absl::Status> CowDevice::DoCache(const Call& call, uint64_t offset, uint64_t length) {
  if (config_.on_cache) co_return co_await Fetch(call, offset, length);
  if (below().facts().cache == Support::kNone) co_return absl::OkStatus();
  const uint64_t end = offset + length;
  while (offset < end) {
    uint64_t part = end - offset;
    if (PartAt(offset, &part).state == State::kAbsent)
      BLK_CO_RETURN_IF_ERROR(co_await below().Cache(call, offset, part));
    offset += part;
  }
  co_return absl::OkStatus();
}

// ---- The layer

class CowLayer final : public FilterLayer {
 public:
  CowLayer(LayerPtr below, Config config) : FilterLayer(std::move(below)), config_(config) {}

  absl::Status Ready() override {
    BLK_ASSIGN_OR_RETURN(store_, BlockStore::Create(config_.block_size.bytes));
    return absl::OkStatus();
  }

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    OpenArgs reading = args;
    reading.read_only = true;
    BLK_CO_ASSIGN_OR_RETURN(DevicePtr disk, co_await below().Open(reading));
    absl::Status fits = co_await one_disk_.Check(&below(), args, disk.get(),
                                                 config_.block_size.bytes, "cow-block-size");
    if (!fits.ok()) {
      (void)co_await disk->Close();
      co_return fits;
    }
    co_return std::make_shared<CowDevice>(std::move(disk), config_, store_.get(), args.read_only);
  }

 private:
  const Config config_;
  std::unique_ptr<BlockStore> store_;
  OneDisk one_disk_;
};

absl::StatusOr<LayerPtr> MakeCow(Config config, LayerPtr below) {
  const uint64_t bytes = config.block_size.bytes;
  if (bytes < 4096 || bytes > 1u << 31 || !std::has_single_bit(bytes))
    return absl::InvalidArgumentError(
        "cow-block-size must be a power of two and between 4K and 2G");
  return std::make_shared<CowLayer>(std::move(below), std::move(config));
}

}  // namespace

const Spec& CowSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("cow", "writes go to a temporary overlay, the disk is only read")
          .Param("cow-block-size", &Config::block_size,
                 {.help = "what is copied at a time: a power of two from 4K to 2G"})
          .Param("cow-on-cache", &Config::on_cache,
                 {.help = "keep what cache requests name in the overlay"})
          .Param("cow-on-read", &Config::on_read,
                 {.help = "keep what is read in the overlay, or do so while a file exists"})
          .Description(
              "All clients see the same overlay, which is gone when the program ends. Its bytes "
              "are in a temporary file in TMPDIR, else /var/tmp. When there is no room left, "
              "writes fail with ENOSPC and everything else goes on.")
          .Needs(Need::Kind::kTemporaryFile)
          .Example("cow+memory:1M")
          .PrintedExample("cow(cow-on-read=true)+nbd://host/disk",
                          "a disk to play with, fetched only once")
          .Make(MakeCow));
  return spec;
}

}  // namespace blk
