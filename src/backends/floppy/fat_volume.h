#pragma once
// A FAT12, FAT16 or FAT32 file system around a tree of files, made up in memory: boot sector, FATs
// and directories are bytes, files stay where they are. After Microsoft's "FAT: General Overview of
// On-Disk Format". Pure functions over the tree; any thread.
#include <cstdint>
#include <ctime>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "src/backends/regions.h"

namespace blk::fat {

struct Node {
  std::string name;  // UTF-8; of the root: not used
  bool is_directory = false;
  std::string path = {};  // of a file's content
  uint64_t size = 0;
  time_t modified = 0;
  std::vector<Node> children = {};

  // Filled in by MakeVolume.
  uint32_t first_cluster = 0, clusters = 0;
};

enum class Type { kAny, kFat12, kFat16, kFat32 };

struct VolumeOptions {
  std::string label;            // up to 11 bytes
  Type type = Type::kAny;       // the largest that fits
  uint64_t bytes = 0;           // of the whole volume; 0: what is needed
  uint64_t hidden_sectors = 0;  // before the volume
};

struct Volume {
  RegionList regions;
  Type type;  // not kAny
};

// `root` is laid out and used up. Errors: ENOSPC (it does not fit), EFBIG (a file of 4G or more, or
// a directory of more than 65536 entries), EEXIST (names that are one for FAT).
absl::StatusOr<Volume> MakeVolume(Node root, const VolumeOptions& options);

}  // namespace blk::fat
