#pragma once
// Reading from a device whatever its block sizes are, for filters that let their clients read any
// bytes. Parallel-safe; spans and the call live until the Task has completed.
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

}  // namespace blk
