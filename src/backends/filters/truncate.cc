// truncate: cuts the disk, extends it with zeroes, or rounds its size. Parallel-safe: no state.
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "src/backends/filters/window_device.h"
#include "src/backends/filters/wrap_layer.h"
#include "src/core/spec.h"
#include "src/core/zeroes.h"

namespace blk {
namespace {

struct Config {
  std::optional<Size> size, round_up, round_down;
};

// More than the disk below has. What follows its end reads as zeroes, and nothing else can be
// written there.
class ExtendedDevice final : public Filter {
 public:
  ExtendedDevice(DevicePtr below, uint64_t size)
      : Filter(below, MakeFacts(*below, size)), real_bytes_(below->size()) {}

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    const uint64_t real = RealPart(offset, into.size());
    std::memset(into.data() + real, 0, into.size() - real);
    if (real == 0) return absl::OkStatus();
    return below().Read(call, offset, into.first(real));
  }
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override {
    const uint64_t real = RealPart(offset, from.size());
    if (!IsZero(from.data() + real, from.size() - real))
      return ErrnoErrorAsIs(ENOSPC, absl::StrCat("only zeroes can be written after the end of the "
                                                 "disk below, which is at ",
                                                 real_bytes_));
    return real == 0 ? Nothing() : below().Write(call, offset, from.first(real));
  }
  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override {
    const uint64_t real = RealPart(offset, length);
    return real == 0 ? Nothing() : below().Trim(call, offset, real);
  }
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override {
    const uint64_t real = RealPart(offset, length);
    return real == 0 ? Nothing() : below().Zero(call, offset, real);
  }
  Task<absl::Status> DoCache(const Call& call, uint64_t offset, uint64_t length) override {
    const uint64_t real = RealPart(offset, length);
    return real == 0 ? Nothing() : below().Cache(call, offset, real);
  }
  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override {
    const uint64_t real = RealPart(list->next(), list->end() - list->next());
    if (real > 0) {
      ExtentList part(list->next(), real, std::max<size_t>(list->room(), 1));
      BLK_CO_RETURN_IF_ERROR(co_await below().Extents(call, context, &part));
      for (const Extent& extent : part.extents()) list->Append(extent.length, extent.flags);
      if (list->next() < real_bytes_ || (call.flags & kRequestOne)) co_return absl::OkStatus();
    }
    list->Append(list->end() - list->next(), kExtentHoleZero);
    co_return absl::OkStatus();
  }

 private:
  static Facts MakeFacts(const Device& below, uint64_t size) {
    Facts facts = below.facts();
    facts.size = size;
    facts.extents = true;
    facts.contexts = {std::string(kBaseAllocation)};
    return facts;
  }
  static Task<absl::Status> Nothing() { return absl::OkStatus(); }
  // How much of [offset, offset + length) is on the disk below.
  uint64_t RealPart(uint64_t offset, uint64_t length) const {
    return offset >= real_bytes_ ? 0 : std::min(length, real_bytes_ - offset);
  }

  const uint64_t real_bytes_;
};

absl::StatusOr<uint64_t> NewSize(uint64_t size, const Config& config) {
  if (config.size) size = config.size->bytes;
  if (config.round_up) {
    const uint64_t step = config.round_up->bytes;
    const uint64_t more = (step - size % step) % step;
    if (more > limits::kDiskBytesMax - size)
      return ErrnoErrorAsIs(
          EFBIG, absl::StrCat("the size ", size, " cannot be rounded up to a multiple of ", step));
    size += more;
  }
  if (config.round_down) size -= size % config.round_down->bytes;
  return size;
}

absl::StatusOr<DevicePtr> Wrap(DevicePtr below, const Config& config) {
  BLK_ASSIGN_OR_RETURN(uint64_t size, NewSize(below->size(), config));
  if (size <= below->size()) return MakeWindow(std::move(below), 0, size);
  // The part of the last block that lies on the disk below could not be read.
  if (below->size() % below->facts().block.minimum != 0)
    return ErrnoErrorAsIs(EINVAL, "the disk below does not end at one of its blocks");
  return std::make_shared<ExtendedDevice>(std::move(below), size);
}

}  // namespace

const Spec& TruncateSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("truncate", "change the size of the disk")
          .Param("truncate", &Config::size, {.help = "the size, smaller or larger"})
          .Param("round-up", &Config::round_up,
                 {.help = "round the size up to a multiple of this", .min = "1"})
          .Param("round-down", &Config::round_down,
                 {.help = "round the size down to a multiple of this", .min = "1"})
          .Description(
              "Bytes after the end of the disk below read as zeroes; writing anything else there "
              "fails with ENOSPC.")
          .Example("truncate(truncate=1M)+memory:64K")
          .Example("truncate(round-up=4K)+memory:10001")
          .Make([](Config config, LayerPtr below) {
            return MakeWrapLayer(std::move(below), [config](DevicePtr device, const OpenArgs&) {
              return Wrap(std::move(device), config);
            });
          }));
  return spec;
}

}  // namespace blk
