// cow: writes go into an overlay that is thrown away at the end; the disk below is only read. All
// connections see the same overlay.
//
// Parallel-safe: what is present in the overlay is read and written in place without a lock; a
// block that is not yet there is locked while it is filled (block_store.h).
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "src/backends/filters/aligned_io.h"
#include "src/backends/filters/block_store.h"
#include "src/backends/filters/switch_param.h"
#include "src/backends/filters/window_device.h"
#include "src/core/buffer.h"
#include "src/core/spec.h"

namespace blk {
namespace {

using State = BlockStore::State;

// Buffers for filling blocks, and so much of one request is filled, or locked, at a time.
constexpr uint64_t kPieceBytes = 1 << 20;
constexpr uint64_t kLockedBytes = 16 << 20;
constexpr uint32_t kPreferredBytesMax = 32u << 20;  // NBD protocol, "Block size constraints"

struct Config {
  Size block_size{64 << 10};
  bool on_cache = false;
  SwitchParam on_read;
};

Facts CowFacts(const Device& below, const Config& config, bool read_only) {
  Facts facts = below.facts();
  facts.block.preferred = std::clamp<uint32_t>(static_cast<uint32_t>(config.block_size.bytes),
                                               facts.block.preferred, kPreferredBytesMax);
  facts.read_only = read_only;
  facts.flush = facts.trim = facts.zero = facts.fast_zero = facts.extents = true;
  facts.multi_conn = true;
  facts.fua = Support::kNative;  // the overlay outlives nothing that a flush could save it from
  facts.cache = Support::kNative;
  facts.contexts = {std::string(kBaseAllocation)};
  return facts;
}

class CowDevice final : public Filter {
 public:
  CowDevice(DevicePtr below, const Config& config, BlockStore* store, bool read_only)
      : Filter(below, CowFacts(*below, config, read_only)),
        config_(config),
        store_(*store),
        block_bytes_(store->block_bytes()) {}

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override;
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override;
  Task<absl::Status> DoFlush(const Call&) override { return absl::OkStatus(); }
  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override;
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override;
  Task<absl::Status> DoCache(const Call& call, uint64_t offset, uint64_t length) override;
  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override;

 private:
  uint64_t BlockOf(uint64_t offset) const { return offset / block_bytes_; }
  // The offset where block ends: the last one may be short.
  uint64_t EndOf(uint64_t block) const { return std::min((block + 1) * block_bytes_, size()); }
  // As many blocks as hold [offset, offset + length).
  uint64_t BlocksOver(uint64_t offset, uint64_t length) const {
    return length == 0 ? 0 : BlockOf(offset + length - 1) - BlockOf(offset) + 1;
  }
  // The first part of [offset, offset + length) that is in one state.
  BlockStore::Run PartAt(uint64_t offset, uint64_t* length) const {
    BlockStore::Run run = store_.RunAt(BlockOf(offset), BlocksOver(offset, *length));
    *length = std::min(*length, EndOf(BlockOf(offset) + run.blocks - 1) - offset);
    return run;
  }

  Task<absl::Status> ReadPart(const Call& call, const BlockStore::Run& run, uint64_t offset,
                              std::span<char> into);
  Task<absl::Status> ReadParts(const Call& call, uint64_t offset, std::span<char> into);
  Task<absl::Status> WriteIntoBlocks(const Call& call, uint64_t offset, std::span<const char> from);
  Task<absl::Status> Fetch(const Call& call, uint64_t offset, uint64_t length);
  Task<absl::Status> Fill(const Call& call, State state, uint64_t first, uint64_t blocks,
                          uint64_t offset, std::span<const char> data);
  Task<absl::Status> StorePiece(uint64_t offset, std::span<const char> bytes);
  Task<absl::Status> MakeZero(const Call& call, uint64_t offset, uint64_t length);

  const Config& config_;
  BlockStore& store_;
  const uint64_t block_bytes_;
};

// ---- Reading

Task<absl::Status> CowDevice::ReadPart(const Call& call, const BlockStore::Run& run,
                                       uint64_t offset, std::span<char> into) {
  if (run.state == State::kPresent)
    return store_.ReadAt(run.position + offset % block_bytes_, into);
  if (run.state == State::kAbsent) return ReadUnaligned(&below(), call, offset, into);
  std::memset(into.data(), 0, into.size());
  return absl::OkStatus();
}

Task<absl::Status> CowDevice::DoRead(const Call& call, uint64_t offset, std::span<char> into) {
  if (config_.on_read.never()) {
    uint64_t length = into.size();
    BlockStore::Run run = PartAt(offset, &length);
    if (length == into.size()) return ReadPart(call, run, offset, into);  // nearly always
  }
  return ReadParts(call, offset, into);
}

Task<absl::Status> CowDevice::ReadParts(const Call& call, uint64_t offset, std::span<char> into) {
  // What cannot be kept (the disk of the overlay is full) is read all the same.
  if (config_.on_read.on()) (void)co_await Fetch(call, offset, into.size());
  while (!into.empty()) {
    uint64_t length = into.size();
    BlockStore::Run run = PartAt(offset, &length);
    BLK_CO_RETURN_IF_ERROR(co_await ReadPart(call, run, offset, into.first(length)));
    offset += length;
    into = into.subspan(length);
  }
  co_return absl::OkStatus();
}

// Puts what is absent in the range, widened to whole blocks, into the overlay.
Task<absl::Status> CowDevice::Fetch(const Call& call, uint64_t offset, uint64_t length) {
  const uint64_t blocks_max = std::max<uint64_t>(kPieceBytes / block_bytes_, 1);
  uint64_t block = BlockOf(offset);
  const uint64_t end = block + BlocksOver(offset, length);
  while (block < end) {
    BlockStore::Run run = store_.RunAt(block, std::min(blocks_max, end - block));
    if (run.state == State::kAbsent) {
      RangeLock::Guard guard = co_await store_.locks().Lock(block, run.blocks);
      run = store_.RunAt(block, run.blocks);  // another may have been quicker
      if (run.state == State::kAbsent)
        BLK_CO_RETURN_IF_ERROR(co_await Fill(call, run.state, block, run.blocks, 0, {}));
    }
    block += run.blocks;
    if (call.stopped()) co_return ErrnoErrorAsIs(ECANCELED, "the request was cancelled");
  }
  co_return absl::OkStatus();
}

// ---- Writing

Task<absl::Status> CowDevice::DoWrite(const Call& call, uint64_t offset,
                                      std::span<const char> from) {
  uint64_t length = from.size();
  BlockStore::Run run = PartAt(offset, &length);
  if (length == from.size() && run.state == State::kPresent)
    return store_.WriteAt(run.position + offset % block_bytes_, from);
  return WriteIntoBlocks(call, offset, from);
}

Task<absl::Status> CowDevice::WriteIntoBlocks(const Call& call, uint64_t offset,
                                              std::span<const char> from) {
  while (!from.empty()) {
    // Whole blocks together, those that are written in part alone.
    const uint64_t block = BlockOf(offset);
    uint64_t length = std::min<uint64_t>(from.size(), EndOf(block) - offset);
    if (offset == block * block_bytes_ && length == EndOf(block) - offset) {
      length = std::min<uint64_t>(from.size(), std::max(kLockedBytes, block_bytes_));
      if (offset + length < size()) length -= (offset + length) % block_bytes_;
    }
    BlockStore::Run run = PartAt(offset, &length);
    if (run.state != State::kPresent) {
      RangeLock::Guard guard = co_await store_.locks().Lock(block, BlocksOver(offset, length));
      run = PartAt(offset, &length);
      if (run.state != State::kPresent)
        BLK_CO_RETURN_IF_ERROR(co_await Fill(call, run.state, block, BlocksOver(offset, length),
                                             offset, from.first(length)));
    }
    if (run.state == State::kPresent)
      BLK_CO_RETURN_IF_ERROR(
          co_await store_.WriteAt(run.position + offset % block_bytes_, from.first(length)));
    offset += length;
    from = from.subspan(length);
  }
  co_return absl::OkStatus();
}

// Makes blocks that are absent or zero present, with `data` at `offset` and the bytes that they
// have now around it. They are locked. On an error they stay as they were.
Task<absl::Status> CowDevice::Fill(const Call& call, State state, uint64_t first, uint64_t blocks,
                                   uint64_t offset, std::span<const char> data) {
  const uint64_t end = EndOf(first + blocks - 1);
  Buffer buffer;
  for (uint64_t at = first * block_bytes_; at < end; at += std::min(kPieceBytes, end - at)) {
    const uint64_t bytes = std::min(kPieceBytes, end - at);
    const uint64_t from = std::max(at, offset), to = std::min(at + bytes, offset + data.size());
    if (from == at && to == at + bytes) {
      BLK_CO_RETURN_IF_ERROR(co_await StorePiece(at, data.subspan(at - offset, bytes)));
      continue;
    }
    if (!buffer) buffer = Buffer(bytes);  // the first piece is the largest
    std::span<char> piece = buffer.span().first(bytes);
    if (state == State::kAbsent) {
      BLK_CO_RETURN_IF_ERROR(co_await ReadUnaligned(&below(), call.With(0), at, piece));
    } else {
      std::memset(piece.data(), 0, bytes);
    }
    if (from < to) std::memcpy(piece.data() + (from - at), &data[from - offset], to - from);
    BLK_CO_RETURN_IF_ERROR(co_await StorePiece(at, piece));
  }
  for (uint64_t block = first; block < first + blocks; ++block) store_.SetPresent(block);
  co_return absl::OkStatus();
}

// Writes bytes of the disk at `offset` to their places, side by side ones together.
Task<absl::Status> CowDevice::StorePiece(uint64_t offset, std::span<const char> bytes) {
  while (!bytes.empty()) {
    BLK_CO_ASSIGN_OR_RETURN(uint64_t place, store_.Place(BlockOf(offset)));
    const uint64_t position = place + offset % block_bytes_;
    uint64_t length = std::min<uint64_t>(EndOf(BlockOf(offset)) - offset, bytes.size());
    while (length < bytes.size()) {
      BLK_CO_ASSIGN_OR_RETURN(uint64_t next, store_.Place(BlockOf(offset + length)));
      if (next != position + length) break;
      length = std::min<uint64_t>(EndOf(BlockOf(offset + length)) - offset, bytes.size());
    }
    BLK_CO_RETURN_IF_ERROR(co_await store_.WriteAt(position, bytes.first(length)));
    offset += length;
    bytes = bytes.subspan(length);
  }
  co_return absl::OkStatus();
}

// ---- Zeroes

Task<absl::Status> CowDevice::DoTrim(const Call& call, uint64_t offset, uint64_t length) {
  return MakeZero(call, offset, length);
}

Task<absl::Status> CowDevice::DoZero(const Call& call, uint64_t offset, uint64_t length) {
  if (call.flags & kNoHole) return Device::DoZero(call, offset, length);
  // Quick is only what needs no bytes: whole blocks.
  const bool whole =
      offset % block_bytes_ == 0 &&
      (BlockOf(offset + length) * block_bytes_ == offset + length || offset + length == size());
  if ((call.flags & kFastZero) && !whole)
    return ErrnoErrorAsIs(EOPNOTSUPP, "zeroing part of a block is no faster than writing");
  return MakeZero(call, offset, length);
}

Task<absl::Status> CowDevice::MakeZero(const Call& call, uint64_t offset, uint64_t length) {
  const Call plain = call.With(0);
  const uint64_t end = offset + length;
  while (offset < end) {
    const uint64_t block = BlockOf(offset);
    uint64_t step = std::min(end, EndOf(block)) - offset;
    if (offset != block * block_bytes_ || offset + step != EndOf(block)) {
      if (store_.RunAt(block, 1).state != State::kZero)
        BLK_CO_RETURN_IF_ERROR(co_await Device::DoZero(plain, offset, step));
    } else {
      const uint64_t blocks =
          end == size() ? BlocksOver(offset, end - offset) : BlockOf(end) - block;
      step = EndOf(block + blocks - 1) - offset;
      RangeLock::Guard guard = co_await store_.locks().Lock(block, blocks);
      co_await store_.SetZero(block, blocks);
    }
    offset += step;
  }
  co_return absl::OkStatus();
}

// ---- Cache and extents

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

Task<absl::Status> CowDevice::DoExtents(const Call& call, std::string_view context,
                                        ExtentList* list) {
  while (!list->full()) {
    uint64_t length = list->end() - list->next();
    BlockStore::Run run = PartAt(list->next(), &length);
    if (run.state != State::kAbsent) {
      const uint64_t flags = run.state == State::kZero ? kExtentHoleZero : kExtentData;
      // A run in the file may be shorter than what is present: the first extent is all of it.
      if ((call.flags & kRequestOne) && !list->empty() && list->extents().back().flags != flags)
        break;
      list->Append(length, flags);
      continue;
    }
    if ((call.flags & kRequestOne) && !list->empty()) break;
    ExtentList part(list->next(), length, std::max<size_t>(list->room(), 1));
    BLK_CO_RETURN_IF_ERROR(co_await below().Extents(call, context, &part));
    for (const Extent& extent : part.extents()) list->Append(extent.length, extent.flags);
    if (call.flags & kRequestOne) break;
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
    absl::Status fits = CheckFits(*disk);
    if (!fits.ok()) {
      (void)co_await disk->Close();
      co_return fits;
    }
    co_return std::make_shared<CowDevice>(std::move(disk), config_, store_.get(), args.read_only);
  }

 private:
  // The overlay is one, so the disk below must be the same every time.
  absl::Status CheckFits(const Device& disk) {
    const uint32_t minimum = disk.facts().block.minimum;
    if (config_.block_size.bytes < minimum)
      return ErrnoErrorAsIs(EINVAL, absl::StrCat("the disk below has blocks of ", minimum,
                                                 " bytes: cow-block-size must not be smaller"));
    uint64_t size = UINT64_MAX;
    if (!size_.compare_exchange_strong(size, disk.size()) && size != disk.size())
      return ErrnoErrorAsIs(
          EINVAL,
          absl::StrCat("the disk below has ", disk.size(), " bytes, but the overlay is for ", size,
                       ": all clients must open the same disk, of one size"));
    return absl::OkStatus();
  }

  const Config config_;
  std::unique_ptr<BlockStore> store_;
  std::atomic<uint64_t> size_{UINT64_MAX};  // of the disk when it was opened first
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
