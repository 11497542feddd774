// offset: a byte range of the disk below as a disk. Parallel-safe: no state.
#include <cerrno>

#include "src/backends/filters/window_device.h"
#include "src/backends/filters/wrap_layer.h"
#include "src/core/spec.h"

namespace blk {
namespace {

struct Config {
  Size offset;
  std::optional<Size> range;
};

absl::StatusOr<DevicePtr> Wrap(DevicePtr below, uint64_t offset, std::optional<Size> range) {
  const uint64_t real = below->size();
  if (offset > real)
    return ErrnoErrorAsIs(EINVAL, absl::StrCat("offset (", offset,
                                               ") is beyond the end of the device below, which has "
                                               "a size of ",
                                               real));
  const uint64_t size = range ? range->bytes : real - offset;
  if (size > real - offset)
    return ErrnoErrorAsIs(
        EINVAL, absl::StrCat("offset+range (", offset, "+", size,
                             ") is beyond the end of the device below, which has a size of ", real,
                             "; the filter truncate can extend it"));
  return MakeWindow(std::move(below), offset, size);
}

}  // namespace

const Spec& OffsetSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("offset", "a byte range of the disk")
          .Param("offset", &Config::offset, {.help = "where the range begins"})
          .Param("range", &Config::range, {.help = "its length; without it, all that follows"})
          .Description("It is an error if offset or range reach beyond the end of the disk below.")
          .Example("offset(offset=64K,range=512K)+memory:1M")
          .Make([](Config config, LayerPtr below) {
            return MakeWrapLayer(std::move(below), [config](DevicePtr device, const OpenArgs&) {
              return Wrap(std::move(device), config.offset.bytes, config.range);
            });
          }));
  return spec;
}

}  // namespace blk
