// partition: one partition of a disk as a disk. Parallel-safe: no state; the table is read anew for
// each connection.
#include <algorithm>
#include <cerrno>

#include "src/backends/filters/partition_table.h"
#include "src/backends/filters/window_device.h"
#include "src/core/spec.h"

namespace blk {
namespace {

struct Config {
  std::string partition;
  std::optional<Size> sector_size;
};

// Reads what the search asks for, in whole blocks of the device.
Task<absl::Status> ReadPiece(Device* disk, const Piece& piece, KnownBytes* known) {
  const uint64_t block = disk->facts().block.minimum;
  const uint64_t begin = piece.offset / block * block;
  const uint64_t end =
      std::min((piece.offset + piece.length + block - 1) / block * block, disk->size());
  std::string bytes(end - begin, '\0');
  Call call;
  BLK_CO_RETURN_IF_ERROR(co_await disk->Read(call, begin, bytes));
  (*known)[piece.offset] = bytes.substr(piece.offset - begin, piece.length);
  co_return absl::OkStatus();
}

Task<absl::StatusOr<DevicePtr>> OpenPartition(DevicePtr disk, PartitionRequest request) {
  KnownBytes known;
  for (int pieces = 0; pieces < kTablePiecesMax; ++pieces) {
    PartitionSearch search = FindPartition(disk->size(), request, known);
    if (!search.wanted && !search.partition.ok()) co_return search.partition.status();
    if (!search.wanted)
      co_return MakeWindow(disk, search.partition->offset, search.partition->length);
    absl::Status read = co_await ReadPiece(disk.get(), *search.wanted, &known);
    if (!read.ok()) co_return Annotate(read, "cannot read the partition table");
  }
  co_return ErrnoErrorAsIs(EINVAL, "the partition table never ends");
}

class PartitionLayer final : public FilterLayer {
 public:
  PartitionLayer(LayerPtr below, PartitionRequest request)
      : FilterLayer(std::move(below)), request_(std::move(request)) {}

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    BLK_CO_ASSIGN_OR_RETURN(DevicePtr disk, co_await below().Open(std::move(args)));
    auto device = co_await OpenPartition(disk, request_);
    if (!device.ok()) (void)co_await disk->Close();
    co_return device;
  }

 private:
  const PartitionRequest request_;
};

absl::StatusOr<LayerPtr> MakePartition(Config config, LayerPtr below) {
  const uint64_t sector_bytes = config.sector_size.value_or(Size{0}).bytes;
  if (config.sector_size && sector_bytes != 512 && sector_bytes != 4096)
    return absl::InvalidArgumentError("partition-sectorsize must be 512 or 4096");
  PartitionRequest request{.sector_bytes = static_cast<uint32_t>(sector_bytes)};
  if (config.partition.empty())
    return absl::InvalidArgumentError("partition: which one? Give its number or its GPT name");
  if (config.partition.find_first_not_of("0123456789") != std::string::npos) {
    request.name = config.partition;
  } else if (auto number = ParseUnsigned(config.partition, 1, UINT32_MAX); number.ok()) {
    request.number = static_cast<uint32_t>(*number);
  } else {
    return Annotate(number.status(), "invalid partition number");
  }
  return std::make_shared<PartitionLayer>(std::move(below), std::move(request));
}

}  // namespace

const Spec& PartitionSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("partition", "one partition of the disk, of an MBR or GPT")
          .Param(
              "partition", &Config::partition,
              {.help = "its number, from 1 (logical ones from 5), or the name that a GPT gives it",
               .required = true,
               .magic = true,
               .word = "N|NAME"})
          .Param("partition-sectorsize", &Config::sector_size,
                 {.help = "sector size, 512 or 4K; without it a GPT tells, and an MBR is taken to "
                          "have 512"})
          .Description(
              "When a GPT is damaged, its backup at the end of the disk is used. Logical "
              "partitions of an MBR are numbered from 5; the extended partition around them cannot "
              "be served.")
          .PrintedExample("partition(partition=2)+disk.img", "the second partition")
          .PrintedExample("partition(partition=root)+disk.img", "the one that the GPT calls root")
          .Make(MakePartition));
  return spec;
}

}  // namespace blk
