#include "src/backends/partition_maker.h"

#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/escaping.h"
#include "src/backends/filters/partition_table.h"

namespace blk {
namespace {

constexpr uint64_t kGptEntries = 128, kGptEntryBytes = 128, kGptHeaderBytes = 92;
constexpr uint8_t kMbrExtendedLba = 0x0f, kMbrProtective = 0xee;
constexpr size_t kPrimaryMax = 4;

uint64_t SectorsOf(uint64_t bytes) { return (bytes + kSectorBytes - 1) / kSectorBytes; }

void Store(std::string* bytes, size_t offset, uint64_t value, size_t width) {
  for (size_t i = 0; i < width; ++i) (*bytes)[offset + i] = static_cast<char>(value >> (8 * i));
}

// A sector with up to four entries; the boot code is all zeroes.
class MbrSector {
 public:
  // Addresses of cylinders, heads and sectors are those for "beyond": everything counts sectors.
  void Set(size_t index, bool active, uint8_t id, uint64_t start, uint64_t sectors) {
    const size_t at = 446 + 16 * index;
    bytes_[at] = static_cast<char>(active ? 0x80 : 0);
    for (size_t i : {at + 1, at + 5}) {
      Store(&bytes_, i, 0xfffffe, 3);
    }
    bytes_[at + 4] = static_cast<char>(id);
    Store(&bytes_, at + 8, start, 4);
    Store(&bytes_, at + 12, sectors, 4);
  }
  std::string Take() {
    Store(&bytes_, 510, 0xaa55, 2);
    return std::move(bytes_);
  }

 private:
  std::string bytes_ = std::string(kSectorBytes, '\0');
};

absl::Status CheckPartition(const NewPartition& partition) {
  if (partition.device->size() > 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(partition.name, ": a partition cannot be empty, but this file is"));
}

// Adds one partition and returns its first sector.
uint64_t AddPartition(const NewPartition& partition, RegionList* list) {
  list->Align(partition.alignment);
  const uint64_t start = list->size() / kSectorBytes;
  list->AddDevice(partition.device, SectorsOf(partition.device->size()) * kSectorBytes);
  return start;
}

struct Placed {
  uint64_t start, sectors;
  uint64_t ebr = 0;       // sector of the extended boot record before a logical partition
  size_t ebr_region = 0;  // and its place in the list
};

void RandomGuid(std::string* bytes, size_t offset) {
  Guid guid{};
  BLK_CHECK(getrandom(guid.data(), guid.size(), 0) == static_cast<ssize_t>(guid.size()));
  guid[7] = static_cast<uint8_t>((guid[7] & 0x0f) | 0x40);  // RFC 4122: version 4, random
  guid[8] = static_cast<uint8_t>((guid[8] & 0x3f) | 0x80);
  std::memcpy(bytes->data() + offset, guid.data(), guid.size());
}

// The name as UTF-16, from a path's last part in ASCII or Latin letters as they come.
void StoreName(std::string* bytes, size_t offset, std::string_view name) {
  constexpr size_t kCharactersMax = 36;
  for (size_t i = 0; i < std::min(name.size(), kCharactersMax); ++i)
    Store(bytes, offset + 2 * i, static_cast<uint8_t>(name[i]), 2);
}

// One of the two headers, at sector `own`, whose twin is at `other`.
std::string GptHeader(uint64_t own, uint64_t other, uint64_t entries_at, uint64_t first_usable,
                      uint64_t last_usable, uint64_t entries, uint32_t entries_crc) {
  std::string header(kSectorBytes, '\0');
  std::memcpy(header.data(), "EFI PART", 8);
  Store(&header, 8, 0x10000, 4);
  Store(&header, 12, kGptHeaderBytes, 4);
  Store(&header, 24, own, 8);
  Store(&header, 32, other, 8);
  Store(&header, 40, first_usable, 8);
  Store(&header, 48, last_usable, 8);
  Store(&header, 72, entries_at, 8);
  Store(&header, 80, entries, 4);
  Store(&header, 84, kGptEntryBytes, 4);
  Store(&header, 88, entries_crc, 4);
  Store(&header, 16, Crc32(header.data(), kGptHeaderBytes), 4);
  return header;
}

std::string GptEntries(const std::vector<NewPartition>& partitions,
                       const std::vector<Placed>& placed, uint64_t entries) {
  constexpr uint64_t kLegacyBootable = 4;
  std::string bytes(entries * kGptEntryBytes, '\0');
  for (size_t i = 0; i < partitions.size(); ++i) {
    const size_t at = i * kGptEntryBytes;
    std::memcpy(bytes.data() + at, partitions[i].type_guid.data(), sizeof(Guid));
    RandomGuid(&bytes, at + 16);
    Store(&bytes, at + 32, placed[i].start, 8);
    Store(&bytes, at + 40, placed[i].start + placed[i].sectors - 1, 8);
    if (i == 0) Store(&bytes, at + 48, kLegacyBootable, 8);
    StoreName(&bytes, at + 56, partitions[i].name);
  }
  return bytes;
}

}  // namespace

absl::StatusOr<Guid> ParseGuid(std::string_view text) {
  std::string digits;
  for (size_t i = 0; i < text.size(); ++i) {
    const bool dash = i == 8 || i == 13 || i == 18 || i == 23;
    if ((text[i] == '-') != dash) return absl::InvalidArgumentError("it is no GUID");
    if (!dash && !absl::ascii_isxdigit(text[i])) return absl::InvalidArgumentError("it is no GUID");
    if (!dash) digits.push_back(text[i]);
  }
  if (digits.size() != 32) return absl::InvalidArgumentError("it is no GUID");
  const std::string bytes = absl::HexStringToBytes(digits);
  // The first three fields are numbers, and stand with their low byte first.
  constexpr size_t kOrder[] = {3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15};
  Guid guid;
  for (size_t i = 0; i < guid.size(); ++i) guid[i] = static_cast<uint8_t>(bytes[kOrder[i]]);
  return guid;
}

absl::StatusOr<RegionList> MakeMbrDisk(const std::vector<NewPartition>& partitions) {
  const bool extends = partitions.size() > kPrimaryMax;
  const size_t primaries = extends ? kPrimaryMax - 1 : partitions.size();
  RegionList list;
  list.AddBytes(std::string(kSectorBytes, '\0'));
  std::vector<Placed> placed;
  for (size_t i = 0; i < partitions.size(); ++i) {
    BLK_RETURN_IF_ERROR(CheckPartition(partitions[i]));
    Placed place{};
    if (i >= primaries) {
      place.ebr = list.size() / kSectorBytes;
      place.ebr_region = list.count();
      list.AddBytes(std::string(kSectorBytes, '\0'));
    }
    place.start = AddPartition(partitions[i], &list);
    place.sectors = SectorsOf(partitions[i].device->size());
    placed.push_back(place);
  }
  const uint64_t end = list.size() / kSectorBytes;
  if (end > UINT32_MAX)
    return ErrnoErrorAsIs(EFBIG, "the disk is too large for an MBR, use partition-type=gpt");

  MbrSector mbr;
  for (size_t i = 0; i < primaries; ++i)
    mbr.Set(i, i == 0, partitions[i].mbr_id, placed[i].start, placed[i].sectors);
  if (extends) {
    const uint64_t extended = placed[primaries].ebr;
    mbr.Set(primaries, false, kMbrExtendedLba, extended, end - extended);
    for (size_t i = primaries; i < placed.size(); ++i) {
      // The own partition counts from this record, the next record from the first one.
      MbrSector ebr;
      ebr.Set(0, false, partitions[i].mbr_id, placed[i].start - placed[i].ebr, placed[i].sectors);
      if (i + 1 < placed.size()) {
        const Placed& next = placed[i + 1];
        ebr.Set(1, false, kMbrExtendedLba, next.ebr - extended,
                next.start + next.sectors - next.ebr);
      }
      list.SetBytes(placed[i].ebr_region, ebr.Take());
    }
  }
  list.SetBytes(0, mbr.Take());
  return list;
}

absl::StatusOr<RegionList> MakeGptDisk(const std::vector<NewPartition>& partitions) {
  // Whole sectors of entries, four in each.
  const uint64_t entries = std::max<uint64_t>(kGptEntries, (partitions.size() + 3) / 4 * 4);
  const uint64_t table_sectors = entries * kGptEntryBytes / kSectorBytes;
  RegionList list;
  list.AddBytes(std::string((2 + table_sectors) * kSectorBytes, '\0'));
  std::vector<Placed> placed;
  for (const NewPartition& partition : partitions) {
    BLK_RETURN_IF_ERROR(CheckPartition(partition));
    const uint64_t start = AddPartition(partition, &list);
    placed.push_back({.start = start, .sectors = SectorsOf(partition.device->size())});
  }
  const uint64_t backup = list.size() / kSectorBytes, last = backup + table_sectors;
  const uint64_t first_usable = 2 + table_sectors, last_usable = backup - 1;
  const std::string table = GptEntries(partitions, placed, entries);
  const uint32_t table_crc = Crc32(table.data(), table.size());
  MbrSector protective;
  protective.Set(0, false, kMbrProtective, 1, std::min<uint64_t>(last, UINT32_MAX));
  list.SetBytes(
      0, absl::StrCat(protective.Take(),
                      GptHeader(1, last, 2, first_usable, last_usable, entries, table_crc), table));
  list.AddBytes(absl::StrCat(
      table, GptHeader(last, 1, backup, first_usable, last_usable, entries, table_crc)));
  return list;
}

}  // namespace blk
