#pragma once
// Finding a partition in an MBR (primary and logical ones) or a GPT. Pure functions over the pieces
// of a disk that were read; any thread.
//
// The search says which piece it wants to see next; the caller reads it and asks again:
//
//   KnownBytes known;
//   for (;;) {
//     PartitionSearch search = FindPartition(disk_bytes, request, known);
//     if (!search.wanted) return search.partition;
//     known[search.wanted->offset] = read it
//   }
//
// What is asked for lies inside the disk, is at most kTableBytesMax long and there are at most
// kTablePiecesMax pieces, whatever the disk holds.
//
// GPT: UEFI specification, "GUID Partition Table (GPT) Disk Layout". Its checksums must be right;
// when those of the primary table are not, the backup at the end of the disk is used.
#include <cstdint>
#include <map>
#include <optional>
#include <string>

#include "absl/status/statusor.h"

namespace blk {

inline constexpr uint64_t kTableBytesMax = 1 << 20;  // of one array of GPT entries
inline constexpr int kLogicalPartitionsMax = 256;
inline constexpr int kTablePiecesMax = kLogicalPartitionsMax + 16;

using KnownBytes = std::map<uint64_t, std::string>;  // by offset; pieces do not overlap

struct PartitionRequest {
  uint32_t number = 0;        // from 1; logical ones from 5
  std::string name = {};      // of a GPT partition, when number is 0
  uint32_t sector_bytes = 0;  // 512 or 4096; 0: found out (an MBR is taken to have 512)
};

struct Partition {
  uint64_t offset, length;  // bytes; inside the disk
};

struct Piece {
  uint64_t offset, length;
};

struct PartitionSearch {
  std::optional<Piece> wanted;          // read this, then ask again
  absl::StatusOr<Partition> partition;  // otherwise the answer: ENOENT, or EINVAL (a broken table)
};

PartitionSearch FindPartition(uint64_t disk_bytes, const PartitionRequest& request,
                              const KnownBytes& known);

// The checksum of GPT, gzip and Ethernet.
uint32_t Crc32(const char* data, size_t bytes);

}  // namespace blk
