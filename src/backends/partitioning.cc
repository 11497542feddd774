// partitioning: files as the partitions of a disk whose partition table is made up.
// Parallel-safe: tables are fixed before anything starts, and the partitions are devices of files.
#include <fcntl.h>

#include <algorithm>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "src/backends/file/disk_file.h"
#include "src/backends/partition_maker.h"
#include "src/core/spec.h"

namespace blk {
namespace {

constexpr std::string_view kLinuxFilesystem = "0FC63DAF-8483-4772-8E79-3D69D8477DE4";
constexpr uint8_t kLinuxId = 0x83;
constexpr size_t kMbrPartitionsDefaultMax = 4;

// A value that remembers when it was read: some parameters hold for the files that follow them.
struct Ordered {
  std::string text;
  uint64_t order = 0;
};

}  // namespace

template <>
struct ParamValue<Ordered> {
  static constexpr std::string_view kType = "text", kWord = "TEXT";
  static absl::StatusOr<Ordered> Parse(std::string_view text) {
    thread_local uint64_t last_order = 0;
    return Ordered{std::string(text), ++last_order};
  }
  static std::string Format(const Ordered& value) { return value.text; }
};

namespace {

enum class Table { kByFiles, kMbr, kGpt };

struct Config {
  std::vector<Ordered> file, alignment, mbr_id, type_guid;
  Table table = Table::kByFiles;
};

// The last of `settings` before `order`, or `otherwise`.
std::string_view SettingAt(const std::vector<Ordered>& settings, uint64_t order,
                           std::string_view otherwise) {
  for (auto it = settings.rbegin(); it != settings.rend(); ++it) {
    if (it->order < order) return it->text;
  }
  return otherwise;
}

absl::StatusOr<uint64_t> ReadAlignment(std::string_view text) {
  BLK_ASSIGN_OR_RETURN(Size size, ParseSize(text));
  if (size.bytes == 0 || size.bytes % kSectorBytes != 0)
    return absl::InvalidArgumentError(
        absl::StrCat("alignment: ", text, " is no multiple of ", kSectorBytes));
  return size.bytes;
}

absl::StatusOr<uint8_t> ReadMbrId(std::string_view text) {
  if (text == "default") return kLinuxId;
  auto id = ParseInteger<uint8_t>(text);
  if (!id.ok()) return Annotate(id.status(), "mbr-id");
  return id;
}

absl::StatusOr<Guid> ReadTypeGuid(std::string_view text) {
  auto guid = ParseGuid(text == "default" ? kLinuxFilesystem : text);
  if (!guid.ok()) return Annotate(guid.status(), absl::StrCat("type-guid: ", text));
  return guid;
}

class PartitioningLayer final : public Layer {
 public:
  explicit PartitioningLayer(Config config) : config_(std::move(config)) {}

  absl::Status Ready() override {
    std::vector<NewPartition> partitions;
    uint64_t bytes = 0;
    for (const Ordered& file : config_.file) {
      BLK_ASSIGN_OR_RETURN(NewPartition partition, OpenPartition(file));
      bytes += partition.device->size();
      AddFacts(partition.device->facts(), partitions.empty());
      partitions.push_back(std::move(partition));
    }
    Table table = config_.table;
    if (table == Table::kByFiles) {
      const bool gpt = partitions.size() > kMbrPartitionsDefaultMax ||
                       bytes / kSectorBytes > UINT32_MAX - (1 << 16);
      table = gpt ? Table::kGpt : Table::kMbr;
    }
    BLK_ASSIGN_OR_RETURN(RegionList list,
                         table == Table::kGpt ? MakeGptDisk(partitions) : MakeMbrDisk(partitions));
    regions_ = std::make_shared<const RegionList>(std::move(list));
    return absl::OkStatus();
  }

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    Facts facts = facts_;
    facts.read_only |= args.read_only;
    return absl::StatusOr<DevicePtr>(MakeRegionsDevice(regions_, std::move(facts)));
  }

 private:
  absl::StatusOr<NewPartition> OpenPartition(const Ordered& file) const {
    NewPartition partition;
    BLK_ASSIGN_OR_RETURN(partition.alignment,
                         ReadAlignment(SettingAt(config_.alignment, file.order, "1M")));
    BLK_ASSIGN_OR_RETURN(partition.mbr_id,
                         ReadMbrId(SettingAt(config_.mbr_id, file.order, "default")));
    BLK_ASSIGN_OR_RETURN(partition.type_guid,
                         ReadTypeGuid(SettingAt(config_.type_guid, file.order, "default")));
    BLK_ASSIGN_OR_RETURN(DiskFilePtr opened,
                         OpenDiskFile(AT_FDCWD, file.text, /*read_only=*/false, FileOptions()));
    BLK_ASSIGN_OR_RETURN(partition.device, MakeFileDevice(std::move(opened), /*read_only=*/false));
    partition.name = file.text.substr(file.text.rfind('/') + 1);
    return partition;
  }

  // What holds for the whole disk, after one more partition.
  void AddFacts(const Facts& part, bool first) {
    if (first) {
      facts_ = part;
      facts_.fua = Support::kNative;  // each piece flushes its own file only
    }
    facts_.block.minimum = std::max(facts_.block.minimum, part.block.minimum);
    facts_.block.preferred = std::max(facts_.block.preferred, part.block.preferred);
    facts_.read_only |= part.read_only;
    facts_.rotational |= part.rotational;
    facts_.fast_zero &= part.fast_zero;
  }

  const Config config_;
  Facts facts_;
  std::shared_ptr<const RegionList> regions_;
};

}  // namespace

const Spec& PartitioningSpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<Config>("partitioning", "files as the partitions of one disk")
          .Description(
              "A partition table is made up around the files; nothing is copied. Without "
              "partition-type it is an MBR, or a GPT if there are more than four files or more "
              "than an MBR can hold. In an MBR, the fourth of more than four files and those after "
              "it are logical partitions, 5 and up.\n\n"
              "alignment, mbr-id and type-guid hold for the files that come after them. What is "
              "written to a partition goes to its file; the table and the gaps cannot be changed.")
          .Param("file", &Config::file,
                 {.help = "the next partition: a regular file or a block device",
                  .required = true,
                  .magic = true,
                  .word = "PATH",
                  .path = PathUse::kReadWrite})
          .Param("partition-type", &Config::table, {{"mbr", Table::kMbr}, {"gpt", Table::kGpt}},
                 {.help = "kind of partition table"})
          .Param("alignment", &Config::alignment,
                 {.help = "where partitions begin: a multiple of this (1M)", .word = "SIZE"})
          .Param("mbr-id", &Config::mbr_id,
                 {.help = "MBR type of partitions, or `default` (0x83)", .word = "BYTE"})
          .Param(
              "type-guid", &Config::type_guid,
              {.help = "GPT type of partitions, or `default` (Linux file system)", .word = "GUID"})
          .PrintedExample("partitioning:root.img", "a disk with one partition")
          .PrintedExample("partitioning(file=boot.img,mbr-id=0x82,file=swap.img)",
                          "two partitions, the second a swap partition")
          .Make([](Config config) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<PartitioningLayer>(std::move(config));
          }));
  return spec;
}

}  // namespace blk
