#pragma once
// Background: work that a device does beside its requests, such as prefetching. Bounded in number;
// whoever closes the device stops it and waits for it.
//
// Owner: a device; it must be stopped before it goes. Threads: any loop; a task runs on the loop
// that started it.
#include <stop_token>
#include <utility>

#include "src/core/device.h"
#include "src/core/sync.h"

namespace blk {

class Background {
 public:
  explicit Background(uint32_t tasks_max) : tasks_max_(tasks_max), free_(tasks_max) {}

  // False, and nothing runs, when there are as many as may be or after Stop(). `task` must be a
  // coroutine that has not begun; it does not begin before the caller suspends.
  bool Start(Task<void> task) {
    if (!free_.TryAcquire()) return false;
    Loop::Current()->Spawn(Run(std::move(task)));
    return true;
  }

  // For the calls of such tasks: they end soon after Stop() has begun.
  Call call() const { return {.stop = &token_}; }
  bool stopped() const { return token_.stop_requested(); }

  // Returns when nothing runs any more, and nothing can be started. Once.
  Task<void> Stop() {
    stop_.request_stop();
    co_await free_.Acquire(tasks_max_);
  }

 private:
  Task<void> Run(Task<void> task) {
    co_await Yield();  // whoever started it goes first
    co_await std::move(task);
    free_.Release();
  }

  const uint32_t tasks_max_;
  std::stop_source stop_;
  const std::stop_token token_ = stop_.get_token();
  Semaphore free_;
};

}  // namespace blk
