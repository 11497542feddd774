// The partition tables of any disk: no read outside the disk, an end, a partition inside. The
// first byte is the partition's number in its low bits; its high bit mends the checksums of the
// GPT headers, which nobody guesses. The rest is the disk.
//
// Fuzzes: src/backends/filters/partition_table
#include <cstring>

#include "src/backends/filters/partition_table.h"
#include "src/core/error.h"

namespace blk {
namespace {

uint32_t Word(const std::string& disk, size_t at) {
  uint32_t value;
  std::memcpy(&value, disk.data() + at, sizeof value);
  return value;
}
void SetWord(std::string* disk, size_t at, uint32_t value) {
  std::memcpy(disk->data() + at, &value, sizeof value);
}

void MendHeader(std::string* disk, uint64_t lba) {
  uint64_t at = lba * 512;
  if (at + 512 > disk->size() || disk->compare(at, 8, "EFI PART") != 0) return;
  SetWord(disk, at + 24, static_cast<uint32_t>(lba));
  SetWord(disk, at + 28, 0);
  uint64_t entries = uint64_t{Word(*disk, at + 72)} * 512;
  uint64_t bytes = uint64_t{Word(*disk, at + 80)} * Word(*disk, at + 84);
  if (entries <= disk->size() && bytes <= disk->size() - entries)
    SetWord(disk, at + 88, Crc32(disk->data() + entries, bytes));
  uint32_t header_bytes = Word(*disk, at + 12);
  if (header_bytes > 512) return;
  SetWord(disk, at + 16, 0);
  SetWord(disk, at + 16, Crc32(disk->data() + at, header_bytes));
}

void Try(const std::string& disk, const PartitionRequest& request) {
  KnownBytes known;
  for (int pieces = 0;; ++pieces) {
    BLK_CHECK(pieces < kTablePiecesMax);
    PartitionSearch search = FindPartition(disk.size(), request, known);
    if (!search.wanted) {
      if (search.partition.ok()) {
        BLK_CHECK(search.partition->offset <= disk.size());
        BLK_CHECK(search.partition->length <= disk.size() - search.partition->offset);
      }
      return;
    }
    auto [offset, length] = *search.wanted;
    BLK_CHECK(length <= kTableBytesMax && offset <= disk.size() && length <= disk.size() - offset);
    known[offset] = disk.substr(offset, length);
  }
}

}  // namespace
}  // namespace blk

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  if (bytes == 0) return 0;
  std::string disk(reinterpret_cast<const char*>(data) + 1, bytes - 1);
  if (data[0] & 0x80) {
    blk::MendHeader(&disk, 1);
    if (disk.size() >= 1024) blk::MendHeader(&disk, disk.size() / 512 - 1);
  }
  blk::Try(disk, {.number = (data[0] & 0x7fu) % 16});
  blk::Try(disk, {.name = "boot"});
  blk::Try(disk, {.number = 1, .sector_bytes = 4096});
  return 0;
}
