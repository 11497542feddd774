#include "src/backends/filters/window_device.h"

#include <algorithm>
#include <cerrno>

namespace blk {
namespace {

Facts WindowFacts(const Device& below, uint64_t size) {
  Facts facts = below.facts();
  facts.size = size;
  return facts;
}

}  // namespace

WindowDevice::WindowDevice(DevicePtr below, uint64_t start, uint64_t size)
    : Filter(below, WindowFacts(*below, size), /*passes_data=*/true), start_(start) {}

Task<absl::Status> WindowDevice::DoExtents(const Call& call, std::string_view context,
                                           ExtentList* list) {
  return ExtentsMoved(&below(), call, context, start_, list);
}

Task<absl::Status> ExtentsMoved(Device* device, const Call& call, std::string_view context,
                                uint64_t start, ExtentList* list) {
  // Room for one at least: it may be more of the list's last extent.
  ExtentList inside(start + list->next(), list->end() - list->next(),
                    std::max<size_t>(list->room(), 1));
  BLK_CO_RETURN_IF_ERROR(co_await device->Extents(call, context, &inside));
  for (const Extent& extent : inside.extents()) list->Append(extent.length, extent.flags);
  co_return absl::OkStatus();
}

absl::StatusOr<DevicePtr> MakeWindow(DevicePtr below, uint64_t start, uint64_t size) {
  uint32_t minimum = below->facts().block.minimum;
  if (start % minimum != 0)
    return ErrnoErrorAsIs(
        EINVAL, absl::StrCat("the window begins at ", start,
                             ", which is no multiple of the minimum block size of ", minimum,
                             " below; put the filter blocksize between"));
  return std::make_shared<WindowDevice>(std::move(below), start, size);
}

}  // namespace blk
