#pragma once
// A Loop without threads, descriptors or time, for tests and fuzz targets that bring their own
// streams: Run() resumes what was posted until nothing is left. Timers fire only when asked to. One
// thread.
#include <deque>

#include "src/core/loop.h"

namespace blk::test {

class QueueLoop : public Loop {
 public:
  QueueLoop() { SetCurrent(this); }
  ~QueueLoop() override { SetCurrent(nullptr); }

  void Post(std::coroutine_handle<> handle) override { ready_.push_back(handle); }
  int64_t NowNs() override { return now_ns_; }
  uint64_t Random() override { return 4; }
  Task<void> Offload(absl::AnyInvocable<void()> work) override {
    work();
    return {};
  }
  std::unique_ptr<Watch> WatchDescriptor(int) override {
    CheckFailed("this loop has no descriptors", __FILE__, __LINE__);
  }

  // Whether there was anything to do.
  bool Run() {
    const bool any = !ready_.empty();
    while (!ready_.empty()) {
      std::coroutine_handle<> next = ready_.front();
      ready_.pop_front();
      next.resume();
    }
    return any;
  }
  void FireTimers(int64_t passed_ns) {
    now_ns_ += passed_ns;
    RunTimers();
  }

 private:
  std::deque<std::coroutine_handle<>> ready_;
  int64_t now_ns_ = 1'000'000'000;
};

}  // namespace blk::test
