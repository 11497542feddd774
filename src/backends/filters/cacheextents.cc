// cacheextents: remembers the last answer about extents, for clients that ask for one extent at a
// time of a source that is slow to answer.
//
// Parallel-safe: the answer is behind a lock that is held for moments. A change through any client
// makes all answers stale, also those that are under way.
#include <algorithm>
#include <atomic>
#include <mutex>

#include "src/backends/filters/request.h"
#include "src/backends/filters/wrap_layer.h"
#include "src/core/limits.h"
#include "src/core/spec.h"

namespace blk {
namespace {

class CacheExtentsDevice final : public RequestFilter {
 public:
  CacheExtentsDevice(DevicePtr below, std::atomic<uint64_t>* changes)
      : RequestFilter(std::move(below)), changes_(*changes) {}

 protected:
  Task<absl::Status> Handle(Request request) override {
    if (request.operation == Operation::kExtents) {
      if (Answer(request)) return absl::OkStatus();
      return Ask(request);
    }
    if (request.operation == Operation::kRead || request.operation == Operation::kFlush ||
        request.operation == Operation::kCache)
      return Perform(&below(), request);
    return Change(request);
  }

 private:
  Task<absl::Status> Change(Request request) {
    ++changes_;  // before, for answers that are given meanwhile, and after, for what they said
    absl::Status status = co_await Perform(&below(), request);
    ++changes_;
    co_return status;
  }

  // True when the remembered answer has something for this question.
  bool Answer(const Request& request) {
    std::lock_guard lock(mutex_);
    const uint64_t at = request.list->next();
    if (changes_ != known_changes_ || context_ != request.context || at < known_.start() ||
        at >= known_.next())
      return false;
    ExtentList part = Window(known_, at, request.list->end() - at, 0);
    for (const Extent& extent : part.extents()) {
      request.list->Append(extent.length, extent.flags);
      if (request.has(kRequestOne)) break;
    }
    return true;
  }

  // Asks for all extents even where one is wanted.
  Task<absl::Status> Ask(Request request) {
    const uint64_t changes = changes_;
    const Call call = request.call->With(0);
    ExtentList all(request.offset, request.length, limits::kStatusExtentsMax);
    BLK_CO_RETURN_IF_ERROR(co_await below().Extents(call, request.context, &all));
    for (const Extent& extent : all.extents()) {
      request.list->Append(extent.length, extent.flags);
      if (request.has(kRequestOne)) break;
    }
    std::lock_guard lock(mutex_);
    known_ = std::move(all);
    known_changes_ = changes;
    context_ = request.context;
    co_return absl::OkStatus();
  }

  std::atomic<uint64_t>& changes_;  // of the layer: how often anybody has changed anything
  std::mutex mutex_;                // guards what follows
  ExtentList known_{0, 0};
  uint64_t known_changes_ = 0;
  std::string context_;
};

}  // namespace

const Spec& CacheExtentsSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<NoConfig>("cacheextents", "remember the last answer about extents")
          .Example("cacheextents+memory:64K")
          .Make([](NoConfig, LayerPtr below) {
            auto changes = std::make_shared<std::atomic<uint64_t>>(0);
            return MakeWrapLayer(std::move(below), [changes](DevicePtr device, const OpenArgs&) {
              return absl::StatusOr<DevicePtr>(
                  std::make_shared<CacheExtentsDevice>(std::move(device), changes.get()));
            });
          }));
  return spec;
}

}  // namespace blk
