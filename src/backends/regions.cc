#include "src/backends/regions.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "src/core/descriptor.h"
#include "src/core/loop.h"
#include "src/core/zeroes.h"

namespace blk {
namespace {

absl::Status ReadFile(const std::string& path, uint64_t offset, std::span<char> into) {
  Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return ErrnoErrorAsIs(EIO, ErrnoError(errno, path).message());
  while (!into.empty()) {
    ssize_t got = pread(file.get(), into.data(), into.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoError(errno, path);
    if (got == 0)
      return ErrnoErrorAsIs(EIO, absl::StrCat(path, " has become shorter while it was served"));
    into = into.subspan(got);
    offset += got;
  }
  return absl::OkStatus();
}

class RegionsDevice final : public Device {
 public:
  RegionsDevice(std::shared_ptr<const RegionList> regions, Facts facts)
      : Device(std::move(facts)), regions_(std::move(regions)) {}

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    while (!into.empty()) {
      Piece piece = PieceAt(offset, into.size());
      BLK_CO_RETURN_IF_ERROR(co_await ReadPiece(call, piece, into.first(piece.length)));
      offset += piece.length;
      into = into.subspan(piece.length);
    }
    co_return absl::OkStatus();
  }

  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override {
    while (!from.empty()) {
      Piece piece = PieceAt(offset, from.size());
      std::span<const char> part = from.first(piece.length);
      if (piece.in_device) {
        BLK_CO_RETURN_IF_ERROR(co_await piece.region->device->Write(call, piece.offset, part));
      } else if (!Holds(piece, part)) {
        co_return ErrnoErrorAsIs(
            EIO, absl::StrCat("what lies at offset ", offset, " is made up and cannot be changed"));
      }
      offset += piece.length;
      from = from.subspan(piece.length);
    }
    co_return absl::OkStatus();
  }

  Task<absl::Status> DoFlush(const Call& call) override {
    absl::Status first_error;
    for (const Region& region : regions_->regions()) {
      if (region.device) first_error.Update(co_await region.device->Flush(call));
    }
    co_return first_error;
  }

  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override {
    while (length > 0) {
      Piece piece = PieceAt(offset, length);
      if (piece.in_device)
        BLK_CO_RETURN_IF_ERROR(
            co_await piece.region->device->Trim(call, piece.offset, piece.length));
      offset += piece.length;
      length -= piece.length;
    }
    co_return absl::OkStatus();
  }

  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override {
    while (length > 0) {
      Piece piece = PieceAt(offset, length);
      if (piece.in_device) {
        BLK_CO_RETURN_IF_ERROR(
            co_await piece.region->device->Zero(call, piece.offset, piece.length));
      } else if (!IsZeroPiece(piece)) {
        co_return ErrnoErrorAsIs(
            EIO, absl::StrCat("what lies at offset ", offset, " is made up and cannot be changed"));
      }
      offset += piece.length;
      length -= piece.length;
    }
    co_return absl::OkStatus();
  }

  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override {
    while (!list->full()) {
      Piece piece = PieceAt(list->next(), list->end() - list->next());
      if (piece.in_device) {
        ExtentList inside(piece.offset, piece.length, list->room());
        BLK_CO_RETURN_IF_ERROR(co_await piece.region->device->Extents(call, context, &inside));
        for (const Extent& extent : inside.extents()) list->Append(extent.length, extent.flags);
      } else {
        const Region::Kind kind = piece.region->kind;
        const bool data = kind == Region::Kind::kBytes || kind == Region::Kind::kFile;
        list->Append(piece.length, data ? kExtentData : kExtentHoleZero);
      }
      if (call.flags & kRequestOne) break;
    }
    co_return absl::OkStatus();
  }

 private:
  // What of a request lies in one region, on one side of the end of its device.
  struct Piece {
    const Region* region;
    uint64_t offset, length;  // in the region
    bool in_device;
  };

  Piece PieceAt(uint64_t offset, uint64_t length) const {
    const std::vector<Region>& all = regions_->regions();
    const Region& region =
        *std::upper_bound(all.begin(), all.end(), offset,
                          [](uint64_t at, const Region& each) { return at < each.end(); });
    Piece piece{&region, offset - region.start, 0, false};
    piece.length = std::min(length, region.end() - offset);
    if (region.kind != Region::Kind::kDevice) return piece;
    const uint64_t device_bytes = std::min(region.length, region.device->size());
    piece.in_device = piece.offset < device_bytes;
    if (piece.in_device) piece.length = std::min(piece.length, device_bytes - piece.offset);
    return piece;
  }

  Task<absl::Status> ReadPiece(const Call& call, const Piece& piece, std::span<char> into) {
    switch (piece.region->kind) {
      case Region::Kind::kBytes:
        std::memcpy(into.data(), piece.region->bytes.data() + piece.offset, into.size());
        return absl::OkStatus();
      case Region::Kind::kFile:
        return ReadFilePiece(piece.region, piece.offset, into);
      case Region::Kind::kDevice:
        if (piece.in_device) return piece.region->device->Read(call, piece.offset, into);
        [[fallthrough]];
      case Region::Kind::kZeroes:
        break;
    }
    std::memset(into.data(), 0, into.size());
    return absl::OkStatus();
  }

  static Task<absl::Status> ReadFilePiece(const Region* region, uint64_t offset,
                                          std::span<char> into) {
    absl::Status status;
    co_await Loop::Current()->Offload([&] { status = ReadFile(region->path, offset, into); });
    co_return status;
  }

  static bool IsZeroPiece(const Piece& piece) {
    if (piece.region->kind == Region::Kind::kFile) return false;
    return piece.region->kind != Region::Kind::kBytes ||
           IsZero(piece.region->bytes.data() + piece.offset, piece.length);
  }

  static bool Holds(const Piece& piece, std::span<const char> bytes) {
    if (piece.region->kind == Region::Kind::kBytes)
      return std::memcmp(piece.region->bytes.data() + piece.offset, bytes.data(), bytes.size()) ==
             0;
    return piece.region->kind != Region::Kind::kFile && IsZero(bytes.data(), bytes.size());
  }

  const std::shared_ptr<const RegionList> regions_;
};

}  // namespace

Region& RegionList::Add(Region::Kind kind, uint64_t length) {
  regions_.push_back({.kind = kind, .start = size(), .length = length});
  return regions_.back();
}

void RegionList::AddBytes(std::string bytes) {
  if (bytes.empty()) return;
  const uint64_t length = bytes.size();
  Add(Region::Kind::kBytes, length).bytes = std::move(bytes);
}

void RegionList::AddZeroes(uint64_t length) {
  if (length > 0) Add(Region::Kind::kZeroes, length);
}

void RegionList::Align(uint64_t alignment) {
  AddZeroes((alignment - size() % alignment) % alignment);
}

void RegionList::AddDevice(DevicePtr device, uint64_t length) {
  if (length > 0) Add(Region::Kind::kDevice, length).device = std::move(device);
}

void RegionList::AddFile(std::string path, uint64_t length) {
  if (length > 0) Add(Region::Kind::kFile, length).path = std::move(path);
}

void RegionList::SetBytes(size_t index, std::string bytes) {
  BLK_CHECK(regions_[index].kind == Region::Kind::kBytes && regions_[index].length == bytes.size());
  regions_[index].bytes = std::move(bytes);
}

DevicePtr MakeRegionsDevice(std::shared_ptr<const RegionList> regions, Facts facts) {
  facts.size = regions->size();
  facts.extents = true;
  facts.multi_conn = true;
  return std::make_shared<RegionsDevice>(std::move(regions), std::move(facts));
}

}  // namespace blk
