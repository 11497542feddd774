#pragma once
// What tools need of the backend file beyond serving it.
#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace blk {

// Makes `path` a place for a disk of `size_bytes`: creates it, or gives a regular file that size
// (what is beyond is cut off, the rest is kept). A block device must be large enough already.
// `*reads_as_zeroes`, if wanted, becomes true when all of it is known to be zero. Blocks; any
// thread. Errors: ENOSPC (the device is too small), or what the system says.
absl::Status PrepareTargetFile(const std::string& path, uint64_t size_bytes,
                               bool* reads_as_zeroes = nullptr);

}  // namespace blk
