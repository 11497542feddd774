// linuxdisk: a directory as a disk with one partition that holds an ext2, ext3
// or ext4, made once. Parallel-safe: the file system is a file that nobody
// changes.
#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "src/backends/file/disk_file.h"
#include "src/backends/linuxdisk/ext_writer.h"
#include "src/backends/partition_maker.h"
#include "src/backends/temporary_folder.h"
#include "src/core/loop.h"
#include "src/core/spec.h"

namespace blk {
namespace {

constexpr std::string_view kLinuxFilesystem = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";
constexpr uint64_t kBlockBytes = 4096, kInodeBytes = 256;
constexpr uint64_t kSpareInodes = 16;
constexpr int kTriesMax = 6;

struct Config {
  std::string dir;
  std::string label;
  std::string size;
  ExtOptions::Type type = ExtOptions::Type::kExt2;
};

struct Wanted {
  uint64_t bytes = 0;  // of data blocks
  uint64_t inodes = 0;
};

uint64_t RoundUp(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

// What a directory takes. Files that cannot be looked at are left to the
// writer, which says so.
absl::StatusOr<Wanted> Measure(const std::string& directory) {
  Wanted wanted;
  std::error_code error;
  std::filesystem::recursive_directory_iterator entry(
      directory, std::filesystem::directory_options::none, error),
      end;
  if (error) return ErrnoError(error.value(), directory);
  while (entry != end) {
    struct stat facts;
    if (lstat(entry->path().c_str(), &facts) == 0) {
      ++wanted.inodes;
      const uint64_t stored = static_cast<uint64_t>(facts.st_blocks) * 512;  // less with holes
      const uint64_t size = static_cast<uint64_t>(facts.st_size);
      if (S_ISREG(facts.st_mode))
        wanted.bytes += RoundUp(std::min(size, stored + kBlockBytes), kBlockBytes);
      if (S_ISDIR(facts.st_mode)) wanted.bytes += RoundUp(std::max(size, kBlockBytes), kBlockBytes);
      if (S_ISLNK(facts.st_mode)) wanted.bytes += kBlockBytes;
    }
    entry.increment(error);
    if (error) return ErrnoError(error.value(), directory);
  }
  return wanted;
}

class LinuxdiskLayer final : public Layer {
 public:
  // `size`: of the file system, or with `free` of the room left in it; 0: just
  // enough.
  LinuxdiskLayer(Config config, uint64_t size, bool free)
      : config_(std::move(config)), size_(size), free_(free) {}

  absl::Status Ready() override {
    BLK_ASSIGN_OR_RETURN(Wanted wanted, Measure(config_.dir));
    TemporaryFolder folder;
    BLK_RETURN_IF_ERROR(folder.Make(TemporaryFolder::LargeParent()));
    const std::string path = folder.path() + "/ext";
    BLK_RETURN_IF_ERROR(Make(wanted, path));
    BLK_ASSIGN_OR_RETURN(DiskFilePtr file,
                         OpenDiskFile(AT_FDCWD, path, /*read_only=*/true, FileOptions()));
    NewPartition partition;
    BLK_ASSIGN_OR_RETURN(partition.device, MakeFileDevice(std::move(file), /*read_only=*/true));
    BLK_ASSIGN_OR_RETURN(partition.type_guid, ParseGuid(kLinuxFilesystem));
    partition.name = config_.label.empty() ? "Linux" : config_.label;
    Facts facts = partition.device->facts();
    BLK_ASSIGN_OR_RETURN(RegionList list, MakeGptDisk({std::move(partition)}));
    device_ = MakeRegionsDevice(std::make_shared<const RegionList>(std::move(list)), facts);
    return absl::OkStatus();
  }

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs) override {
    return absl::StatusOr<DevicePtr>(device_);
  }

 private:
  // How much a file system needs beside its content is known afterwards: larger
  // until it fits.
  absl::Status Make(const Wanted& wanted, const std::string& path) const {
    const bool journal = config_.type != ExtOptions::Type::kExt2;
    ExtOptions options{.type = config_.type, .label = config_.label};
    options.inodes = wanted.inodes + wanted.inodes / 10 + kSpareInodes;
    uint64_t extra_bytes =
        (journal ? 5 << 20 : 1 << 20) + wanted.bytes / 64 + options.inodes * kInodeBytes;
    if (free_) extra_bytes += size_;
    for (int i = 1;; ++i) {
      const bool fixed = size_ > 0 && !free_;
      options.bytes = fixed ? size_ : RoundUp(wanted.bytes + extra_bytes, 64 << 10);
      absl::Status status = WriteExt(config_.dir, path, options);
      if (ErrnoOf(status) != ENOSPC || fixed || i == kTriesMax) return status;
      extra_bytes += wanted.bytes / 8 + (4 << 20);
    }
  }

  const Config config_;
  const uint64_t size_;
  const bool free_;
  DevicePtr device_;
};

absl::StatusOr<LayerPtr> MakeLayer(Config config) {
  constexpr size_t kLabelBytesMax = 16;
  if (config.label.size() > kLabelBytesMax)
    return absl::InvalidArgumentError(
        absl::StrCat("label: ", config.label, " has more than ", kLabelBytesMax, " bytes"));
  uint64_t size = 0;
  std::string_view text = config.size;
  const bool free = absl::ConsumePrefix(&text, "+");
  if (!text.empty()) {
    auto parsed = ParseSize(text);
    if (!parsed.ok()) return Annotate(parsed.status(), "size");
    size = parsed->bytes;
  }
  return std::make_shared<LinuxdiskLayer>(std::move(config), size, free);
}

}  // namespace

const Spec& LinuxdiskSpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<Config>("linuxdisk", "a folder as a disk with an ext2, ext3 or ext4")
          .Description("A disk with a GPT and one partition, whose file system "
                       "holds what is in the folder, "
                       "with owners, modes, times, links, devices and extended "
                       "attributes. Read-only; put the cow filter on top "
                       "to write. It is made when blk starts, in $TMPDIR (else "
                       "/var/tmp). "
                       "Without size there is little room left in it; size=+1G "
                       "leaves that much.")
          .Param("dir", &Config::dir,
                 {.help = "the folder",
                  .required = true,
                  .magic = true,
                  .word = "DIR",
                  .path = PathUse::kRead})
          .Param("label", &Config::label, {.help = "label of the file system"})
          .Param("size", &Config::size,
                 {.help = "size of the file system, or with + the room left in it", .word = "SIZE"})
          .Param("type", &Config::type,
                 {{"ext2", ExtOptions::Type::kExt2},
                  {"ext3", ExtOptions::Type::kExt3},
                  {"ext4", ExtOptions::Type::kExt4}},
                 {.help = "kind of file system"})
          .PrintedExample("linuxdisk(dir=./root,label=ROOTFS)", "a root file system")
          .Make(MakeLayer));
  return spec;
}

}  // namespace blk
