#pragma once
// Using a device in other units than it wants or knows: reads of any bytes, extents of whole
// blocks. For filters. Parallel-safe; spans and the call live until the Task has completed.
#include "src/core/device.h"

namespace blk {

// Reads any range inside the device: requests are made larger where the minimum block size wants it
// and cut where the maximum does.
Task<absl::Status> ReadUnaligned(Device* device, const Call& call, uint64_t offset,
                                 std::span<char> into, const BlockSizes& block);
inline Task<absl::Status> ReadUnaligned(Device* device, const Call& call, uint64_t offset,
                                        std::span<char> into) {
  return ReadUnaligned(device, call, offset, into, device->facts().block);
}

// As Device::Extents, in whole blocks of `block` bytes: one that lies in several extents of the
// device has the flags that they all have. Asks for at most `length_max`, a multiple of `block`, at
// a time. The list may begin and end inside a block; beyond() tells where that ends.
Task<absl::Status> AlignedExtents(Device* device, const Call& call, std::string_view context,
                                  uint64_t block, uint64_t length_max, ExtentList* list);

}  // namespace blk
