// cacheextents: remembers the last answer about extents, for clients that ask for one extent at a
// time of a source that is slow to answer.
//
// Parallel-safe: the answer is behind a lock that is held for moments. A change through any client
// makes all answers stale, also those that are under way.
#include <algorithm>
#include <atomic>
#include <map>
#include <memory>
#include <mutex>

#include "src/backends/filters/request.h"
#include "src/core/limits.h"
#include "src/core/spec.h"

namespace blk {
namespace {

// What is remembered of one export, for all its clients. A change makes it stale, also an answer
// that is under way.
class LastAnswer {
 public:
  void Changed() { ++changes_; }
  uint64_t changes() const { return changes_; }

  // True when there was something for this question.
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

  // `changes` from before the question.
  void Remember(const Request& request, ExtentList answer, uint64_t changes) {
    std::lock_guard lock(mutex_);
    known_ = std::move(answer);
    known_changes_ = changes;
    context_ = request.context;
  }

 private:
  std::atomic<uint64_t> changes_{0};
  std::mutex mutex_;  // guards what follows
  ExtentList known_{0, 0};
  uint64_t known_changes_ = 0;
  std::string context_;
};

class CacheExtentsDevice final : public RequestFilter {
 public:
  CacheExtentsDevice(DevicePtr below, std::shared_ptr<LastAnswer> last)
      : RequestFilter(std::move(below)), last_(std::move(last)) {}

 protected:
  Task<absl::Status> Handle(Request request) override {
    if (request.operation == Operation::kExtents) {
      if (last_->Answer(request)) return absl::OkStatus();
      return Ask(request);
    }
    if (request.operation == Operation::kRead || request.operation == Operation::kFlush ||
        request.operation == Operation::kCache)
      return Perform(&below(), request);
    return Change(request);
  }

 private:
  Task<absl::Status> Change(Request request) {
    last_
        ->Changed();  // before, for answers that are given meanwhile, and after, for what they said
    absl::Status status = co_await Perform(&below(), request);
    last_->Changed();
    co_return status;
  }

  // Asks for all extents even where one is wanted.
  Task<absl::Status> Ask(Request request) {
    const uint64_t changes = last_->changes();
    const Call call = request.call->With(0);
    ExtentList all(request.offset, request.length, limits::kStatusExtentsMax);
    BLK_CO_RETURN_IF_ERROR(co_await below().Extents(call, request.context, &all));
    for (const Extent& extent : all.extents()) {
      request.list->Append(extent.length, extent.flags);
      if (request.has(kRequestOne)) break;
    }
    last_->Remember(request, std::move(all), changes);
    co_return absl::OkStatus();
  }

  const std::shared_ptr<LastAnswer> last_;
};

class CacheExtentsLayer final : public FilterLayer {
 public:
  using FilterLayer::FilterLayer;

 protected:
  absl::StatusOr<DevicePtr> Wrap(DevicePtr device, const OpenArgs& args) override {
    std::lock_guard lock(mutex_);
    std::erase_if(answers_, [](const auto& entry) { return entry.second.expired(); });
    std::weak_ptr<LastAnswer>& entry = answers_[args.export_name];
    std::shared_ptr<LastAnswer> answer = entry.lock();
    if (!answer) entry = answer = std::make_shared<LastAnswer>();
    // Who comes after the last client of an export finds it, too.
    last_ = answer;
    return std::make_shared<CacheExtentsDevice>(std::move(device), std::move(answer));
  }

 private:
  std::mutex mutex_;                                          // guards what follows
  std::map<std::string, std::weak_ptr<LastAnswer>> answers_;  // by export name
  std::shared_ptr<LastAnswer> last_;                          // keeps one of them
};

}  // namespace

const Spec& CacheExtentsSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<NoConfig>("cacheextents", "remember the last answer about extents")
          .Example("cacheextents+memory:64K")
          .Make([](NoConfig, LayerPtr below) {
            return absl::StatusOr<LayerPtr>(std::make_shared<CacheExtentsLayer>(std::move(below)));
          }));
  return spec;
}

}  // namespace blk
