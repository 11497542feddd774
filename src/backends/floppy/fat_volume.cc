#include "src/backends/floppy/fat_volume.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "src/backends/floppy/names.h"
#include "src/core/units.h"

namespace blk::fat {
namespace {

constexpr uint32_t kSectorBytes = 512, kEntryBytes = 32, kUnitsPerLongEntry = 13;
constexpr uint32_t kClusterBytesMax = 32 << 10;
constexpr uint32_t kRootEntriesMin = 512;  // FAT12 and FAT16
constexpr uint64_t kDirectoryEntriesMax = 65536;
constexpr uint64_t kFileBytesMax = UINT32_MAX;
constexpr uint8_t kVolumeLabel = 0x08, kDirectory = 0x10, kArchive = 0x20, kLongName = 0x0f;
constexpr uint32_t kFirstCluster = 2;

// How many clusters make a type; some room is left at the limits, since not everybody counts right.
struct Kind {
  Type type;
  uint32_t bits;
  uint64_t clusters_min, clusters_max;
  uint64_t clusters_preferred_max;  // beyond, larger clusters are better
  const char* name;
};
constexpr Kind kKinds[] = {
    {Type::kFat32, 32, 65525 + 16, 0x0ffffff0, 1 << 20, "FAT32   "},
    {Type::kFat16, 16, 4085 + 16, 65524 - 16, 65524 - 16, "FAT16   "},
    {Type::kFat12, 12, 1, 4084 - 16, 4084 - 16, "FAT12   "},
};

struct Geometry {
  const Kind* kind;
  uint32_t cluster_bytes;
  uint32_t reserved_sectors = 1, root_sectors = 0, root_entries = 0;
  uint64_t fat_sectors = 0, clusters = 0, sectors = 0;
  uint64_t data_sector() const { return reserved_sectors + 2 * fat_sectors + root_sectors; }
};

void Store(std::string* bytes, size_t offset, uint64_t value, size_t width) {
  for (size_t i = 0; i < width; ++i) (*bytes)[offset + i] = static_cast<char>(value >> (8 * i));
}
void StoreText(std::string* bytes, size_t offset, std::string_view text, size_t width) {
  for (size_t i = 0; i < width; ++i) (*bytes)[offset + i] = i < text.size() ? text[i] : ' ';
}

uint64_t DivideUp(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit; }

uint64_t FatSectorsFor(uint64_t clusters, uint32_t bits) {
  return DivideUp((clusters + kFirstCluster) * bits, 8 * kSectorBytes);
}

// Entries of a directory: two for itself and its parent, or the label; one or more for each child.
uint64_t EntriesOf(const Node& directory) {
  uint64_t entries = 2;
  for (const Node& child : directory.children)
    entries += 1 + DivideUp(LongName(child.name).size(), kUnitsPerLongEntry);
  return entries;
}

absl::Status CheckNode(const Node& node) {
  if (!node.is_directory && node.size > kFileBytesMax)
    return ErrnoErrorAsIs(EFBIG, absl::StrCat(node.path, ": FAT holds no file of 4G or more"));
  if (!node.is_directory) return absl::OkStatus();
  if (EntriesOf(node) > kDirectoryEntriesMax)
    return ErrnoErrorAsIs(EFBIG, absl::StrCat(node.path, ": too many files in one FAT folder"));
  std::set<std::u16string> seen;
  for (const Node& child : node.children) {
    std::u16string folded = LongName(child.name);
    for (char16_t& unit : folded)
      if (unit < 0x80) unit = static_cast<char16_t>(absl::ascii_tolower(static_cast<char>(unit)));
    if (!seen.insert(folded).second)
      return ErrnoErrorAsIs(EEXIST, absl::StrCat(node.path, "/", child.name,
                                                 ": another name there is the same for FAT"));
    BLK_RETURN_IF_ERROR(CheckNode(child));
  }
  return absl::OkStatus();
}

uint64_t ClustersOf(const Node& node, uint32_t cluster_bytes) {
  uint64_t bytes = node.is_directory ? EntriesOf(node) * kEntryBytes : node.size;
  uint64_t clusters = DivideUp(bytes, cluster_bytes);
  for (const Node& child : node.children) clusters += ClustersOf(child, cluster_bytes);
  return clusters;
}

// The volume with these clusters, if it can be, has room for the tree, and is as large as asked.
std::optional<Geometry> TryGeometry(const Kind& kind, uint32_t cluster_bytes, const Node& root,
                                    uint64_t bytes, uint64_t clusters_max) {
  const bool fat32 = kind.type == Type::kFat32;
  Geometry g{.kind = &kind, .cluster_bytes = cluster_bytes};
  if (fat32) g.reserved_sectors = 32;
  if (!fat32) {
    const uint64_t entries = std::max<uint64_t>(EntriesOf(root), kRootEntriesMin);
    g.root_entries = static_cast<uint32_t>(DivideUp(entries, 16) * 16);
    g.root_sectors = g.root_entries * kEntryBytes / kSectorBytes;
  }
  uint64_t needed = ClustersOf(root, cluster_bytes);
  if (!fat32) needed -= DivideUp(EntriesOf(root) * kEntryBytes, cluster_bytes);
  const uint64_t per_cluster = cluster_bytes / kSectorBytes;
  if (bytes == 0) {
    g.clusters = std::max(needed, kind.clusters_min);
    g.fat_sectors = FatSectorsFor(g.clusters, kind.bits);
    g.sectors = g.data_sector() + g.clusters * per_cluster;
  } else {
    g.sectors = bytes / kSectorBytes;
    // The larger the FATs, the fewer clusters they must tell about: the first size that is enough.
    g.fat_sectors = 1;
    for (;;) {
      if (g.sectors <= g.data_sector()) return std::nullopt;
      g.clusters = (g.sectors - g.data_sector()) / per_cluster;
      const uint64_t wanted = FatSectorsFor(g.clusters, kind.bits);
      if (wanted <= g.fat_sectors) break;
      g.fat_sectors += std::max<uint64_t>(1, (wanted - g.fat_sectors) / 2);
    }
  }
  if (needed > g.clusters || g.clusters < kind.clusters_min || g.clusters > clusters_max)
    return std::nullopt;
  if (g.sectors > UINT32_MAX || g.root_entries > UINT16_MAX) return std::nullopt;
  return g;
}

absl::StatusOr<Geometry> FindGeometry(const Node& root, const VolumeOptions& options) {
  for (bool strict : {true, false}) {
    for (const Kind& kind : kKinds) {
      if (options.type != Type::kAny && options.type != kind.type) continue;
      for (uint32_t bytes = kSectorBytes; bytes <= kClusterBytesMax; bytes *= 2) {
        const uint64_t clusters_max = strict ? kind.clusters_preferred_max : kind.clusters_max;
        if (auto found = TryGeometry(kind, bytes, root, options.bytes, clusters_max)) return *found;
      }
    }
  }
  return ErrnoErrorAsIs(ENOSPC,
                        absl::StrCat("the files do not fit into a FAT file system of ",
                                     options.bytes ? FormatSize(options.bytes) : "this type"));
}

class Writer {
 public:
  Writer(const Geometry& geometry, const VolumeOptions& options)
      : g_(geometry), options_(options), fat_(geometry.fat_sectors * kSectorBytes, '\0') {}

  RegionList Write(Node root) {
    root_ = &root;
    fat32_ = g_.kind->type == Type::kFat32;
    if (!fat32_) root.clusters = 0;
    Place(&root, /*is_root=*/true);
    SetFat(0, 0x0ffffff8);
    SetFat(1, 0x0fffffff);
    WriteHead();
    if (!fat32_) {
      std::string directory = DirectoryBytes(root, root);
      directory.resize(g_.root_sectors * kSectorBytes);
      list_.AddBytes(std::move(directory));
    }
    WriteNode(root, root);
    list_.AddZeroes(g_.sectors * kSectorBytes - list_.size());
    return std::move(list_);
  }

 private:
  // Clusters of a node, then those of its children: the order in which they are written.
  void Place(Node* node, bool is_root) {
    if (!is_root || fat32_) {
      const uint64_t bytes = node->is_directory ? EntriesOf(*node) * kEntryBytes : node->size;
      node->clusters = static_cast<uint32_t>(DivideUp(bytes, g_.cluster_bytes));
      if (node->clusters > 0) node->first_cluster = next_cluster_;
      for (uint32_t i = 0; i < node->clusters; ++i, ++next_cluster_)
        SetFat(next_cluster_, i + 1 < node->clusters ? next_cluster_ + 1 : 0x0fffffff);
    }
    for (Node& child : node->children) Place(&child, false);
  }

  // In a FAT12, two entries share three bytes.
  void SetFat(uint32_t cluster, uint32_t value) {
    if (g_.kind->bits == 32) return Store(&fat_, size_t{cluster} * 4, value, 4);
    if (g_.kind->bits == 16) return Store(&fat_, size_t{cluster} * 2, value & 0xffff, 2);
    const size_t at = size_t{cluster} * 3 / 2;
    const auto low = static_cast<uint8_t>(fat_[at]), high = static_cast<uint8_t>(fat_[at + 1]);
    const uint32_t pair = low | high << 8;
    value &= 0xfff;
    Store(&fat_, at, cluster % 2 ? (pair & 0x000f) | value << 4 : (pair & 0xf000) | value, 2);
  }

  void WriteHead() {
    std::string reserved(g_.reserved_sectors * kSectorBytes, '\0');
    const std::string boot = BootSector();
    reserved.replace(0, kSectorBytes, boot);
    if (fat32_) {
      const std::string info = InfoSector();
      for (size_t copy : {0, 6}) {  // the backup begins in sector 6
        reserved.replace(copy * kSectorBytes, kSectorBytes, boot);
        reserved.replace((copy + 1) * kSectorBytes, kSectorBytes, info);
      }
    }
    list_.AddBytes(std::move(reserved));
    list_.AddBytes(fat_);
    list_.AddBytes(fat_);
  }

  std::string BootSector() const {
    std::string b(kSectorBytes, '\0');
    StoreText(&b, 0, "\xeb\xfe\x90", 3);  // a jump to itself: this disk does not boot
    StoreText(&b, 3, "MSWIN4.1", 8);      // what everybody is known to accept
    Store(&b, 11, kSectorBytes, 2);
    Store(&b, 13, g_.cluster_bytes / kSectorBytes, 1);
    Store(&b, 14, g_.reserved_sectors, 2);
    Store(&b, 16, 2, 1);  // FATs
    Store(&b, 17, g_.root_entries, 2);
    const bool small = !fat32_ && g_.sectors < 65536;
    Store(&b, 19, small ? g_.sectors : 0, 2);
    Store(&b, 21, 0xf8, 1);  // a fixed disk
    Store(&b, 22, fat32_ ? 0 : g_.fat_sectors, 2);
    Store(&b, 24, 63, 2);   // sectors of a track, for mtools
    Store(&b, 26, 255, 2);  // heads
    Store(&b, 28, options_.hidden_sectors, 4);
    Store(&b, 32, small ? 0 : g_.sectors, 4);
    size_t at = 36;
    if (fat32_) {
      Store(&b, 36, g_.fat_sectors, 4);
      Store(&b, 44, root_->first_cluster, 4);
      Store(&b, 48, 1, 2);  // sector of the information
      Store(&b, 50, 6, 2);  // sector of the backup
      at = 64;
    }
    Store(&b, at, 0x80, 1);      // drive
    Store(&b, at + 2, 0x29, 1);  // the next three are there
    Store(&b, at + 3, 0x4b4c4201, 4);
    StoreText(&b, at + 7, options_.label, 11);
    StoreText(&b, at + 18, g_.kind->name, 8);
    Store(&b, 510, 0xaa55, 2);
    return b;
  }

  std::string InfoSector() const {
    std::string b(kSectorBytes, '\0');
    Store(&b, 0, 0x41615252, 4);
    Store(&b, 484, 0x61417272, 4);
    Store(&b, 488, g_.clusters - (next_cluster_ - kFirstCluster), 4);  // free
    Store(&b, 492, next_cluster_, 4);
    Store(&b, 508, 0xaa550000, 4);
    return b;
  }

  void WriteNode(const Node& node, const Node& parent) {
    if (node.clusters > 0) {
      if (node.is_directory) {
        std::string bytes = DirectoryBytes(node, parent);
        bytes.resize(uint64_t{node.clusters} * g_.cluster_bytes);
        list_.AddBytes(std::move(bytes));
      } else {
        list_.AddFile(node.path, node.size);
        list_.AddZeroes(uint64_t{node.clusters} * g_.cluster_bytes - node.size);
      }
    }
    for (const Node& child : node.children) WriteNode(child, node);
  }

  std::string DirectoryBytes(const Node& node, const Node& parent) const {
    std::string bytes;
    if (&node == root_) {
      AddEntry(&bytes, PaddedLabel(), kVolumeLabel, 0, 0, node.modified);
    } else {
      AddEntry(&bytes, ".          ", kDirectory, node.first_cluster, 0, node.modified);
      // The root is cluster 0 here, wherever it lies.
      const uint32_t up = &parent == root_ ? 0 : parent.first_cluster;
      AddEntry(&bytes, "..         ", kDirectory, up, 0, parent.modified);
    }
    std::set<std::string> taken;
    for (const Node& child : node.children) {
      bool exact = false;
      const std::string short_name = ShortName(child.name, &taken, &exact);
      if (!exact) AddLongName(&bytes, LongName(child.name), ShortNameChecksum(short_name));
      AddEntry(&bytes, short_name, child.is_directory ? kDirectory : kArchive, child.first_cluster,
               child.is_directory ? 0 : static_cast<uint32_t>(child.size), child.modified);
    }
    return bytes;
  }

  std::string PaddedLabel() const {
    std::string label = options_.label;
    label.resize(11, ' ');
    return label;
  }

  static void AddEntry(std::string* bytes, std::string_view name, uint8_t attributes,
                       uint32_t cluster, uint32_t size, time_t modified) {
    std::string entry(kEntryBytes, '\0');
    StoreText(&entry, 0, name, 11);
    entry[11] = static_cast<char>(attributes);
    tm when{};
    localtime_r(&modified, &when);
    const int year = std::clamp(when.tm_year - 80, 0, 127);  // from 1980
    const uint32_t date = year << 9 | (when.tm_mon + 1) << 5 | when.tm_mday;
    const uint32_t time = when.tm_hour << 11 | when.tm_min << 5 | std::min(when.tm_sec, 59) / 2;
    Store(&entry, 14, time, 2);  // made
    Store(&entry, 16, date, 2);
    Store(&entry, 18, date, 2);  // read
    Store(&entry, 20, cluster >> 16, 2);
    Store(&entry, 22, time, 2);  // written
    Store(&entry, 24, date, 2);
    Store(&entry, 26, cluster & 0xffff, 2);
    Store(&entry, 28, size, 4);
    *bytes += entry;
  }

  // The last part comes first; what is left of it is one 0 and then 0xffff.
  static void AddLongName(std::string* bytes, const std::u16string& name, uint8_t checksum) {
    constexpr uint8_t kPlaces[] = {1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30};
    const size_t parts = DivideUp(name.size(), kUnitsPerLongEntry);
    for (size_t part = parts; part >= 1; --part) {
      std::string entry(kEntryBytes, '\0');
      Store(&entry, 0, part | (part == parts ? 0x40 : 0), 1);
      Store(&entry, 11, kLongName, 1);
      Store(&entry, 13, checksum, 1);
      for (size_t i = 0; i < kUnitsPerLongEntry; ++i) {
        const size_t at = (part - 1) * kUnitsPerLongEntry + i;
        Store(&entry, kPlaces[i], at < name.size() ? name[at] : at == name.size() ? 0 : 0xffff, 2);
      }
      *bytes += entry;
    }
  }

  const Geometry& g_;
  const VolumeOptions& options_;
  const Node* root_ = nullptr;
  bool fat32_ = false;
  std::string fat_;
  uint32_t next_cluster_ = kFirstCluster;
  RegionList list_;
};

}  // namespace

absl::StatusOr<Volume> MakeVolume(Node root, const VolumeOptions& options) {
  BLK_RETURN_IF_ERROR(CheckNode(root));
  BLK_ASSIGN_OR_RETURN(Geometry geometry, FindGeometry(root, options));
  return Volume{Writer(geometry, options).Write(std::move(root)), geometry.kind->type};
}

}  // namespace blk::fat
