// floppy: a directory as a FAT file system in one partition, made up around the files.
// Parallel-safe: the layout is fixed when blk starts; files are opened for each read.
#include <sys/stat.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "src/backends/floppy/fat_volume.h"
#include "src/backends/partition_maker.h"
#include "src/core/spec.h"

namespace blk {
namespace {

constexpr size_t kLabelBytesMax = 11;
constexpr int kDepthMax = 64;
constexpr uint64_t kAlignment = 1 << 20;
constexpr uint64_t kSmallDiskBytes = 16 << 20;  // below, a megabyte would be missed

struct Config {
  std::string dir;
  std::string label = "NBDKITFLOPY";  // as nbdkit has it
  std::optional<Size> size;
  fat::Type type = fat::Type::kAny;
};

// Files and folders below `path`; whatever else there is has no place in a FAT.
absl::Status Scan(const std::string& path, int depth, fat::Node* node) {
  if (depth > kDepthMax)
    return ErrnoErrorAsIs(ELOOP, absl::StrCat(path, ": more than ", kDepthMax, " folders deep"));
  std::error_code error;
  std::vector<std::string> names;
  for (std::filesystem::directory_iterator entry(path, error), end; !error && entry != end;
       entry.increment(error))
    names.push_back(entry->path().filename().string());
  if (error) return ErrnoError(error.value(), path);
  std::ranges::sort(names);
  for (std::string& name : names) {
    fat::Node child{.name = std::move(name)};
    child.path = absl::StrCat(path, "/", child.name);
    struct stat facts;
    if (lstat(child.path.c_str(), &facts) < 0) return ErrnoError(errno, child.path);
    child.modified = facts.st_mtime;
    child.is_directory = S_ISDIR(facts.st_mode);
    if (!child.is_directory && !S_ISREG(facts.st_mode)) continue;
    if (child.is_directory) BLK_RETURN_IF_ERROR(Scan(child.path, depth + 1, &child));
    if (!child.is_directory) child.size = static_cast<uint64_t>(facts.st_size);
    node->children.push_back(std::move(child));
  }
  return absl::OkStatus();
}

class FloppyLayer final : public Layer {
 public:
  explicit FloppyLayer(Config config) : config_(std::move(config)) {}

  absl::Status Ready() override {
    // The server may go to the background, where paths begin at the root.
    char* absolute = realpath(config_.dir.c_str(), nullptr);
    if (absolute == nullptr) return ErrnoError(errno, config_.dir);
    fat::Node root{.name = "", .is_directory = true, .path = absolute};
    std::free(absolute);
    struct stat facts;
    if (stat(root.path.c_str(), &facts) < 0) return ErrnoError(errno, root.path);
    root.modified = facts.st_mtime;
    const std::string path = root.path;
    BLK_RETURN_IF_ERROR(Scan(path, 0, &root));
    return Build(std::move(root));
  }

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs) override {
    return absl::StatusOr<DevicePtr>(device_);
  }

 private:
  absl::Status Build(fat::Node root) {
    const bool small = config_.size && config_.size->bytes < kSmallDiskBytes;
    const uint64_t start = small ? kSectorBytes : kAlignment;
    fat::VolumeOptions options{.label = absl::AsciiStrToUpper(config_.label), .type = config_.type};
    options.hidden_sectors = start / kSectorBytes;
    if (config_.size) {
      if (config_.size->bytes <= start)
        return ErrnoErrorAsIs(ENOSPC, "size: there is no room for a partition");
      options.bytes = (config_.size->bytes - start) / kSectorBytes * kSectorBytes;
    }
    BLK_ASSIGN_OR_RETURN(fat::Volume volume, fat::MakeVolume(std::move(root), options));
    Facts facts;
    facts.read_only = true;
    facts.flush = false;
    facts.fua = Support::kNone;
    NewPartition partition;
    partition.alignment = start;
    partition.mbr_id = volume.type == fat::Type::kFat32   ? 0x0c
                       : volume.type == fat::Type::kFat16 ? 0x0e
                                                          : 0x01;
    partition.device =
        MakeRegionsDevice(std::make_shared<const RegionList>(std::move(volume.regions)), facts);
    BLK_ASSIGN_OR_RETURN(RegionList list, MakeMbrDisk({std::move(partition)}));
    device_ = MakeRegionsDevice(std::make_shared<const RegionList>(std::move(list)), facts);
    return absl::OkStatus();
  }

  const Config config_;
  DevicePtr device_;
};

absl::StatusOr<LayerPtr> MakeLayer(Config config) {
  if (config.label.size() > kLabelBytesMax)
    return absl::InvalidArgumentError(
        absl::StrCat("label: ", config.label, " has more than ", kLabelBytesMax, " bytes"));
  return std::make_shared<FloppyLayer>(std::move(config));
}

}  // namespace

const Spec& FloppySpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<Config>("floppy", "a folder as a disk with a FAT file system")
          .Description(
              "One partition with a FAT32, read-only, that holds the files and folders; links and "
              "devices are left out. Nothing is copied: files are read when clients read them, so "
              "leave the folder alone meanwhile. Names longer than 8.3 are kept. Without size the "
              "disk is as small as it can be, which for a FAT32 is 33M of mostly nothing; a "
              "smaller size gives a FAT16 or FAT12.")
          .Param("dir", &Config::dir,
                 {.help = "the folder",
                  .required = true,
                  .magic = true,
                  .word = "DIR",
                  .path = PathUse::kRead})
          .Param("label", &Config::label, {.help = "label of the file system"})
          .Param("size", &Config::size, {.help = "size of the disk"})
          .Param("type", &Config::type,
                 {{"fat12", fat::Type::kFat12},
                  {"fat16", fat::Type::kFat16},
                  {"fat32", fat::Type::kFat32}},
                 {.help = "kind of file system; the largest that fits if not given"})
          .PrintedExample("floppy:./files", "a folder as a FAT32")
          .PrintedExample("floppy(dir=./files,size=1440K)", "a small one")
          .Make(MakeLayer));
  return spec;
}

}  // namespace blk
