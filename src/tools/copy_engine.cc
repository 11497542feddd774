#include "src/tools/copy_engine.h"

#include <xxhash.h>

#include <algorithm>

#include "src/core/buffer.h"
#include "src/core/loop.h"
#include "src/core/scope.h"
#include "src/core/sync.h"
#include "src/core/trace.h"
#include "src/core/zeroes.h"
#include "src/tools/copy_journal.h"
#include "src/tools/walk.h"

namespace blk {
namespace {

// What a walker takes at a time: large enough that its extents are worth a request, small enough
// that all loops end together.
constexpr uint64_t kSegmentBytesMin = 64 << 20;
constexpr uint64_t kSegmentBytesMax = uint64_t{1} << 50;
constexpr size_t kSegmentsWanted = 4096;
// Walkers of one loop: while one waits for extents, the other keeps requests in flight.
constexpr int kWalkersPerLoop = 2;
// With a journal: how much work a kill may cost, in time and as a share of the disk. Each
// checkpoint costs a flush of the target.
constexpr int64_t kCheckpointNs = 500'000'000, kCheckpointNsMin = 50'000'000;
constexpr uint64_t kCheckpointShare = 32;

struct Piece {
  uint64_t offset, length;
  bool zero;
};

// What was written, for the comparison afterwards.
struct Written {
  uint64_t offset, length;
  XXH64_hash_t hash;  // of the data; unused when zero
  bool zero;
};

class Copier {
 public:
  Copier(Device* source, Device* target, CopyOptions options, CopyProgress* progress)
      : source_(*source),
        target_(*target),
        options_(options),
        progress_(*progress),
        size_(source->size()),
        granule_(std::max<uint64_t>(source->facts().block.minimum, target->facts().block.minimum)),
        stop_token_(stop_.get_token()) {
    options_.request_bytes = std::min<uint64_t>(
        {options_.request_bytes, source->facts().block.maximum, target->facts().block.maximum});
    options_.request_bytes -= options_.request_bytes % granule_;
    segment_bytes_ = options_.segment_bytes;
    if (!segment_bytes_)
      segment_bytes_ = std::clamp(size_ / kSegmentsWanted, kSegmentBytesMin, kSegmentBytesMax);
    segment_bytes_ -= segment_bytes_ % std::max<uint64_t>(options_.request_bytes, 1);
    piece_granule_ = options_.whole_requests ? options_.request_bytes : granule_;
  }

  Task<absl::Status> Run(std::span<Loop* const> loops);

 private:
  // The state of one walker; its requests in flight are bounded by two semaphores.
  struct Walker {
    Semaphore requests;
    Semaphore bytes;
    TaskScope scope;
    std::vector<Written> written;  // with verify: of this segment
    Walker(size_t request_count, uint64_t byte_count)
        : requests(request_count), bytes(byte_count) {}
  };

  Task<void> Walk(Loop* loop, size_t requests, uint64_t bytes);
  Task<void> Checkpoints();
  Task<absl::Status> Finish();
  Task<absl::Status> WalkMissing(Walker& walker, uint64_t offset, uint64_t end);
  Task<absl::Status> WalkSegment(Walker& walker, uint64_t offset, uint64_t end);
  Task<absl::Status> CopyPiece(Walker& walker, Piece piece);
  Task<void> CopyData(Walker& walker, uint64_t offset, uint64_t length);
  Task<void> CopyZero(Walker& walker, uint64_t offset, uint64_t length);
  Task<absl::Status> WriteData(Walker& walker, uint64_t offset, std::span<const char> data);
  Task<absl::Status> WriteZero(uint64_t offset, uint64_t length);
  Task<absl::Status> Verify(Walker& walker);
  Task<absl::Status> VerifyOne(Written written, Buffer& buffer);

  Task<absl::Status> AskExtents(ExtentList* list, uint64_t offset, uint64_t end);
  std::vector<Piece> AlignPieces(const ExtentList& list, uint64_t end) const;
  void Fail(const absl::Status& status);
  void Done(uint64_t offset, uint64_t length);
  Call MakeCall(uint32_t flags = 0) const { return {.flags = flags, .stop = &stop_token_}; }

  Device& source_;
  Device& target_;
  CopyOptions options_;
  CopyProgress& progress_;
  const uint64_t size_;
  const uint64_t granule_;      // offsets and lengths are multiples of it
  uint64_t piece_granule_ = 0;  // the same for zero pieces that the source tells of
  uint64_t segment_bytes_ = 0;
  std::atomic<uint64_t> next_{0};  // offset of the next segment
  std::stop_source stop_;
  const std::stop_token stop_token_;
  std::stop_source no_more_checkpoints_;
  std::mutex mutex_;
  absl::Status failure_;  // guarded by mutex_
};

void Copier::Fail(const absl::Status& status) {
  std::lock_guard lock(mutex_);
  if (failure_.ok()) failure_ = status;
  stop_.request_stop();
}

Task<absl::Status> Copier::Run(std::span<Loop* const> loops) {
  if (target_.size() < size_)
    co_return ErrnoErrorAsIs(EINVAL, absl::StrCat("the target is too small: it has ",
                                                  target_.size(), " bytes and the source ", size_));
  if (size_ % granule_ != 0)
    co_return ErrnoErrorAsIs(
        EINVAL, absl::StrCat("the source's size of ", size_, " bytes is not a multiple of the ",
                             granule_, " bytes that the target takes at a time"));
  // Never more than requests: one request at a time means one after the other.
  size_t walkers = std::min(loops.size() * kWalkersPerLoop, options_.requests_max);
  size_t requests = std::max<size_t>(1, options_.requests_max / walkers);
  uint64_t bytes = std::max<uint64_t>(options_.request_bytes, options_.queue_bytes_max / walkers);
  TaskScope scope, checkpoints;
  for (size_t i = 0; i < walkers; ++i) scope.Spawn(Walk(loops[i % loops.size()], requests, bytes));
  if (options_.journal) checkpoints.Spawn(Checkpoints());
  co_await scope.Join();
  no_more_checkpoints_.request_stop();
  co_await checkpoints.Join();
  co_return co_await Finish();
}

// Writes down what is finished, now and then.
Task<void> Copier::Checkpoints() {
  const std::stop_token stop = no_more_checkpoints_.get_token();
  int64_t last_ns = Loop::Current()->NowNs();
  while ((co_await Loop::Current()->Sleep(kCheckpointNsMin, &stop)).ok()) {
    const int64_t now_ns = Loop::Current()->NowNs();
    if (options_.journal->pending_bytes() < size_ / kCheckpointShare &&
        now_ns - last_ns < kCheckpointNs)
      continue;
    last_ns = now_ns;
    absl::Status status = co_await options_.journal->Checkpoint(&target_);
    if (!status.ok()) co_return Fail(status);
  }
}

Task<absl::Status> Copier::Finish() {
  absl::Status failure;
  {
    std::lock_guard lock(mutex_);
    failure = failure_;
  }
  if (!failure.ok()) {
    // What has been done need not be done again; the failure to tell of is the first one.
    if (options_.journal) (void)co_await options_.journal->Checkpoint(&target_);
    co_return failure;
  }
  if ((options_.flush || options_.journal) && target_.facts().flush) {
    Call call;
    BLK_CO_RETURN_IF_ERROR(Annotate(co_await target_.Flush(call), "flush of the target"));
  }
  if (options_.journal) co_return co_await options_.journal->Remove();
  co_return absl::OkStatus();
}

void Copier::Done(uint64_t offset, uint64_t length) {
  progress_.done += length;
  if (options_.journal) options_.journal->Done(offset, length);
}

Task<void> Copier::Walk(Loop* loop, size_t requests, uint64_t bytes) {
  Loop* home = Loop::Current();
  co_await ResumeOn{loop};
  Walker walker(requests, bytes);
  while (!stop_token_.stop_requested()) {
    uint64_t offset = next_.fetch_add(segment_bytes_);
    if (offset >= size_) {
      next_ = size_;  // never wraps around
      break;
    }
    absl::Status status =
        co_await WalkMissing(walker, offset, offset + std::min(segment_bytes_, size_ - offset));
    if (status.ok() && options_.verify) {
      co_await walker.scope.Join();
      if (!stop_token_.stop_requested()) status = co_await Verify(walker);
    }
    if (!status.ok()) Fail(status);
  }
  co_await walker.scope.Join();
  co_await ResumeOn{home};
}

// What no earlier run has finished.
Task<absl::Status> Copier::WalkMissing(Walker& walker, uint64_t offset, uint64_t end) {
  if (!options_.journal) co_return co_await WalkSegment(walker, offset, end);
  uint64_t gap_from = 0, gap_to = 0;
  while (options_.journal->finished().NextGap(offset, end, &gap_from, &gap_to)) {
    progress_.done += gap_from - offset;
    BLK_CO_RETURN_IF_ERROR(co_await WalkSegment(walker, gap_from, gap_to));
    offset = gap_to;
  }
  progress_.done += end - offset;
  co_return absl::OkStatus();
}

Task<absl::Status> Copier::WalkSegment(Walker& walker, uint64_t offset, uint64_t end) {
  if (!options_.extents || !source_.facts().extents) {
    co_return co_await CopyPiece(walker, {offset, end - offset, false});
  }
  ExtentList list(offset, end - offset);
  while (offset < end) {
    if (stop_token_.stop_requested()) co_return absl::OkStatus();
    BLK_CO_RETURN_IF_ERROR(co_await AskExtents(&list, offset, end));
    if (piece_granule_ == 1) {
      uint64_t at = list.start();
      for (const Extent& extent : list.extents()) {
        bool zero = extent.flags & kExtentZero;
        BLK_CO_RETURN_IF_ERROR(co_await CopyPiece(walker, {at, extent.length, zero}));
        at += extent.length;
      }
      offset = at;
    } else {
      for (const Piece& piece : AlignPieces(list, end))
        BLK_CO_RETURN_IF_ERROR(co_await CopyPiece(walker, piece));
      offset = std::min(end, (list.next() + piece_granule_ - 1) / piece_granule_ * piece_granule_);
    }
  }
  co_return absl::OkStatus();
}

// The extents from `offset` on; with whole_requests all up to `end`, so that zeroes on both sides
// of the seam of two answers are one piece.
Task<absl::Status> Copier::AskExtents(ExtentList* list, uint64_t offset, uint64_t end) {
  list->Reset(offset, end - offset);
  Call call = MakeCall();
  do {
    ExtentList more(list->next(), end - list->next());
    ExtentList* into = list->empty() ? list : &more;
    absl::Status status = co_await source_.Extents(call, kBaseAllocation, into);
    if (!status.ok()) {
      if (stop_token_.stop_requested()) co_return status;
      LogDebug("copy: no extents at offset ", list->next(), ": ", status.message());
      list->Append(end - list->next(), kExtentData);
      break;
    }
    if (into->empty()) co_return ErrnoErrorAsIs(EIO, "the source gave no extents");
    for (const Extent& extent : more.extents()) list->Append(extent.length, extent.flags);
  } while (options_.whole_requests && list->next() < end);
  co_return absl::OkStatus();
}

// Zero pieces shrink to whole granules, data grows over what they lose. Where the disk ends, a
// granule may be short.
std::vector<Piece> Copier::AlignPieces(const ExtentList& list, uint64_t end) const {
  std::vector<Piece> pieces;
  auto add = [&](uint64_t from, uint64_t to, bool zero) {
    if (from >= to) return;
    if (!pieces.empty() && pieces.back().zero == zero) {
      pieces.back().length += to - from;
    } else {
      pieces.push_back({from, to - from, zero});
    }
  };
  const uint64_t granule = piece_granule_;
  auto up = [&](uint64_t at) { return std::min(end, (at + granule - 1) / granule * granule); };
  uint64_t at = list.start(), done = list.start();
  auto extent = list.extents().begin();
  while (extent != list.extents().end()) {
    const uint64_t begin = at;
    const bool zero = extent->flags & kExtentZero;
    for (; extent != list.extents().end() && bool(extent->flags & kExtentZero) == zero; ++extent)
      at += extent->length;
    const uint64_t from = up(begin), to = at == end ? end : at / granule * granule;
    if (!zero || from >= to) continue;
    add(done, from, false);
    add(from, to, true);
    done = to;
  }
  add(done, up(at), false);
  return pieces;
}

// Starts the requests for a piece; waits only for room.
Task<absl::Status> Copier::CopyPiece(Walker& walker, Piece piece) {
  if (piece.zero) {
    if (options_.destination_is_zero && !options_.allocated && !options_.verify) {
      Done(piece.offset, piece.length);
      co_return absl::OkStatus();
    }
    co_await walker.requests.Acquire();
    walker.scope.Spawn(CopyZero(walker, piece.offset, piece.length));
    co_return absl::OkStatus();
  }
  while (piece.length > 0 && !stop_token_.stop_requested()) {
    uint64_t step = std::min(piece.length, options_.request_bytes);
    co_await walker.requests.Acquire();
    co_await walker.bytes.Acquire(step);
    walker.scope.Spawn(CopyData(walker, piece.offset, step));
    piece.offset += step;
    piece.length -= step;
  }
  co_return absl::OkStatus();
}

Task<void> Copier::CopyZero(Walker& walker, uint64_t offset, uint64_t length) {
  absl::Status status;
  if (!options_.destination_is_zero || options_.allocated)
    status = co_await WriteZero(offset, length);
  if (options_.verify) walker.written.push_back({offset, length, 0, true});
  walker.requests.Release();
  if (!status.ok()) co_return Fail(status);
  Done(offset, length);
}

Task<void> Copier::CopyData(Walker& walker, uint64_t offset, uint64_t length) {
  Call call = MakeCall();
  absl::Status status;
  Loan loan;
  if (source_.Borrow(call, offset, length, &loan)) {
    uint64_t at = offset;
    for (const iovec& span : loan.spans()) {
      status = co_await WriteData(walker, at, {static_cast<char*>(span.iov_base), span.iov_len});
      if (!status.ok()) break;
      at += span.iov_len;
    }
    loan.End();
  } else {
    ArenaPiece piece = options_.arena ? ArenaPiece(options_.arena.get(), length) : ArenaPiece();
    Buffer buffer(piece ? 0 : length);
    std::span<char> bytes(piece ? piece.data() : buffer.data(), length);
    status = co_await source_.Read(call, offset, bytes);
    if (status.ok()) {
      status = co_await WriteData(walker, offset, bytes);
    } else {
      status = Annotate(status, absl::StrCat("read at offset ", offset, " length ", length));
    }
  }
  walker.bytes.Release(length);
  walker.requests.Release();
  if (!status.ok()) co_return Fail(status);
  progress_.read += length;
  Done(offset, length);
}

// Writes `data`, with the zeroes that lie in it as zeroes.
Task<absl::Status> Copier::WriteData(Walker& walker, uint64_t offset, std::span<const char> data) {
  const uint64_t unit = std::max(options_.sparse_bytes, granule_);
  if (options_.verify)
    walker.written.push_back({offset, data.size(), XXH3_64bits(data.data(), data.size()), false});
  while (!data.empty()) {
    // A run of whole units that are all zero, or all not.
    size_t run = 0;
    bool zero = false;
    if (options_.sparse_bytes == 0) run = data.size();
    while (run < data.size()) {
      size_t step = std::min<uint64_t>(unit - (offset + run) % unit, data.size() - run);
      bool step_zero = IsZero(data.data() + run, step);
      if (run == 0) zero = step_zero;
      if (step_zero != zero) break;
      run += step;
    }
    if (zero) {
      BLK_CO_RETURN_IF_ERROR(options_.destination_is_zero && !options_.allocated
                                 ? absl::OkStatus()
                                 : co_await WriteZero(offset, run));
    } else {
      Call call = MakeCall();
      absl::Status status = co_await target_.Write(call, offset, data.first(run));
      if (!status.ok())
        co_return Annotate(status, absl::StrCat("write at offset ", offset, " length ", run));
      progress_.written += run;
    }
    offset += run;
    data = data.subspan(run);
  }
  co_return absl::OkStatus();
}

Task<absl::Status> Copier::WriteZero(uint64_t offset, uint64_t length) {
  Call call = MakeCall(options_.allocated ? kNoHole : 0);
  absl::Status status = co_await target_.Zero(call, offset, length);
  if (!status.ok())
    co_return Annotate(status, absl::StrCat("zero at offset ", offset, " length ", length));
  progress_.zeroed += length;
  co_return absl::OkStatus();
}

// ---- Verification: what was written in this segment, read back

Task<absl::Status> Copier::Verify(Walker& walker) {
  Buffer buffer(options_.request_bytes);
  for (const Written& written : walker.written) {
    if (stop_token_.stop_requested()) break;
    BLK_CO_RETURN_IF_ERROR(co_await VerifyOne(written, buffer));
  }
  walker.written.clear();
  co_return absl::OkStatus();
}

Task<absl::Status> Copier::VerifyOne(Written written, Buffer& buffer) {
  Call call = MakeCall();
  for (uint64_t at = 0; at < written.length;) {
    uint64_t offset = written.offset + at;
    uint64_t step = std::min<uint64_t>(written.length - at, buffer.size());
    if (written.zero && target_.facts().extents) {
      ExtentList list(offset, written.length - at, 1);
      absl::Status status = co_await target_.Extents(call, kBaseAllocation, &list);
      if (!status.ok())
        co_return Annotate(status,
                           absl::StrCat("verify: extents of the target at offset ", offset));
      const Extent& extent = list.extents().front();
      if (extent.flags & kExtentZero) {
        at += extent.length;
        continue;
      }
      step = std::min(step, extent.length);
    }
    std::span<char> data = buffer.span().first(step);
    absl::Status status = co_await target_.Read(call, offset, data);
    if (!status.ok())
      co_return Annotate(status, absl::StrCat("verify: read of the target at offset ", offset));
    bool equal =
        written.zero ? IsZero(data.data(), step) : XXH3_64bits(data.data(), step) == written.hash;
    if (!equal)
      co_return ErrnoErrorAsIs(
          EIO, absl::StrCat("verify: the target differs from the source in the ", step,
                            " bytes at offset ", offset));
    at += step;
  }
  co_return absl::OkStatus();
}

}  // namespace

Task<absl::Status> CopyDevice(std::span<Loop* const> loops, Device* source, Device* target,
                              CopyOptions options, CopyProgress* progress) {
  Copier copier(source, target, options, progress);
  co_return co_await copier.Run(loops);
}

Task<absl::Status> StreamDevice(Device* source, CopyOptions options, CopyProgress* progress,
                                OrderedWrite write) {
  WalkAhead ahead;
  ahead.piece_bytes = options.request_bytes;
  ahead.pieces =
      std::clamp<uint64_t>(options.queue_bytes_max / ahead.piece_bytes, 1, options.requests_max);
  ahead.extents = options.extents;
  auto put = [&](std::span<const char> piece) -> Task<absl::Status> {
    BLK_CO_RETURN_IF_ERROR(co_await write(piece));
    progress->done += piece.size();
    progress->written += piece.size();
    co_return absl::OkStatus();
  };
  WalkData take;
  take.take_data = [&](uint64_t, std::span<const char> bytes) {
    progress->read += bytes.size();
    return put(bytes);
  };
  // Holes are written out, but never read.
  const std::vector<char> zeroes(options.request_bytes);
  take.take_zero = [&](uint64_t, uint64_t length) -> Task<absl::Status> {
    for (; length > 0; length -= std::min<uint64_t>(length, zeroes.size()))
      BLK_CO_RETURN_IF_ERROR(
          co_await put({zeroes.data(), std::min<size_t>(length, zeroes.size())}));
    co_return absl::OkStatus();
  };
  co_return co_await WalkContent(source, 0, source->size(), std::move(take), ahead);
}

}  // namespace blk
