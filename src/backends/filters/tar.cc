// tar: one file inside a tar archive as a disk, to read and to write in place. Parallel-safe: where
// the file is, is found anew for each connection, by reading headers only.
#include <algorithm>
#include <cerrno>

#include "src/backends/filters/aligned_io.h"
#include "src/backends/filters/tar_index.h"
#include "src/backends/filters/window_device.h"
#include "src/core/spec.h"

namespace blk {
namespace {

constexpr uint64_t kExtraBytesMax = 1 << 20;  // of a long name or pax header

struct Config {
  std::string entry;
  Size limit{limits::kDiskBytesMax};
  std::string program;
};

struct Member {
  uint64_t offset, size;
};

// Walks from header to header.
class TarReader {
 public:
  TarReader(Device* archive, const Config& config)
      : archive_(*archive), config_(config), end_(std::min(archive->size(), config.limit.bytes)) {}

  Task<absl::StatusOr<Member>> Find() {
    while (end_ - at_ >= kTarBlockBytes) {
      char block[kTarBlockBytes];
      BLK_CO_RETURN_IF_ERROR(co_await ReadUnaligned(&archive_, call_, at_, block));
      BLK_CO_ASSIGN_OR_RETURN(TarHeader header, ParseTarHeader({block, sizeof block}));
      if (header.end) break;
      at_ += kTarBlockBytes;
      if (header.type == 'L' || header.type == 'x') {
        BLK_CO_RETURN_IF_ERROR(co_await ReadExtra(header));
        continue;
      }
      ApplyExtra(&header);
      if (header.name == config_.entry) co_return Check(header);
      if (header.blocks_bytes() > end_ - at_) break;
      at_ += header.blocks_bytes();
    }
    co_return ErrnoErrorAsIs(ENOENT, absl::StrCat("the tar archive has no file \"", config_.entry,
                                                  "\"; `tar tf` lists what it has"));
  }

 private:
  // A long name or a pax header: it belongs to the next header.
  Task<absl::Status> ReadExtra(TarHeader header) {
    if (header.size > kExtraBytesMax || header.blocks_bytes() > archive_.size() - at_)
      co_return ErrnoErrorAsIs(EINVAL, "a header of the tar archive is impossibly large");
    std::string text(header.size, '\0');
    BLK_CO_RETURN_IF_ERROR(co_await ReadUnaligned(&archive_, call_, at_, text));
    at_ += header.blocks_bytes();
    if (header.type == 'L') {
      long_name_ = text.substr(0, text.find('\0'));
      co_return absl::OkStatus();
    }
    BLK_CO_ASSIGN_OR_RETURN(pax_, ParsePaxRecords(text));
    co_return absl::OkStatus();
  }

  void ApplyExtra(TarHeader* header) {
    if (long_name_) header->name = *long_name_;
    if (pax_.path) header->name = *pax_.path;
    if (pax_.size) header->size = *pax_.size;
    if (pax_.sparse) header->type = 'S';
    // A global header says something of all members; nothing that matters here.
    if (header->type == 'K' || header->type == 'g') return;
    long_name_.reset();
    pax_ = {};
  }

  absl::StatusOr<Member> Check(const TarHeader& header) const {
    if (header.is_sparse())
      return ErrnoErrorAsIs(EINVAL,
                            absl::StrCat("\"", header.name,
                                         "\" is stored as a sparse file, in pieces: make the "
                                         "archive without --sparse"));
    if (!header.is_file())
      return ErrnoErrorAsIs(EINVAL, absl::StrCat("\"", header.name, "\" is not a regular file"));
    if (header.size > archive_.size() - at_)
      return ErrnoErrorAsIs(EINVAL, "the tar archive ends before the file does");
    return Member{at_, header.size};
  }

  Device& archive_;
  const Config& config_;
  const Call call_;
  const uint64_t end_;  // no header after it is looked at
  uint64_t at_ = 0;
  std::optional<std::string> long_name_;  // for the next header
  PaxRecords pax_;                        // the same
};

class TarLayer final : public FilterLayer {
 public:
  TarLayer(LayerPtr below, Config config)
      : FilterLayer(std::move(below)), config_(std::move(config)) {}

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    BLK_CO_ASSIGN_OR_RETURN(DevicePtr archive, co_await below().Open(std::move(args)));
    TarReader reader(archive.get(), config_);
    auto member = co_await reader.Find();
    absl::StatusOr<DevicePtr> device;
    if (member.ok())
      device = MakeWindow(archive, member->offset, member->size);
    else
      device = member.status();
    if (!device.ok()) (void)co_await archive->Close();
    co_return device;
  }

 private:
  const Config config_;
};

}  // namespace

const Spec& TarSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("tar", "one file inside a tar archive")
          .Param("tar-entry", &Config::entry,
                 {.help = "its name, just as `tar tf` prints it", .required = true, .word = "NAME"})
          .Param("tar-limit", &Config::limit,
                 {.help = "look for it in so much of the archive only"})
          .Param("tar", &Config::program,
                 {.help = "ignored: no tar program is needed", .hidden = true})
          .Description(
              "The archive must not be compressed; put a filter that decompresses below. Nothing "
              "is "
              "unpacked. Names and sizes may be written in any of the ways in use; files that were "
              "stored with --sparse are refused.")
          .PrintedExample("tar(tar-entry=disk.img)+images.tar")
          .Make([](Config config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<TarLayer>(std::move(below), std::move(config));
          }));
  return spec;
}

}  // namespace blk
