// count: counts the bytes that are read, written, zeroed and trimmed, and tells at the end.
//
// Parallel-safe: atomic numbers. Only operations that succeed count.
#include <array>
#include <atomic>

#include "src/backends/filters/request.h"
#include "src/core/spec.h"
#include "src/core/trace.h"

namespace blk {
namespace {

using Totals = std::array<std::atomic<uint64_t>, kOperations>;

class CountDevice final : public RequestFilter {
 public:
  CountDevice(DevicePtr below, Totals* totals)
      : RequestFilter(std::move(below)), totals_(*totals) {}

 protected:
  Task<absl::Status> Handle(Request request) override {
    Task<absl::Status> task = Perform(&below(), request);
    if (!task.ready()) return Finish(std::move(task), request.operation, request.length);
    return Count(std::move(task).Take(), request.operation, request.length);
  }

 private:
  Task<absl::Status> Finish(Task<absl::Status> task, Operation operation, uint64_t bytes) {
    co_return Count(co_await std::move(task), operation, bytes);
  }
  absl::Status Count(absl::Status status, Operation operation, uint64_t bytes) {
    if (status.ok())
      totals_[static_cast<int>(operation)].fetch_add(bytes, std::memory_order_relaxed);
    return status;
  }

  Totals& totals_;
};

class CountLayer final : public FilterLayer {
 public:
  using FilterLayer::FilterLayer;

  Task<absl::Status> Stop() override {
    auto total = [this](Operation operation) {
      return totals_[static_cast<int>(operation)].load();
    };
    LogNote(absl::StrCat("count: ", total(Operation::kRead), " bytes read, ",
                         total(Operation::kWrite), " written, ", total(Operation::kZero),
                         " zeroed, ", total(Operation::kTrim), " trimmed"));
    return FilterLayer::Stop();
  }

 protected:
  absl::StatusOr<DevicePtr> Wrap(DevicePtr device, const OpenArgs&) override {
    return std::make_shared<CountDevice>(std::move(device), &totals_);
  }

 private:
  Totals totals_ = {};
};

}  // namespace

const Spec& CountSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<NoConfig>("count", "count bytes read, written, zeroed and trimmed")
          .Description("One line tells the totals on standard error when the program ends.")
          .Example("count+memory:64K")
          .Make([](NoConfig, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<CountLayer>(std::move(below));
          }));
  return spec;
}

}  // namespace blk
