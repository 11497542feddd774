#pragma once
// A layer without state per connection: every Open gives the same device, made beforehand.
// Threads: any; the device must be parallel-safe.
#include <memory>
#include <utility>

#include "src/core/layer.h"

namespace blk {

class OneDeviceLayer final : public Layer {
 public:
  explicit OneDeviceLayer(DevicePtr device) : device_(std::move(device)) {}
  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs) override {
    return absl::StatusOr<DevicePtr>(device_);
  }

 private:
  const DevicePtr device_;
};

// For a Spec's factory: a layer over a new `D(arguments...)`.
template <typename D, typename... Arguments>
absl::StatusOr<LayerPtr> MakeOneDeviceLayer(Arguments&&... arguments) {
  return std::make_shared<OneDeviceLayer>(
      std::make_shared<D>(std::forward<Arguments>(arguments)...));
}

}  // namespace blk
