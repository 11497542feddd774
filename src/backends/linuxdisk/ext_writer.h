#pragma once
// A folder as an ext2, ext3 or ext4 file system in a file, written by libext2fs in this process: no
// program and no privilege is needed. Owners, modes, times, links, devices, holes and extended
// attributes are kept. Blocks; one thread at a time.
#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace blk {

struct ExtOptions {
  enum class Type { kExt2, kExt3, kExt4 };
  Type type = Type::kExt2;
  std::string label;    // up to 16 bytes
  uint64_t bytes = 0;   // of the file system
  uint64_t inodes = 0;  // at least
};

// `image` is an empty file. ENOSPC: the folder does not fit; what was written stays then.
absl::Status WriteExt(const std::string& folder, const std::string& image,
                      const ExtOptions& options);

}  // namespace blk
