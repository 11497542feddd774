#include "src/backends/filters/partition_table.h"

#include <array>
#include <cerrno>
#include <cstring>

#include "src/core/error.h"

namespace blk {
namespace {

constexpr uint64_t kMbrBytes = 512;
constexpr uint32_t kSectorSizes[] = {512, 4096};
constexpr uint32_t kGptHeaderBytesMin = 92;
constexpr uint32_t kGptEntryBytesMin = 128;

template <typename T>
T Little(const char* at) {
  T value = 0;
  for (size_t i = sizeof(T); i-- > 0;)
    value = static_cast<T>(value << 8 | static_cast<uint8_t>(at[i]));
  return value;
}

absl::Status Broken(std::string_view what) { return ErrnoErrorAsIs(EINVAL, what); }

// One of the four entries of an MBR or of an extended boot record.
struct MbrEntry {
  explicit MbrEntry(const char* sector, int index) {
    const char* at = sector + 446 + 16 * index;
    type = static_cast<uint8_t>(at[4]);
    start = Little<uint32_t>(at + 8);
    sectors = Little<uint32_t>(at + 12);
  }
  bool empty() const { return type == 0 || sectors == 0; }
  bool extended() const { return type == 0x05 || type == 0x0f || type == 0x85; }
  bool protects_gpt() const { return type == 0xee; }

  uint8_t type;
  uint64_t start, sectors;
};

bool HasBootSignature(const char* sector) {
  return sector[510] == '\x55' && static_cast<uint8_t>(sector[511]) == 0xaa;
}

// UTF-16, little endian, up to a zero; half pairs become U+FFFD.
std::string GptName(const char* at, size_t units) {
  std::string name;
  auto unit = [&](size_t i) -> uint32_t { return i < units ? Little<uint16_t>(at + 2 * i) : 0; };
  for (size_t i = 0; unit(i) != 0; ++i) {
    uint32_t code = unit(i);
    if (code >= 0xd800 && code < 0xdc00 && unit(i + 1) >= 0xdc00 && unit(i + 1) < 0xe000) {
      code = 0x10000 + ((code - 0xd800) << 10) + (unit(++i) - 0xdc00);
    } else if (code >= 0xd800 && code < 0xe000) {
      code = 0xfffd;
    }
    if (code < 0x80) {
      name += static_cast<char>(code);
      continue;
    }
    if (code < 0x800) {
      name += static_cast<char>(0xc0 | code >> 6);
    } else if (code < 0x10000) {
      name += static_cast<char>(0xe0 | code >> 12);
      name += static_cast<char>(0x80 | (code >> 6 & 0x3f));
    } else {
      name += static_cast<char>(0xf0 | code >> 18);
      name += static_cast<char>(0x80 | (code >> 12 & 0x3f));
      name += static_cast<char>(0x80 | (code >> 6 & 0x3f));
    }
    name += static_cast<char>(0x80 | (code & 0x3f));
  }
  return name;
}

// A whole table whose checksums are right; points into the known bytes.
struct Gpt {
  const char* entries;
  uint32_t count, entry_bytes, sector_bytes;
};

class Search {
 public:
  Search(uint64_t disk_bytes, const PartitionRequest& request, const KnownBytes& known)
      : disk_bytes_(disk_bytes), request_(request), known_(known) {}

  absl::StatusOr<Partition> Run();
  const std::optional<Piece>& wanted() const { return wanted_; }

 private:
  // Null when the piece is not known yet: the search ends, to be repeated with it.
  const char* Get(uint64_t offset, uint64_t length) {
    auto found = known_.find(offset);
    if (found != known_.end() && found->second.size() >= length) return found->second.data();
    wanted_ = {offset, length};
    return nullptr;
  }
  bool Inside(uint64_t offset, uint64_t length) const {
    return offset <= disk_bytes_ && length <= disk_bytes_ - offset;
  }
  static absl::Status Pending() { return absl::UnavailableError("more must be read"); }

  std::string Asked() const {
    return request_.number ? absl::StrCat(request_.number)
                           : absl::StrCat("\"", request_.name, "\"");
  }
  absl::Status NotFound(std::string_view kind) const {
    return ErrnoErrorAsIs(ENOENT, absl::StrCat(kind, " partition ", Asked(), " not found"));
  }
  absl::StatusOr<Partition> Checked(uint64_t start, uint64_t sectors, uint64_t sector_bytes) const;

  // Sets *gpt if there is a good one there and notes a damaged one. False: pending.
  bool ReadGpt(uint32_t sector_bytes, bool backup, std::optional<Gpt>* gpt);
  absl::StatusOr<Partition> InGpt(const Gpt& gpt) const;
  absl::StatusOr<Partition> InMbr(const char* mbr);
  absl::StatusOr<Partition> Logical(uint64_t extended_start, uint64_t sector_bytes);

  const uint64_t disk_bytes_;
  const PartitionRequest& request_;
  const KnownBytes& known_;
  std::optional<Piece> wanted_;
  bool damaged_gpt_ = false;
};

absl::StatusOr<Partition> Search::Checked(uint64_t start, uint64_t sectors,
                                          uint64_t sector_bytes) const {
  const uint64_t disk_sectors = disk_bytes_ / sector_bytes;
  if (start > disk_sectors || sectors > disk_sectors - start)
    return Broken(absl::StrCat("partition ", Asked(), " is outside the disk: it has ", sectors,
                               " sectors from sector ", start, ", and the disk has ", disk_sectors,
                               " of ", sector_bytes, " bytes"));
  return Partition{start * sector_bytes, sectors * sector_bytes};
}

bool Search::ReadGpt(uint32_t sector_bytes, bool backup, std::optional<Gpt>* gpt) {
  const uint64_t disk_sectors = disk_bytes_ / sector_bytes;
  if (disk_sectors < 3) return true;  // the MBR and two headers
  const uint64_t lba = backup ? disk_sectors - 1 : 1;
  const char* header = Get(lba * sector_bytes, sector_bytes);
  if (!header) return false;
  if (std::memcmp(header, "EFI PART", 8) != 0) return true;
  damaged_gpt_ = true;  // unless all that follows is right
  const uint32_t header_bytes = Little<uint32_t>(header + 12);
  if (header_bytes < kGptHeaderBytesMin || header_bytes > sector_bytes) return true;
  std::string summed(header, header_bytes);
  std::memset(summed.data() + 16, 0, 4);
  if (Crc32(summed.data(), summed.size()) != Little<uint32_t>(header + 16)) return true;
  if (Little<uint64_t>(header + 24) != lba) return true;
  const uint64_t entries_lba = Little<uint64_t>(header + 72);
  const uint64_t count = Little<uint32_t>(header + 80);
  const uint64_t entry_bytes = Little<uint32_t>(header + 84);
  if (count == 0 || entry_bytes < kGptEntryBytesMin || count * entry_bytes > kTableBytesMax)
    return true;
  if (entries_lba >= disk_sectors || !Inside(entries_lba * sector_bytes, count * entry_bytes))
    return true;
  const char* entries = Get(entries_lba * sector_bytes, count * entry_bytes);
  if (!entries) return false;
  if (Crc32(entries, count * entry_bytes) != Little<uint32_t>(header + 88)) return true;
  *gpt =
      Gpt{entries, static_cast<uint32_t>(count), static_cast<uint32_t>(entry_bytes), sector_bytes};
  return true;
}

absl::StatusOr<Partition> Search::InGpt(const Gpt& gpt) const {
  constexpr char kUnused[16] = {};
  const char* found = nullptr;
  for (uint32_t i = 0; i < gpt.count; ++i) {
    const char* entry = gpt.entries + uint64_t{i} * gpt.entry_bytes;
    if (std::memcmp(entry, kUnused, sizeof kUnused) == 0) continue;
    bool match =
        request_.number ? i + 1 == request_.number : GptName(entry + 56, 36) == request_.name;
    if (match && found)
      return Broken(absl::StrCat("there are several partitions named ", Asked(),
                                 ": choose one by its number"));
    if (match) found = entry;
  }
  if (!found) return NotFound("GPT");
  const uint64_t first = Little<uint64_t>(found + 32), last = Little<uint64_t>(found + 40);
  if (first > last || last >= disk_bytes_ / gpt.sector_bytes)
    return Broken(absl::StrCat("partition ", Asked(), " is outside the disk: it goes from sector ",
                               first, " to ", last, ", and the disk has ",
                               disk_bytes_ / gpt.sector_bytes, " sectors of ", gpt.sector_bytes,
                               " bytes"));
  return Checked(first, last - first + 1, gpt.sector_bytes);
}

// Each extended boot record describes one logical partition, which begins so many sectors after the
// record, and where the next record is, counted from the start of the whole extended partition.
absl::StatusOr<Partition> Search::Logical(uint64_t extended_start, uint64_t sector_bytes) {
  uint64_t record_start = extended_start, number = 5;
  for (int records = 0; records < kLogicalPartitionsMax; ++records) {
    if (!Inside(record_start * sector_bytes, sector_bytes))
      return Broken("the chain of logical partitions leads outside the disk");
    const char* record = Get(record_start * sector_bytes, kMbrBytes);
    if (!record) return Pending();
    if (!HasBootSignature(record)) return NotFound("MBR");
    uint64_t next = 0;
    for (int i = 0; i < 4; ++i) {
      MbrEntry entry(record, i);
      if (entry.empty()) continue;
      if (entry.extended()) {
        if (next == 0) next = entry.start;
      } else if (number++ == request_.number) {
        return Checked(record_start + entry.start, entry.sectors, sector_bytes);
      }
    }
    if (next == 0) return NotFound("MBR");
    record_start = extended_start + next;
  }
  return Broken(absl::StrCat("the chain of logical partitions is a loop, or longer than ",
                             kLogicalPartitionsMax));
}

absl::StatusOr<Partition> Search::InMbr(const char* mbr) {
  const uint64_t sector_bytes = request_.sector_bytes ? request_.sector_bytes : 512;
  if (request_.number == 0)
    return ErrnoErrorAsIs(ENOENT, absl::StrCat("partition ", Asked(),
                                               " not found: the disk has an MBR, whose partitions "
                                               "have numbers but no names"));
  if (request_.number <= 4) {
    MbrEntry entry(mbr, static_cast<int>(request_.number) - 1);
    if (entry.empty() || entry.extended()) return NotFound("MBR");
    return Checked(entry.start, entry.sectors, sector_bytes);
  }
  for (int i = 0; i < 4; ++i) {
    MbrEntry entry(mbr, i);
    if (!entry.empty() && entry.extended()) return Logical(entry.start, sector_bytes);
  }
  return ErrnoErrorAsIs(ENOENT, absl::StrCat("MBR partition ", Asked(),
                                             " not found: there is no extended partition, and "
                                             "only that has partitions from 5"));
}

absl::StatusOr<Partition> Search::Run() {
  if (disk_bytes_ < kMbrBytes) return Broken("the disk is too small to have partitions");
  const char* mbr = Get(0, kMbrBytes);
  if (!mbr) return Pending();
  // An MBR with partitions of its own, written after whatever GPT is left at the end of the disk.
  bool plain_mbr = false;
  for (int i = 0; i < 4 && HasBootSignature(mbr); ++i) {
    MbrEntry entry(mbr, i);
    if (entry.protects_gpt()) {
      plain_mbr = false;
      break;
    }
    plain_mbr = plain_mbr || !entry.empty();
  }

  std::optional<Gpt> gpt;
  for (bool backup : {false, true}) {
    if (backup && plain_mbr) continue;
    for (uint32_t sector_bytes : kSectorSizes) {
      if (request_.sector_bytes && request_.sector_bytes != sector_bytes) continue;
      if (!ReadGpt(sector_bytes, backup, &gpt)) return Pending();
      if (gpt) return InGpt(*gpt);
    }
  }
  if (damaged_gpt_ && !plain_mbr)
    return Broken("the GPT is damaged: neither it nor its backup has the right checksums");
  if (HasBootSignature(mbr)) return InMbr(mbr);
  return Broken("the disk has neither an MBR nor a GPT");
}

}  // namespace

PartitionSearch FindPartition(uint64_t disk_bytes, const PartitionRequest& request,
                              const KnownBytes& known) {
  Search search(disk_bytes, request, known);
  absl::StatusOr<Partition> partition = search.Run();
  return {search.wanted(), std::move(partition)};
}

uint32_t Crc32(const char* data, size_t bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> made;
    for (uint32_t i = 0; i < 256; ++i) {
      made[i] = i;
      for (int bit = 0; bit < 8; ++bit) made[i] = made[i] >> 1 ^ (made[i] & 1 ? 0xedb88320u : 0);
    }
    return made;
  }();
  uint32_t sum = ~0u;
  for (size_t i = 0; i < bytes; ++i)
    sum = sum >> 8 ^ table[(sum ^ static_cast<uint8_t>(data[i])) & 0xff];
  return ~sum;
}

}  // namespace blk
