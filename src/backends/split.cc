// split: several files, one after the other, as one disk.
//
// Parallel-safe: which part a byte is in is fixed before anything starts, and the parts are devices
// of the backend file. Holes, trims and zeroes are those of the parts.
#include <fcntl.h>

#include <algorithm>
#include <cerrno>

#include "src/backends/file/disk_file.h"
#include "src/core/limits.h"
#include "src/core/spec.h"

namespace blk {
namespace {

struct Config {
  std::vector<std::string> file;
};

struct Part {
  uint64_t start;
  DevicePtr device;
  uint64_t end() const { return start + device->size(); }
};

class SplitDevice final : public Device {
 public:
  // `parts` follow one another from 0 and are not empty; they outlive the device.
  SplitDevice(const std::vector<Part>& parts, Facts facts)
      : Device(std::move(facts)), parts_(parts) {}

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    return InParts(offset, into.size(), [&call, into](const Piece& piece) {
      return piece.device->Read(call, piece.offset, into.subspan(piece.done, piece.length));
    });
  }
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override {
    return InParts(offset, from.size(), [&call, from](const Piece& piece) {
      return piece.device->Write(call, piece.offset, from.subspan(piece.done, piece.length));
    });
  }
  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override {
    return InParts(offset, length, [&call](const Piece& piece) {
      return piece.device->Trim(call, piece.offset, piece.length);
    });
  }
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override {
    return InParts(offset, length, [&call](const Piece& piece) {
      return piece.device->Zero(call, piece.offset, piece.length);
    });
  }
  Task<absl::Status> DoCache(const Call& call, uint64_t offset, uint64_t length) override {
    return InParts(offset, length, [&call](const Piece& piece) {
      return piece.device->Cache(call, piece.offset, piece.length);
    });
  }
  Task<absl::Status> DoFlush(const Call& call) override {
    absl::Status first_error;
    for (const Part& part : parts_) first_error.Update(co_await part.device->Flush(call));
    co_return first_error;
  }
  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override;

 private:
  // What of a request lies in one part: `length` bytes at `offset` of `device`, after `done` bytes
  // of the request.
  struct Piece {
    Device* device;
    uint64_t offset, done, length;
  };
  Piece PieceAt(uint64_t offset, uint64_t done, uint64_t length) const {
    const Part& part =
        *std::upper_bound(parts_.begin(), parts_.end(), offset + done,
                          [](uint64_t at, const Part& candidate) { return at < candidate.end(); });
    uint64_t inside = offset + done - part.start;
    return {part.device.get(), inside, done, std::min(length - done, part.device->size() - inside)};
  }

  // `operation` on each piece in turn, up to the first that fails.
  template <typename Operation>
  Task<absl::Status> InParts(uint64_t offset, uint64_t length, Operation operation) {
    Piece piece = PieceAt(offset, 0, length);
    if (piece.length == length) return operation(piece);  // nearly always
    return InManyParts(offset, length, std::move(operation));
  }
  template <typename Operation>
  Task<absl::Status> InManyParts(uint64_t offset, uint64_t length, Operation operation) {
    for (uint64_t done = 0; done < length;) {
      Piece piece = PieceAt(offset, done, length);
      BLK_CO_RETURN_IF_ERROR(co_await operation(piece));
      done += piece.length;
    }
    co_return absl::OkStatus();
  }

  const std::vector<Part>& parts_;
};

Task<absl::Status> SplitDevice::DoExtents(const Call& call, std::string_view context,
                                          ExtentList* list) {
  while (!list->full()) {
    Piece piece = PieceAt(list->next(), 0, list->end() - list->next());
    ExtentList inside(piece.offset, piece.length);
    BLK_CO_RETURN_IF_ERROR(co_await piece.device->Extents(call, context, &inside));
    for (const Extent& extent : inside.extents()) list->Append(extent.length, extent.flags);
    if (call.flags & kRequestOne) break;
  }
  co_return absl::OkStatus();
}

// What holds for the whole, after one more part.
void Combine(Facts* whole, const Facts& part) {
  whole->block.minimum = std::max(whole->block.minimum, part.block.minimum);
  whole->block.preferred = std::max(whole->block.preferred, part.block.preferred);
  whole->read_only |= part.read_only;
  whole->rotational |= part.rotational;
  whole->extents |= part.extents;
}

class SplitLayer final : public Layer {
 public:
  explicit SplitLayer(Config config) : config_(std::move(config)) {}

  absl::Status Ready() override {
    for (const std::string& path : config_.file) {
      BLK_ASSIGN_OR_RETURN(DiskFilePtr file,
                           OpenDiskFile(AT_FDCWD, path, /*read_only=*/false, FileOptions()));
      BLK_ASSIGN_OR_RETURN(DevicePtr device, MakeFileDevice(std::move(file), /*read_only=*/false));
      BLK_RETURN_IF_ERROR(AddPart(path, std::move(device)));
    }
    return absl::OkStatus();
  }

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    Facts facts = facts_;
    facts.read_only |= args.read_only;
    return absl::StatusOr<DevicePtr>(std::make_shared<SplitDevice>(parts_, std::move(facts)));
  }

 private:
  absl::Status AddPart(const std::string& path, DevicePtr device) {
    if (parts_.empty()) {
      uint64_t size = facts_.size;
      facts_ = device->facts();
      facts_.size = size;
      facts_.fua = Support::kNative;  // each piece flushes its own part only
    }
    Combine(&facts_, device->facts());
    uint64_t bytes = device->size();
    if (bytes > limits::kDiskBytesMax - facts_.size)
      return ErrnoErrorAsIs(EFBIG, absl::StrCat("with ", path, " the disk has more than ",
                                                limits::kDiskBytesMax, " bytes"));
    if (bytes > 0) parts_.push_back({facts_.size, std::move(device)});
    facts_.size += bytes;
    return absl::OkStatus();
  }

  Config config_;
  Facts facts_;
  std::vector<Part> parts_;
};

}  // namespace

const Spec& SplitSpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<Config>("split", "several files, one after the other, as one disk")
          .Param("file", &Config::file,
                 {.help = "the next part: a regular file or a block device",
                  .required = true,
                  .magic = true,
                  .path = PathUse::kReadWrite})
          .Description(
              "The sizes of the parts are taken when blk starts and must not change while they are "
              "served. If one part may not be written, the whole disk is read-only. Holes of the "
              "parts are holes of the disk, and trims and zeroes make some.")
          .PrintedExample("split(file=disk.part1,file=disk.part2)", "a disk that was cut in two")
          .Make([](Config config) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<SplitLayer>(std::move(config));
          }));
  return spec;
}

}  // namespace blk
