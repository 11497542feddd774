#pragma once
// Waiting for one another without blocking a thread. Mutex and Semaphore may be shared by
// coroutines on several loops: each is resumed by a post to its own loop. Event belongs to one
// loop. First come, first served. None of them can be cancelled: bound the work that is done while
// holding.
#include <coroutine>
#include <cstdint>
#include <deque>
#include <mutex>
#include <utility>

#include "src/core/loop.h"

namespace blk {

// Counts permits. Owner: whoever shares it; must outlive all waiters.
class Semaphore {
 public:
  explicit Semaphore(uint64_t permits) : free_(permits) {}

  auto Acquire(uint64_t permits = 1) {
    struct Awaiter {
      Semaphore& semaphore;
      uint64_t permits;
      bool await_ready() const { return semaphore.TryAcquire(permits); }
      bool await_suspend(std::coroutine_handle<> handle) const {
        std::lock_guard lock(semaphore.mutex_);
        if (semaphore.waiters_.empty() && semaphore.free_ >= permits) {
          semaphore.free_ -= permits;
          return false;
        }
        semaphore.waiters_.push_back({permits, Loop::Current(), handle});
        return true;
      }
      void await_resume() const noexcept {}
    };
    return Awaiter{*this, permits};
  }

  // False when it would have to wait.
  bool TryAcquire(uint64_t permits = 1) {
    std::lock_guard lock(mutex_);
    if (!waiters_.empty() || free_ < permits) return false;
    free_ -= permits;
    return true;
  }

  // Any thread.
  void Release(uint64_t permits = 1) {
    std::lock_guard lock(mutex_);
    free_ += permits;
    while (!waiters_.empty() && waiters_.front().permits <= free_) {
      free_ -= waiters_.front().permits;
      waiters_.front().loop->Post(waiters_.front().handle);
      waiters_.pop_front();
    }
  }

  uint64_t free() const {
    std::lock_guard lock(mutex_);
    return free_;
  }

 private:
  struct Waiter {
    uint64_t permits;
    Loop* loop;
    std::coroutine_handle<> handle;
  };
  mutable std::mutex mutex_;
  uint64_t free_;  // guarded by mutex_, as is the next
  std::deque<Waiter> waiters_;
};

// `MutexGuard guard = co_await mutex.Lock();`
class MutexGuard;
class Mutex {
 public:
  auto Lock();

 private:
  friend class MutexGuard;
  Semaphore semaphore_{1};
};

class [[nodiscard]] MutexGuard {
 public:
  explicit MutexGuard(Mutex* mutex) : mutex_(mutex) {}
  MutexGuard(MutexGuard&& other) noexcept : mutex_(std::exchange(other.mutex_, nullptr)) {}
  MutexGuard& operator=(MutexGuard&&) = delete;
  ~MutexGuard() {
    if (mutex_) mutex_->semaphore_.Release();
  }

 private:
  Mutex* mutex_;
};

inline auto Mutex::Lock() {
  struct Awaiter {
    Mutex* mutex;
    decltype(std::declval<Semaphore&>().Acquire()) inner;
    bool await_ready() const { return inner.await_ready(); }
    bool await_suspend(std::coroutine_handle<> handle) const { return inner.await_suspend(handle); }
    MutexGuard await_resume() const { return MutexGuard(mutex); }
  };
  return Awaiter{this, semaphore_.Acquire()};
}

// Something that happens, and may happen again: Wait() returns when Set() was called since the last
// Wait() returned. One loop, one waiter.
class Event {
 public:
  void Set() {
    if (waiter_) {
      Loop::Current()->Post(std::exchange(waiter_, nullptr));
    } else {
      set_ = true;
    }
  }
  auto Wait() {
    struct Awaiter {
      Event& event;
      bool await_ready() const noexcept { return std::exchange(event.set_, false); }
      void await_suspend(std::coroutine_handle<> handle) const {
        BLK_CHECK(!event.waiter_);
        event.waiter_ = handle;
      }
      void await_resume() const noexcept {}
    };
    return Awaiter{*this};
  }

 private:
  bool set_ = false;
  std::coroutine_handle<> waiter_;
};

}  // namespace blk
