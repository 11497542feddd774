#include "src/tools/walk.h"

#include <algorithm>
#include <deque>

#include "src/core/buffer.h"
#include "src/core/scope.h"
#include "src/core/sync.h"

namespace blk {
namespace {

// A piece of the disk on its way: data that is being read, or zeroes.
struct Ahead {
  uint64_t offset = 0, length = 0;
  bool zero = false;
  Buffer buffer;
  absl::Status status;
  bool done = false;
};

class ContentWalk {
 public:
  ContentWalk(Device* device, WalkData take, WalkAhead ahead)
      : device_(*device), take_(std::move(take)), ahead_(ahead) {
    const auto& block = device->facts().block;
    ahead_.piece_bytes = std::min<uint64_t>(ahead_.piece_bytes, block.maximum);
    ahead_.piece_bytes -= ahead_.piece_bytes % block.minimum;
  }

  Task<absl::Status> Run(uint64_t offset, uint64_t end) {
    absl::Status status = co_await Produce(offset, end);
    while (status.ok() && !queue_.empty()) status = co_await TakeOldest();
    co_await scope_.Join();
    co_return status;
  }

 private:
  Task<absl::Status> Produce(uint64_t offset, uint64_t end) {
    ExtentList list(offset, end - offset);
    while (offset < end) {
      list.Reset(offset, end - offset);
      absl::Status known = ErrnoErrorAsIs(EOPNOTSUPP, "no extents");
      Call call;
      if (ahead_.extents && device_.facts().extents)
        known = co_await device_.Extents(call, kBaseAllocation, &list);
      if (!known.ok()) {
        list.Reset(offset, end - offset);
        list.Append(end - offset, kExtentData);
      }
      uint64_t at = offset;
      for (const Extent& extent : list.extents()) {
        BLK_CO_RETURN_IF_ERROR(co_await ProduceExtent(at, extent));
        at += extent.length;
      }
      if (at == offset) co_return ErrnoErrorAsIs(EIO, "the device gave no extents");
      offset = at;
    }
    co_return absl::OkStatus();
  }

  Task<absl::Status> ProduceExtent(uint64_t at, Extent extent) {
    while (extent.length > 0) {
      while (queue_.size() >= ahead_.pieces) BLK_CO_RETURN_IF_ERROR(co_await TakeOldest());
      auto piece = std::make_unique<Ahead>();
      piece->offset = at;
      piece->zero = extent.flags & kExtentZero;
      piece->length = piece->zero ? extent.length : std::min(extent.length, ahead_.piece_bytes);
      at += piece->length;
      extent.length -= piece->length;
      queue_.push_back(std::move(piece));
      if (!queue_.back()->zero) scope_.Spawn(ReadPiece(queue_.back().get()));
    }
    co_return absl::OkStatus();
  }

  // Widened to whole blocks where the device wants them; the extra bytes are cut off again.
  Task<void> ReadPiece(Ahead* piece) {
    const uint64_t block = device_.facts().block.minimum;
    const uint64_t skip = piece->offset % block;
    const uint64_t bytes = (skip + piece->length + block - 1) / block * block;
    Buffer buffer(bytes);
    Call call;
    piece->status = co_await device_.Read(call, piece->offset - skip, buffer.span());
    if (skip) std::copy_n(buffer.data() + skip, piece->length, buffer.data());
    piece->buffer = std::move(buffer);
    piece->done = true;
    arrived_.Set();
  }

  Task<absl::Status> TakeOldest() {
    Ahead& piece = *queue_.front();
    absl::Status status;
    if (piece.zero) {
      status = co_await take_.take_zero(piece.offset, piece.length);
    } else {
      while (!piece.done) co_await arrived_.Wait();
      status = piece.status.ok()
                   ? co_await take_.take_data(piece.offset, {piece.buffer.data(), piece.length})
                   : Annotate(piece.status, absl::StrCat("read at offset ", piece.offset));
    }
    queue_.pop_front();
    co_return status;
  }

  Device& device_;
  WalkData take_;
  WalkAhead ahead_;
  std::deque<std::unique_ptr<Ahead>> queue_;
  Event arrived_;
  TaskScope scope_;
};

}  // namespace

Task<absl::Status> WalkExtents(Device* device, std::string context, uint64_t offset, uint64_t end,
                               TakeExtent take) {
  uint64_t start = offset, length = 0, flags = 0;
  ExtentList list(offset, end - offset);
  Call call;
  while (offset < end) {
    list.Reset(offset, end - offset);
    absl::Status status = co_await device->Extents(call, context, &list);
    if (!status.ok())
      co_return Annotate(status, absl::StrCat("extents of ", context, " at offset ", offset));
    if (list.empty()) co_return ErrnoErrorAsIs(EIO, "the device gave no extents");
    for (const Extent& extent : list.extents()) {
      if (length > 0 && flags != extent.flags) {
        BLK_CO_RETURN_IF_ERROR(take(start, length, flags));
        start += length;
        length = 0;
      }
      flags = extent.flags;
      length += extent.length;
    }
    offset = list.next();
  }
  if (length > 0) BLK_CO_RETURN_IF_ERROR(take(start, length, flags));
  co_return absl::OkStatus();
}

Task<absl::Status> WalkContent(Device* device, uint64_t offset, uint64_t end, WalkData take,
                               WalkAhead ahead) {
  ContentWalk walk(device, std::move(take), ahead);
  co_return co_await walk.Run(offset, end);
}

}  // namespace blk
