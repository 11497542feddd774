#pragma once
// TaskScope owns every task that runs beside its starter: a scope ends joined. One loop.
#include <coroutine>

#include "src/core/task.h"

namespace blk {

class TaskScope {
 public:
  TaskScope() = default;
  TaskScope(const TaskScope&) = delete;
  ~TaskScope() { BLK_CHECK(running_ == 0); }

  // Starts `task` at once, in line, until it first suspends.
  void Spawn(Task<void> task) {
    if (task.ready()) return;
    ++running_;
    Drive(std::move(task));
  }

  size_t running() const { return running_; }

  // Waits until no task runs. One waiter at a time; tasks may be spawned meanwhile.
  auto Join() {
    struct Awaiter {
      TaskScope& scope;
      bool await_ready() const noexcept { return scope.running_ == 0; }
      void await_suspend(std::coroutine_handle<> handle) const noexcept { scope.joiner_ = handle; }
      void await_resume() const noexcept {}
    };
    return Awaiter{*this};
  }

 private:
  internal::Detached Drive(Task<void> task) {
    co_await std::move(task);
    if (--running_ == 0 && joiner_) std::exchange(joiner_, nullptr).resume();
  }

  size_t running_ = 0;
  std::coroutine_handle<> joiner_;
};

}  // namespace blk
