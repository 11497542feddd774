// cache: blocks are kept in a temporary file, so that a slow disk below is asked less often. All
// connections share one cache.
//
// Write-back: a write is done when the cache has it; a flush brings everything down first, so that
// what an acknowledged flush covers is in the disk below. A block stays dirty until the disk below
// has taken it: one that it refuses fails each flush until it does not. Where a flush of one client
// does not cover the others' connections to the disk below, all that have written are flushed.
//
// Parallel-safe: whoever changes blocks locks them; readers of what is there do not
// (stored_device.h). A temporary file that takes no more makes writes go straight to the disk
// below.
#include <bit>
#include <cerrno>

#include "src/backends/filters/flush_group.h"
#include "src/backends/filters/stored_device.h"
#include "src/backends/filters/switch_param.h"
#include "src/core/buffer.h"
#include "src/core/scope.h"
#include "src/core/spec.h"
#include "src/core/trace.h"

namespace blk {
namespace {

constexpr int kWritersBack = 8;             // at the same time, for one flush
constexpr int kBlocksReclaimed = 256;       // at most, by one request
constexpr int64_t kFullNs = 2'000'000'000;  // so long nothing new is stored after a failure

enum class Mode { kWriteBack, kWriteThrough, kUnsafe };

struct Config {
  Mode mode = Mode::kWriteBack;
  Size block_size{64 << 10};
  std::optional<Size> max_size;
  int high_percent = 95, low_percent = 80;
  SwitchParam on_read;
};

// What the devices of a layer share.
struct Shared {
  Config config;
  std::unique_ptr<BlockStore> store;
  OneDisk one_disk;
  uint64_t max_blocks = UINT64_MAX, high_blocks = UINT64_MAX, low_blocks = UINT64_MAX;
  FlushGroup disks;               // those below
  std::atomic<bool> lost{false};  // what a client wrote that has left could not be flushed
  std::atomic<bool> reclaiming{false};
  std::atomic<int64_t> full_until_ns{INT64_MIN / 2};  // on the loops' clock
};

class CacheDevice final : public StoredDevice {
 public:
  CacheDevice(DevicePtr below, Shared* shared)
      : StoredDevice(below, StoredFacts(*below, shared->store->block_bytes()), shared->store.get()),
        shared_(*shared),
        disk_(shared->disks.Add(below, "", !below->facts().multi_conn)) {}

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    if (shared_.config.on_read.never()) return StoredDevice::DoRead(call, offset, into);
    uint64_t length = into.size();
    const bool absent = PartAt(offset, &length).state == State::kAbsent || length < into.size();
    if (!absent) return StoredDevice::DoRead(call, offset, into);
    return ReadAndKeep(call, offset, into);
  }
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override;
  Task<absl::Status> DoFlush(const Call& call) override;
  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override;
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override {
    // What shall stay allocated below is written, unless the disk below does it now.
    if ((call.flags & kNoHole) && !GoesThrough(call)) return Device::DoZero(call, offset, length);
    return MakeZero(call, offset, length);
  }
  Task<absl::Status> ZeroBlocks(const Call& call, uint64_t first, uint64_t blocks) override;
  Task<absl::Status> DoCache(const Call& call, uint64_t offset, uint64_t length) override {
    BLK_CO_RETURN_IF_ERROR(co_await Fetch(call, offset, length));
    co_await Reclaim(call);
    co_return absl::OkStatus();
  }
  Task<absl::Status> DoClose() override;
  bool SameBelow(const BlockStore::Run& run) const override {
    return run.state == State::kAbsent || (run.state == State::kPresent && !run.dirty);
  }
  bool HasRoom(uint64_t blocks) override {
    return store().present_blocks() + blocks <= shared_.max_blocks &&
           Loop::Current()->NowNs() >= shared_.full_until_ns.load(std::memory_order_relaxed);
  }

  void StoreFailed(const absl::Status& status) override;

 private:
  struct WriteBackJob {
    Call call;
    uint64_t next = 0;  // the first block that nobody looked at
    absl::Status status;
  };

  bool GoesThrough(const Call& call) const {
    return shared_.config.mode == Mode::kWriteThrough ||
           (shared_.config.mode == Mode::kWriteBack && (call.flags & kFua));
  }
  uint64_t AllBlocks() const { return BlocksOver(0, size()); }

  Task<absl::Status> ReadAndKeep(const Call& call, uint64_t offset, std::span<char> into);
  Task<absl::Status> WriteLocked(const Call& call, uint64_t offset, std::span<const char> data);
  Task<absl::Status> WriteAround(const Call& call, uint64_t offset, std::span<const char> data);
  Task<absl::Status> WriteBelow(const Call& call, uint64_t offset, std::span<const char> data);
  Task<absl::Status> ZeroBelow(const Call& call, uint64_t first, uint64_t blocks);
  Task<void> DropClean(uint64_t first, uint64_t blocks);
  Task<absl::Status> TrimBlocks(const Call& call, uint64_t first, uint64_t blocks);
  Task<absl::Status> WriteBack(const Call& call, uint64_t first, uint64_t blocks);
  Task<void> WriteBackSome(WriteBackJob* job);
  Task<absl::Status> WriteBackAll(const Call& call);
  Task<absl::Status> FlushBelow(const Call& call);
  Task<void> Reclaim(const Call& call);
  Shared& shared_;
  const FlushGroup::MemberPtr disk_;  // below()
};

// ---- Reading

Task<absl::Status> CacheDevice::ReadAndKeep(const Call& call, uint64_t offset,
                                            std::span<char> into) {
  // An error of the disk below comes again with the read itself, if that meets it.
  if (shared_.config.on_read.on()) (void)co_await Fetch(call, offset, into.size());
  BLK_CO_RETURN_IF_ERROR(co_await StoredDevice::DoRead(call, offset, into));
  co_await Reclaim(call);
  co_return absl::OkStatus();
}

// ---- Writing

Task<absl::Status> CacheDevice::DoWrite(const Call& call, uint64_t offset,
                                        std::span<const char> from) {
  while (!from.empty()) {
    const uint64_t length = StepAt(offset, from.size(), kLockedBytes);
    {
      RangeLock::Guard guard =
          co_await store().locks().Lock(BlockOf(offset), BlocksOver(offset, length));
      BLK_CO_RETURN_IF_ERROR(co_await WriteLocked(call, offset, from.first(length)));
    }
    offset += length;
    from = from.subspan(length);
  }
  co_await Reclaim(call);
  co_return absl::OkStatus();
}

// A part of one block, or whole blocks; they are locked.
Task<absl::Status> CacheDevice::WriteLocked(const Call& call, uint64_t offset,
                                            std::span<const char> data) {
  const bool through = GoesThrough(call);
  if (through) {
    absl::Status status = co_await WriteBelow(call, offset, data);
    if (!status.ok()) {
      co_await DropClean(BlockOf(offset), BlocksOver(offset, data.size()));
      co_return status;
    }
  }
  while (!data.empty()) {
    uint64_t length = data.size();
    const BlockStore::Run run = PartAt(offset, &length);
    const std::span<const char> part = data.first(length);
    const uint64_t first = BlockOf(offset), blocks = BlocksOver(offset, length);
    bool store_failed = false;
    absl::Status status;
    if (run.state == State::kPresent) {
      status = co_await store().WriteAt(run.position + offset % block_bytes(), part);
      store_failed = !status.ok();
      if (status.ok() && !through) store().SetDirty(first, blocks, true);
    } else if (!HasRoom(blocks)) {
      if (!through || run.state == State::kZero)
        BLK_CO_RETURN_IF_ERROR(co_await WriteAround(call, offset, part));
    } else if (!through || run.state == State::kZero || IsWhole(offset, length)) {
      const bool dirty = !through || !IsWhole(offset, length);
      status = co_await Fill(call, run.state, first, blocks, offset, part, dirty, &store_failed);
    }
    if (store_failed) {
      StoreFailed(status);
      status = co_await WriteAround(call, offset, part);
    }
    BLK_CO_RETURN_IF_ERROR(status);
    offset += length;
    data = data.subspan(length);
  }
  co_return absl::OkStatus();
}

// Writes what cannot be stored. The blocks are locked; what is stored of them goes down before.
Task<absl::Status> CacheDevice::WriteAround(const Call& call, uint64_t offset,
                                            std::span<const char> data) {
  const uint64_t first = BlockOf(offset), blocks = BlocksOver(offset, data.size());
  BLK_CO_RETURN_IF_ERROR(co_await WriteBack(call, first, blocks));
  co_await store().Drop(first, blocks);
  co_return co_await WriteBelow(call, offset, data);
}

Task<absl::Status> CacheDevice::WriteBelow(const Call& call, uint64_t offset,
                                           std::span<const char> data) {
  const Call plain = call.With(shared_.config.mode == Mode::kUnsafe ? 0 : call.flags & kFua);
  const BlockSizes& block = below().facts().block;
  const uint64_t step_max = std::max(block.maximum / block.minimum * block.minimum, block.minimum);
  while (!data.empty()) {
    const uint64_t step = std::min<uint64_t>(data.size(), step_max);
    absl::Status status = co_await below().Write(plain, offset, data.first(step));
    disk_->dirty = true;
    BLK_CO_RETURN_IF_ERROR(status);
    offset += step;
    data = data.subspan(step);
  }
  co_return absl::OkStatus();
}

void CacheDevice::StoreFailed(const absl::Status& status) {
  const int64_t now_ns = Loop::Current()->NowNs();
  // One warning for each time that it is full, however long that is.
  if (shared_.full_until_ns.exchange(now_ns + kFullNs) < now_ns - kFullNs)
    LogWarning(absl::StrCat("cache: ", status.message(),
                            ": until there is room again, requests go straight to the disk below"));
}

// ---- Zeroes and trims

Task<absl::Status> CacheDevice::ZeroBlocks(const Call& call, uint64_t first, uint64_t blocks) {
  if (!GoesThrough(call)) {
    absl::Status status = co_await store().SetZero(first, blocks);
    if (ErrnoOf(status) != ENOSPC) co_return status;
  }
  absl::Status status = co_await ZeroBelow(call, first, blocks);
  if (!status.ok()) {
    co_await DropClean(first, blocks);
    co_return status;
  }
  co_await store().Drop(first, blocks);
  co_return absl::OkStatus();
}

Task<absl::Status> CacheDevice::ZeroBelow(const Call& call, uint64_t first, uint64_t blocks) {
  absl::Status status =
      co_await below().Zero(call, StartOf(first), EndOf(first + blocks - 1) - StartOf(first));
  disk_->dirty = true;
  co_return status;
}

// After a change of the disk below that has failed, nobody knows what is there. What is dirty goes
// down later and is right then.
Task<void> CacheDevice::DropClean(uint64_t first, uint64_t blocks) {
  for (const uint64_t end = first + blocks; first < end;) {
    const BlockStore::Run run = store().RunAt(first, end - first);
    if (run.state == State::kPresent && !run.dirty) co_await store().Drop(first, run.blocks);
    first += run.blocks;
  }
}

Task<absl::Status> CacheDevice::DoTrim(const Call& call, uint64_t offset, uint64_t length) {
  if (shared_.config.mode == Mode::kUnsafe) co_return absl::OkStatus();
  for (const uint64_t end = offset + length; offset < end;) {
    const uint64_t step = StepAt(offset, end - offset, UINT64_MAX);
    const uint64_t first = BlockOf(offset), blocks = BlocksOver(offset, step);
    RangeLock::Guard guard = co_await store().locks().Lock(first, blocks);
    // A part of a block that is kept stays what it is: it must not differ from what is below.
    if (IsWhole(offset, step)) {
      BLK_CO_RETURN_IF_ERROR(co_await TrimBlocks(call, first, blocks));
    } else if (store().RunAt(first, 1).state == State::kAbsent) {
      absl::Status status = co_await below().Trim(call, offset, step);
      disk_->dirty = true;
      BLK_CO_RETURN_IF_ERROR(status);
    }
    offset += step;
  }
  co_return absl::OkStatus();
}

// Whole blocks need not go down any more: they are what is there now, or zero.
Task<absl::Status> CacheDevice::TrimBlocks(const Call& call, uint64_t first, uint64_t blocks) {
  const uint64_t end = first + blocks;
  absl::Status status =
      co_await below().Trim(call, StartOf(first), EndOf(end - 1) - StartOf(first));
  disk_->dirty = true;
  while (first < end) {
    const BlockStore::Run run = store().RunAt(first, end - first);
    if (run.state == State::kPresent && !run.dirty) {
      co_await store().Drop(first, run.blocks);
    } else if (run.state == State::kPresent && status.ok()) {
      // If that cannot be remembered, they go down as they are: a trim promises nothing.
      (void)co_await store().SetZero(first, run.blocks);
    }
    first += run.blocks;
  }
  co_return status;
}

// ---- Writing back

// Brings down what is dirty of these blocks. They are locked.
Task<absl::Status> CacheDevice::WriteBack(const Call& call, uint64_t first, uint64_t blocks) {
  const Call plain = call.With(0);
  Buffer buffer;
  for (uint64_t end = first + blocks; first < end;) {
    const BlockStore::Run run = store().RunAt(first, end - first);
    const uint64_t start = StartOf(first), bytes = EndOf(first + run.blocks - 1) - start;
    if (run.state == State::kZero) {
      BLK_CO_RETURN_IF_ERROR(co_await ZeroBelow(plain, first, run.blocks));
      co_await store().Drop(first, run.blocks);
    } else if (run.state == State::kPresent && run.dirty) {
      if (!buffer) buffer = Buffer(kPieceBytes);
      for (uint64_t done = 0; done < bytes;) {
        std::span<char> piece = buffer.span().first(std::min(bytes - done, kPieceBytes));
        BLK_CO_RETURN_IF_ERROR(co_await store().ReadAt(run.position + done, piece));
        BLK_CO_RETURN_IF_ERROR(co_await WriteBelow(plain, start + done, piece));
        done += piece.size();
      }
      store().SetDirty(first, run.blocks, false);
    }
    first += run.blocks;
  }
  co_return absl::OkStatus();
}

Task<void> CacheDevice::WriteBackSome(WriteBackJob* job) {
  const uint64_t piece_blocks = std::max<uint64_t>(kPieceBytes / block_bytes(), 1);
  while (job->status.ok()) {
    const uint64_t first = store().NextDirty(job->next);
    if (first == UINT64_MAX) co_return;
    BlockStore::Run run = store().RunAt(first, AllBlocks() - first);
    if (run.state != State::kZero) run.blocks = std::min(run.blocks, piece_blocks);
    job->next = first + run.blocks;
    RangeLock::Guard guard = co_await store().locks().Lock(first, run.blocks);
    job->status.Update(co_await WriteBack(job->call, first, run.blocks));
  }
}

// Everything that is dirty now. Several parts at a time, since the disk below may be far away.
Task<absl::Status> CacheDevice::WriteBackAll(const Call& call) {
  WriteBackJob job{.call = call.With(0), .next = 0, .status = {}};
  if (store().NextDirty(0) == UINT64_MAX) co_return absl::OkStatus();
  TaskScope scope;
  for (int i = 0; i < kWritersBack; ++i) scope.Spawn(WriteBackSome(&job));
  co_await scope.Join();
  co_return job.status;
}

Task<absl::Status> CacheDevice::DoFlush(const Call& call) {
  if (shared_.config.mode == Mode::kUnsafe) co_return absl::OkStatus();
  BLK_CO_RETURN_IF_ERROR(co_await WriteBackAll(call));
  co_return co_await FlushBelow(call);
}

// What went down did so through the connection of whoever brought it, maybe for others.
Task<absl::Status> CacheDevice::FlushBelow(const Call& call) {
  if (below().facts().multi_conn) co_return co_await below().Flush(call);
  absl::Status status = co_await disk_->Flush(call, /*enough=*/false);
  for (const FlushGroup::MemberPtr& other : shared_.disks.All())
    if (other != disk_) status.Update(co_await other->Flush(call, /*enough=*/true));
  if (shared_.lost)
    status.Update(ErrnoErrorAsIs(EIO,
                                 "cache: a client has left, and the disk below could not "
                                 "flush what was written through its connection"));
  co_return status;
}

// A client that leaves without a flush has no promise, but what it wrote goes down if it can. What
// it brought down for others is flushed while that can be done.
Task<absl::Status> CacheDevice::DoClose() {
  absl::Status status;
  if (shared_.config.mode == Mode::kWriteBack && !facts().read_only)
    status = co_await WriteBackAll({});
  if (shared_.config.mode != Mode::kUnsafe && !below().facts().multi_conn) {
    absl::Status flushed = co_await disk_->Flush({}, /*enough=*/true);
    if (!flushed.ok()) shared_.lost = true;
    status.Update(flushed);
  }
  shared_.disks.Remove(disk_);
  if (!status.ok()) {
    LogError(
        absl::StrCat("cache: what was written is not all in the disk below: ", status.message()));
  }
  status.Update(co_await disk_->Close());
  co_return status;
}

// ---- The limit

// Above the high threshold, makes room down to the low one: what was not used for long goes first.
Task<void> CacheDevice::Reclaim(const Call& call) {
  if (store().present_blocks() > shared_.high_blocks) shared_.reclaiming = true;
  for (int i = 0; i < kBlocksReclaimed && shared_.reclaiming; ++i) {
    if (store().present_blocks() <= shared_.low_blocks) {
      shared_.reclaiming = false;
      co_return;
    }
    const std::optional<uint64_t> block = store().FindUnused();
    if (!block) co_return;
    RangeLock::Guard guard = co_await store().locks().Lock(*block, 1);
    const BlockStore::Run run = store().RunAt(*block, 1);
    if (run.state != State::kPresent) continue;
    // What cannot go down stays, and the next flush tells why.
    if (run.dirty && (facts().read_only || !(co_await WriteBack(call, *block, 1)).ok())) co_return;
    co_await store().Drop(*block, 1);
  }
}

// ---- The layer

class CacheLayer final : public FilterLayer {
 public:
  CacheLayer(LayerPtr below, const Config& config) : FilterLayer(std::move(below)) {
    shared_.config = config;
    if (!config.max_size) return;
    const uint64_t blocks = std::max<uint64_t>(config.max_size->bytes / config.block_size.bytes, 1);
    shared_.max_blocks = blocks;
    shared_.high_blocks = Percent(blocks, config.high_percent);
    shared_.low_blocks = Percent(blocks, config.low_percent);
  }

  absl::Status Ready() override {
    BLK_ASSIGN_OR_RETURN(shared_.store, BlockStore::Create(shared_.config.block_size.bytes));
    return absl::OkStatus();
  }

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    BLK_CO_ASSIGN_OR_RETURN(DevicePtr disk, co_await below().Open(args));
    absl::Status fits = co_await shared_.one_disk.Check(
        &below(), args, disk.get(), shared_.config.block_size.bytes, "cache-min-block-size");
    if (!fits.ok()) {
      (void)co_await disk->Close();
      co_return fits;
    }
    co_return std::make_shared<CacheDevice>(std::move(disk), &shared_);
  }

 private:
  static uint64_t Percent(uint64_t blocks, int percent) {
    return static_cast<uint64_t>(static_cast<double>(blocks) * percent / 100);
  }

  Shared shared_;
};

absl::StatusOr<LayerPtr> MakeCache(const Config& config, LayerPtr below) {
  const uint64_t bytes = config.block_size.bytes;
  if (bytes < 4096 || bytes > 1u << 31 || !std::has_single_bit(bytes))
    return absl::InvalidArgumentError(
        "cache-min-block-size must be a power of two and between 4K and 2G");
  if (config.max_size && config.max_size->bytes < 1 << 20)
    return absl::InvalidArgumentError("cache-max-size is too small: give at least 1M");
  if (config.high_percent <= 0 || config.low_percent <= 0)
    return absl::InvalidArgumentError(
        "cache-high-threshold and cache-low-threshold must be greater than 0");
  if (config.max_size && config.low_percent >= config.high_percent)
    return absl::InvalidArgumentError("cache-low-threshold must be less than cache-high-threshold");
  return std::make_shared<CacheLayer>(std::move(below), config);
}

}  // namespace

const Spec& CacheSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("cache", "keep blocks in a temporary file, so that a slow disk is spared")
          .Param("cache", &Config::mode,
                 {{"writeback", Mode::kWriteBack},
                  {"writethrough", Mode::kWriteThrough},
                  {"unsafe", Mode::kUnsafe}},
                 {.help = "when writes go to the disk below: by a flush, at once, or not before "
                          "room is needed"})
          .Param("cache-min-block-size", &Config::block_size,
                 {.help = "what is kept at a time: a power of two from 4K to 2G"})
          .Param("cache-max-size", &Config::max_size,
                 {.help = "how large the cache may become; it can be as large as the disk without"})
          .Param("cache-high-threshold", &Config::high_percent,
                 {.help = "percentage of the largest size from which on room is made"})
          .Param("cache-low-threshold", &Config::low_percent,
                 {.help = "percentage of the largest size down to which room is made"})
          .Param("cache-on-read", &Config::on_read,
                 {.help = "keep what is read, too, or do so while a file exists"})
          .Description(
              "All clients share the cache, whose bytes are in a temporary file in TMPDIR, else "
              "/var/tmp. With cache=writeback a flush returns when everything written before is in "
              "the disk below; what is refused there fails every flush until it is taken. What is "
              "not flushed is written when its client leaves. When there is no room for the cache, "
              "requests go straight to the disk below.")
          .Needs(Need::Kind::kTemporaryFile)
          .Example("cache+memory:1M")
          .PrintedExample("cache(cache-on-read=true,cache-max-size=1G)+nbd://host/disk",
                          "what was read lately, near by")
          .Make(MakeCache));
  return spec;
}

}  // namespace blk
