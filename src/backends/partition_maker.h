#pragma once
// Making partition tables: an MBR with primary and logical partitions, or a GPT with its backup,
// around partitions given as devices. The other half of filters/partition_table.h.
// Pure but for the random numbers in GUIDs. Any thread.
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "src/backends/regions.h"

namespace blk {

inline constexpr uint64_t kSectorBytes = 512;

using Guid = std::array<uint8_t, 16>;  // as it stands on the disk

// "0FC63DAF-8483-4772-8E79-3D69D8477DE4".
absl::StatusOr<Guid> ParseGuid(std::string_view text);

struct NewPartition {
  DevicePtr device;              // its size, rounded up to sectors, is that of the partition
  std::string name;              // GPT; cut after 36 characters
  uint64_t alignment = 1 << 20;  // a multiple of kSectorBytes
  uint8_t mbr_id = 0x83;
  Guid type_guid = {};
};

// The first is marked as active. MBR: beyond four, the fourth and later are logical ones. Errors:
// EFBIG (a start or length that an MBR cannot hold), EINVAL (an empty partition).
absl::StatusOr<RegionList> MakeMbrDisk(const std::vector<NewPartition>& partitions);
absl::StatusOr<RegionList> MakeGptDisk(const std::vector<NewPartition>& partitions);

}  // namespace blk
