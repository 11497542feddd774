#include "src/backends/filters/aligned_io.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "src/core/buffer.h"

namespace blk {
namespace {

// What a request that must be made larger is cut into.
constexpr uint64_t kBounceBytes = 1 << 20;

Task<absl::Status> ReadInSteps(Device* device, const Call& call, uint64_t offset,
                               std::span<char> into, BlockSizes sizes) {
  const uint64_t block = sizes.minimum;
  const uint64_t step_max =
      std::max<uint64_t>(block, std::min<uint64_t>(kBounceBytes, sizes.maximum) / block * block);
  Buffer bounce;
  while (!into.empty()) {
    const uint64_t begin = offset / block * block;
    const uint64_t end = std::min((offset + into.size() + block - 1) / block * block,
                                  std::min(begin + step_max, device->size()));
    if (end <= offset) co_return ErrnoErrorAsIs(EINVAL, "read beyond the end of the device");
    const uint64_t bytes = std::min<uint64_t>(end - offset, into.size());
    if (begin == offset && end == offset + bytes) {
      BLK_CO_RETURN_IF_ERROR(co_await device->Read(call, offset, into.first(bytes)));
    } else {
      if (!bounce) bounce = Buffer(step_max);
      BLK_CO_RETURN_IF_ERROR(co_await device->Read(call, begin, bounce.span().first(end - begin)));
      std::memcpy(into.data(), bounce.data() + (offset - begin), bytes);
    }
    offset += bytes;
    into = into.subspan(bytes);
  }
  co_return absl::OkStatus();
}

}  // namespace

Task<absl::Status> ReadUnaligned(Device* device, const Call& call, uint64_t offset,
                                 std::span<char> into, const BlockSizes& block) {
  if ((offset | into.size()) % block.minimum == 0 && into.size() <= block.maximum)
    return device->Read(call, offset, into);
  return ReadInSteps(device, call, offset, into, block);
}

}  // namespace blk
