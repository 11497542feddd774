#include "src/backends/filters/aligned_io.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "src/core/buffer.h"

namespace blk {
namespace {

// What a request that must be made larger is cut into.
constexpr uint64_t kBounceBytes = 1 << 20;

// What fits into one request that is made larger is one; else the blocks in the middle go where
// they belong, and only those at either end are read apart.
Task<absl::Status> ReadInSteps(Device* device, const Call& call, uint64_t offset,
                               std::span<char> into, BlockSizes sizes) {
  const uint64_t block = sizes.minimum;
  const uint64_t longest = std::max<uint64_t>(block, sizes.maximum / block * block);
  const uint64_t wide_begin = offset / block * block;
  const uint64_t wide_end = (offset + into.size() + block - 1) / block * block;
  const bool at_once = wide_end - wide_begin <= std::min(kBounceBytes, longest);
  Buffer bounce;
  while (!into.empty()) {
    const uint64_t begin = offset / block * block;
    const bool middle = begin == offset && into.size() >= block;
    uint64_t end = at_once  ? wide_end
                   : middle ? begin + std::min(into.size() / block * block, longest)
                            : begin + block;
    end = std::min(end, device->size());
    if (end <= offset) co_return ErrnoErrorAsIs(EINVAL, "read beyond the end of the device");
    const uint64_t bytes = std::min<uint64_t>(end - offset, into.size());
    if (begin == offset && end == offset + bytes) {
      BLK_CO_RETURN_IF_ERROR(co_await device->Read(call, offset, into.first(bytes)));
    } else {
      if (!bounce) bounce = Buffer(at_once ? wide_end - wide_begin : block);
      BLK_CO_RETURN_IF_ERROR(co_await device->Read(call, begin, bounce.span().first(end - begin)));
      std::memcpy(into.data(), bounce.data() + (offset - begin), bytes);
    }
    offset += bytes;
    into = into.subspan(bytes);
  }
  co_return absl::OkStatus();
}

// To `list` what `whole`, which begins with a block, says of whole blocks.
void AppendBlocks(const ExtentList& whole, uint64_t block, ExtentList* list) {
  uint64_t at = whole.start(), block_end = at;  // all before block_end is on the list
  uint64_t shared_flags = UINT64_MAX;           // of what there is of the block at block_end
  auto append_to = [&](uint64_t to, uint64_t flags) {
    if (to > list->reach()) list->Append(to - list->reach(), flags);
    block_end = to;
    shared_flags = UINT64_MAX;
  };
  for (const Extent& extent : whole.extents()) {
    const uint64_t to = at + extent.length;
    if (at > block_end && to >= block_end + block)
      append_to(block_end + block, shared_flags & extent.flags);
    if (at <= block_end && to / block * block > block_end)
      append_to(to / block * block, extent.flags);
    if (to > block_end) shared_flags &= extent.flags;
    at = to;
  }
}

}  // namespace

Task<absl::Status> AlignedExtents(Device* device, const Call& call, std::string_view context,
                                  uint64_t block, uint64_t length_max, ExtentList* list) {
  const uint64_t begin = list->next() / block * block;
  const uint64_t wanted_end = (list->end() + block - 1) / block * block;
  const uint64_t end = begin + std::min(wanted_end - begin, length_max);
  ExtentList whole(begin, end - begin, limits::kStatusExtentsMax);
  // The device may know smaller extents and say little at a time; a block is the least we can say.
  while (whole.next() <= list->next() || whole.next() - begin < block) {
    ExtentList part(whole.next(), end - whole.next(), limits::kStatusExtentsMax);
    BLK_CO_RETURN_IF_ERROR(co_await device->Extents(call, context, &part));
    if (part.empty()) co_return absl::OkStatus();  // whoever asked says so
    for (const Extent& extent : part.extents()) whole.Append(extent.length, extent.flags);
  }
  AppendBlocks(whole, block, list);
  co_return absl::OkStatus();
}

Task<absl::Status> ReadUnaligned(Device* device, const Call& call, uint64_t offset,
                                 std::span<char> into, const BlockSizes& block) {
  if ((offset | into.size()) % block.minimum == 0 && into.size() <= block.maximum)
    return device->Read(call, offset, into);
  return ReadInSteps(device, call, offset, into, block);
}

}  // namespace blk
