#include "src/backends/filters/stored_device.h"

#include <cerrno>
#include <cstring>

#include "src/backends/filters/aligned_io.h"
#include "src/core/buffer.h"

namespace blk {
namespace {
constexpr uint32_t kPreferredBytesMax = 32u << 20;  // NBD protocol, "Block size constraints"
constexpr int kReadTries = 3;
}  // namespace

Facts StoredDevice::StoredFacts(const Device& below, uint64_t block_bytes) {
  Facts facts = below.facts();
  facts.block.preferred = std::clamp<uint32_t>(static_cast<uint32_t>(block_bytes),
                                               facts.block.preferred, kPreferredBytesMax);
  facts.flush = facts.trim = facts.zero = facts.fast_zero = facts.extents = true;
  facts.multi_conn = true;
  facts.fua = Support::kNative;
  facts.cache = Support::kNative;
  facts.contexts = {std::string(kBaseAllocation)};
  return facts;
}

uint64_t StoredDevice::StepAt(uint64_t offset, uint64_t length, uint64_t step_max) const {
  const uint64_t first = std::min(length, EndOf(BlockOf(offset)) - offset);
  if (!IsWhole(offset, first)) return first;
  length = std::min(length, std::max(step_max, block_bytes_));
  if (offset + length < size()) length -= (offset + length) % block_bytes_;
  return length;
}

// ---- Reading

Task<absl::Status> StoredDevice::ReadPart(const Call& call, const BlockStore::Run& run,
                                          uint64_t offset, std::span<char> into) {
  if (run.state == State::kPresent)
    return store_.ReadAt(run.position + offset % block_bytes_, into);
  if (run.state == State::kAbsent) return ReadUnaligned(&below(), call, offset, into);
  std::memset(into.data(), 0, into.size());
  return absl::OkStatus();
}

// Nearly always a read is of present blocks side by side, and done at once.
Task<absl::Status> StoredDevice::DoRead(const Call& call, uint64_t offset, std::span<char> into) {
  uint64_t length = into.size();
  const uint64_t drops = store_.drops();
  const BlockStore::Run run = PartAt(offset, &length);
  if (length < into.size() || run.state == State::kAbsent) return ReadParts(call, offset, into);
  Task<absl::Status> read = ReadPart(call, run, offset, into);
  if (read.ready() && store_.drops() == drops) return read;
  return CheckedRead(std::move(read), drops, call, offset, into);
}

Task<absl::Status> StoredDevice::CheckedRead(Task<absl::Status> read, uint64_t drops,
                                             const Call& call, uint64_t offset,
                                             std::span<char> into) {
  absl::Status status = co_await std::move(read);
  if (store_.drops() == drops) co_return status;
  co_return co_await ReadParts(call, offset, into);
}

Task<absl::Status> StoredDevice::ReadParts(const Call& call, uint64_t offset,
                                           std::span<char> into) {
  for (int tries = 0; !into.empty();) {
    uint64_t length = into.size();
    const uint64_t drops = store_.drops();
    BlockStore::Run run = PartAt(offset, &length);
    const uint64_t block = BlockOf(offset), blocks = BlocksOver(offset, length);
    std::optional<RangeLock::Guard> guard;
    if (run.state == State::kAbsent && tries < kReadTries) {
      const uint64_t free = store_.locks().FreeBefore(block, blocks);
      if (free == 0) {  // somebody is just fetching it
        ++tries;
        (void)co_await store_.locks().Lock(block, 1);
        continue;
      }
      length = std::min(length, EndOf(block + free - 1) - offset);
    } else if (run.state == State::kPresent && tries >= kReadTries) {
      guard.emplace(co_await store_.locks().Lock(block, blocks));
      run = PartAt(offset, &length);
    }
    BLK_CO_RETURN_IF_ERROR(co_await ReadPart(call, run, offset, into.first(length)));
    if (run.state == State::kPresent && !guard && store_.drops() != drops) {
      ++tries;  // maybe that was a hole
      continue;
    }
    offset += length;
    into = into.subspan(length);
    tries = 0;
  }
  co_return absl::OkStatus();
}

// ---- Filling

Task<absl::Status> StoredDevice::Fetch(const Call& call, uint64_t offset, uint64_t length) {
  const uint64_t blocks_max = std::max<uint64_t>(kPieceBytes / block_bytes_, 1);
  uint64_t block = BlockOf(offset);
  const uint64_t end = block + BlocksOver(offset, length);
  while (block < end) {
    BlockStore::Run run = store_.RunAt(block, std::min(blocks_max, end - block));
    if (run.state == State::kAbsent) {
      if (!HasRoom(run.blocks)) co_return absl::OkStatus();
      RangeLock::Guard guard = co_await store_.locks().Lock(block, run.blocks);
      run = store_.RunAt(block, run.blocks);  // another may have been quicker
      if (run.state == State::kAbsent) {
        bool store_failed = false;
        absl::Status status =
            co_await Fill(call, run.state, block, run.blocks, 0, {}, false, &store_failed);
        if (store_failed) {
          StoreFailed(status);
          co_return absl::OkStatus();
        }
        BLK_CO_RETURN_IF_ERROR(status);
      }
    }
    block += run.blocks;
    if (call.stopped()) co_return ErrnoErrorAsIs(ECANCELED, "the request was cancelled");
  }
  co_return absl::OkStatus();
}

Task<absl::Status> StoredDevice::Fill(const Call& call, State state, uint64_t first,
                                      uint64_t blocks, uint64_t offset, std::span<const char> data,
                                      bool dirty, bool* store_failed) {
  *store_failed = false;
  const uint64_t end = EndOf(first + blocks - 1);
  Buffer buffer;
  for (uint64_t at = StartOf(first); at < end; at += std::min(kPieceBytes, end - at)) {
    const uint64_t bytes = std::min(kPieceBytes, end - at);
    const uint64_t from = std::max(at, offset), to = std::min(at + bytes, offset + data.size());
    if (from == at && to == at + bytes) {
      absl::Status status = co_await StorePiece(at, data.subspan(at - offset, bytes));
      *store_failed = !status.ok();
      BLK_CO_RETURN_IF_ERROR(status);
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
    absl::Status status = co_await StorePiece(at, piece);
    *store_failed = !status.ok();
    BLK_CO_RETURN_IF_ERROR(status);
  }
  for (uint64_t block = first; block < first + blocks; ++block) store_.SetPresent(block, dirty);
  co_return absl::OkStatus();
}

// Writes bytes of the disk at `offset` to their places, side by side ones together.
Task<absl::Status> StoredDevice::StorePiece(uint64_t offset, std::span<const char> bytes) {
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

Task<absl::Status> StoredDevice::MakeZero(const Call& call, uint64_t offset, uint64_t length) {
  // Quick is only what needs no bytes.
  if ((call.flags & kFastZero) && !IsWhole(offset, length))
    co_return ErrnoErrorAsIs(EOPNOTSUPP, "zeroing part of a block is no faster than writing");
  const Call write = call.With(call.flags & kFua);
  const uint64_t end = offset + length;
  while (offset < end) {
    const uint64_t block = BlockOf(offset);
    const uint64_t step = StepAt(offset, end - offset, UINT64_MAX);
    if (!IsWhole(offset, step)) {
      // It is zero here, but need not be below yet.
      if (store_.RunAt(block, 1).state != State::kZero || (call.flags & kFua))
        BLK_CO_RETURN_IF_ERROR(co_await Device::DoZero(write, offset, step));
    } else {
      const uint64_t blocks = BlocksOver(offset, step);
      RangeLock::Guard guard = co_await store_.locks().Lock(block, blocks);
      BLK_CO_RETURN_IF_ERROR(co_await ZeroBlocks(call, block, blocks));
    }
    offset += step;
  }
  co_return absl::OkStatus();
}

// ---- Extents

Task<absl::Status> StoredDevice::DoExtents(const Call& call, std::string_view context,
                                           ExtentList* list) {
  while (!list->full()) {
    uint64_t length = list->end() - list->next();
    const BlockStore::Run run = PartAt(list->next(), &length);
    if (!SameBelow(run)) {
      const uint64_t flags = run.state == State::kZero ? kExtentHoleZero : kExtentData;
      // A run in the file may be shorter than what is present: the first extent is all of it.
      if ((call.flags & kRequestOne) && !list->empty() && list->extents().back().flags != flags)
        break;
      list->Append(length, flags);
      continue;
    }
    if ((call.flags & kRequestOne) && !list->empty()) break;
    while (list->next() + length < list->end()) {  // one question for all that lies together
      uint64_t more = list->end() - list->next() - length;
      if (!SameBelow(PartAt(list->next() + length, &more))) break;
      length += more;
    }
    ExtentList part(list->next(), length, std::max<size_t>(list->room(), 1));
    BLK_CO_RETURN_IF_ERROR(co_await below().Extents(call, context, &part));
    for (const Extent& extent : part.extents()) list->Append(extent.length, extent.flags);
    if (call.flags & kRequestOne) break;
  }
  co_return absl::OkStatus();
}

// ---- One disk

Task<absl::Status> OneDisk::Check(Layer* below, OpenArgs args, const Device* disk,
                                  uint64_t block_bytes, std::string_view block_parameter) {
  const uint32_t minimum = disk->facts().block.minimum;
  if (block_bytes < minimum)
    co_return ErrnoErrorAsIs(
        EINVAL, absl::StrCat("the disk below has blocks of ", minimum, " bytes: ", block_parameter,
                             " must not be smaller"));
  std::string seen_name;
  {
    std::lock_guard lock(mutex_);
    if (!seen_) {
      seen_ = true;
      size_ = disk->size();
      export_name_ = args.export_name;
    }
    if (size_ != disk->size())
      co_return ErrnoErrorAsIs(EINVAL,
                               absl::StrCat("the disk below has ", disk->size(),
                                            " bytes, but what is kept is of one with ", size_,
                                            ": all clients must open the same disk, of one size"));
    seen_name = export_name_;
  }
  if (args.export_name == seen_name) co_return absl::OkStatus();
  // Many sources give the same disk under any name. Those that list several do not.
  absl::StatusOr<ExportList> list = co_await below->ListExports(args);
  if (!list.ok() || list->exports.size() < 2) co_return absl::OkStatus();
  auto canonical = [&list](std::string_view name) {
    return name.empty() ? std::string_view(list->default_name) : name;
  };
  if (canonical(args.export_name) == canonical(seen_name)) co_return absl::OkStatus();
  co_return ErrnoErrorAsIs(
      EINVAL, absl::StrCat("what is kept is of the export \"", seen_name, "\", not of \"",
                           args.export_name, "\": use one server for each"));
}

}  // namespace blk
