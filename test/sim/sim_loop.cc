#include "test/sim/sim_loop.h"

namespace blk::sim {

SimLoop::~SimLoop() = default;

int64_t SimLoop::RandomDelayNs(int64_t longest_ns) {
  switch (Below(8)) {
    case 0:
    case 1:
    case 2:
      return 0;
    case 7:
      return static_cast<int64_t>(Below(longest_ns + 1));
    default:
      return static_cast<int64_t>(Below(std::min<int64_t>(longest_ns, 20'000) + 1));
  }
}

Task<void> SimLoop::Delay(int64_t longest_ns) {
  int64_t delay_ns = RandomDelayNs(longest_ns);
  if (delay_ns > 0) (void)co_await Sleep(delay_ns);
}

Task<void> SimLoop::Offload(absl::AnyInvocable<void()> work) {
  work();
  (void)co_await Sleep(1 + RandomDelayNs(1'000'000));
}

std::unique_ptr<Watch> SimLoop::WatchDescriptor(int) {
  CheckFailed("a simulated loop has no descriptors", __FILE__, __LINE__);
}

void SimLoop::RunReady(const bool* done) {
  for (uint64_t steps = 0; steps < kStepsMax; ++steps) {
    if (!ready_.empty()) {
      std::coroutine_handle<> handle = ready_.front();
      ready_.pop_front();
      handle.resume();
      continue;
    }
    // What main left behind is run to its end too, but time does not pass for it: timers of
    // streams and devices that nobody waits for any more are dropped.
    if (*done) return;
    int64_t next_ns = RunTimers();
    if (!ready_.empty() || *done) continue;
    if (next_ns == INT64_MAX) {
      if (!ready_.empty()) continue;
      return;  // nothing left to run
    }
    if (next_ns > now_ns_) now_ns_ = next_ns;
  }
}

}  // namespace blk::sim
