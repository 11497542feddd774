#pragma once
// Filters in tests: a layer that gives out a device of the test's, a filter from its Spec over it,
// and a coroutine run on a loop of its own. One thread.
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "src/core/layer.h"
#include "src/core/loop.h"
#include "src/core/spec.h"

namespace blk::test {

// Opens what `open` returns, which is `device` each time unless the test says otherwise.
class DeviceLayer final : public Layer {
 public:
  explicit DeviceLayer(DevicePtr device)
      : open([device = std::move(device)](const OpenArgs&) { return device; }) {}
  explicit DeviceLayer(std::function<absl::StatusOr<DevicePtr>(const OpenArgs&)> how)
      : open(std::move(how)) {}
  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    opened.push_back(args);
    return open(args);
  }
  std::function<absl::StatusOr<DevicePtr>(const OpenArgs&)> open;
  std::vector<OpenArgs> opened;
};

using Words = std::vector<std::pair<std::string, std::string>>;

// The filter over `below`, its parameters read as from the command line.
inline absl::StatusOr<LayerPtr> MakeFilter(const Spec& spec, const Words& words, LayerPtr below) {
  std::shared_ptr<void> config = spec.NewConfig();
  ParamReader reader(spec.params(), config.get(), spec.name());
  for (const auto& [key, value] : words) BLK_RETURN_IF_ERROR(reader.Give(key, value));
  BLK_RETURN_IF_ERROR(reader.Finish());
  BLK_ASSIGN_OR_RETURN(LayerPtr layer,
                       spec.MakeLayer(config.get(), {.below = std::move(below), .named = {}}));
  BLK_RETURN_IF_ERROR(layer->Ready());
  return layer;
}
inline absl::StatusOr<LayerPtr> MakeFilter(const Spec& spec, const Words& words, DevicePtr below) {
  return MakeFilter(spec, words, std::make_shared<DeviceLayer>(std::move(below)));
}

// Runs a coroutine function on a fresh pool to its end.
template <typename Result, typename... Args>
Result OnLoop(Task<Result> (*use)(Args...), std::type_identity_t<Args>... args) {
  LoopPool pool(1);
  return pool.RunMain(use(std::forward<Args>(args)...));
}

inline Task<absl::StatusOr<DevicePtr>> OpenOn(Layer* layer, OpenArgs args) {
  co_return co_await layer->Open(std::move(args));
}
// The device that a filter without waiting in Open gives.
inline absl::StatusOr<DevicePtr> OpenNow(const LayerPtr& layer, OpenArgs args = {}) {
  return OnLoop(OpenOn, layer.get(), std::move(args));
}

// Both at once: a device over `below`, which keeps its layer.
inline absl::StatusOr<DevicePtr> OpenFilter(const Spec& spec, const Words& words, DevicePtr below,
                                            OpenArgs args = {}) {
  BLK_ASSIGN_OR_RETURN(LayerPtr layer, MakeFilter(spec, words, std::move(below)));
  BLK_ASSIGN_OR_RETURN(DevicePtr device, OpenNow(layer, std::move(args)));
  return DevicePtr(device.get(), [layer, device](Device*) {});
}

}  // namespace blk::test
