#pragma once
// A filter layer whose whole work is to put a device over the one below, by a function.
//
// Owner: the filters that use it. Threads: `wrap` is called on any loop, several at a time.
#include <memory>
#include <utility>

#include "src/core/layer.h"

namespace blk {

template <typename Wrapper>
class WrapLayer final : public FilterLayer {
 public:
  WrapLayer(LayerPtr below, Wrapper wrap) : FilterLayer(std::move(below)), wrap_(std::move(wrap)) {}

 protected:
  absl::StatusOr<DevicePtr> Wrap(DevicePtr device, const OpenArgs& args) override {
    return wrap_(std::move(device), args);
  }

 private:
  const Wrapper wrap_;
};

// `wrap(DevicePtr below, const OpenArgs&)` returns the device over it or an error, which closes the
// one below again.
template <typename Wrapper>
absl::StatusOr<LayerPtr> MakeWrapLayer(LayerPtr below, Wrapper wrap) {
  return std::make_shared<WrapLayer<Wrapper>>(std::move(below), std::move(wrap));
}

}  // namespace blk
