#pragma once
// Event loops: the clock, timers, descriptors, random numbers and blocking work of one thread. All
// of blk reaches these only through Loop, so that the simulator can put its own in their place.
//
// Threads: a Loop runs on one thread; unless a method says "any thread", call it there. Coroutines
// suspended on a loop resume on it, in the order in which they became ready.
#include <sys/types.h>

#include <coroutine>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <stop_token>
#include <thread>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "src/core/task.h"

namespace blk {

// Readiness of one descriptor, which the watch does not own and which must outlive it.
class Watch {
 public:
  virtual ~Watch() = default;
  // OK when a read (write) may make progress; ECANCELED after Cancel(). One waiter per direction.
  virtual Task<absl::Status> Readable() = 0;
  virtual Task<absl::Status> Writable() = 0;
  // Waiters, present and future, get ECANCELED.
  virtual void Cancel() = 0;
};

class Loop {
 public:
  using TimerId = std::pair<int64_t, uint64_t>;

  virtual ~Loop() = default;
  // The loop that runs on this thread, or null.
  static Loop* Current();

  // Resumes `handle` on this loop, after what is already queued. Any thread; many posts from other
  // threads cost one wake-up.
  virtual void Post(std::coroutine_handle<> handle) = 0;

  virtual int64_t NowNs() = 0;  // monotonic
  virtual uint64_t Random() = 0;

  // `fire` runs on the loop at or after `at_ns` unless cancelled before.
  TimerId StartTimer(int64_t at_ns, absl::AnyInvocable<void()> fire);
  void CancelTimer(TimerId id) { timers_.erase(id); }

  // OK after `duration_ns`; ECANCELED as soon as `stop` (may be null) is requested.
  Task<absl::Status> Sleep(int64_t duration_ns, const std::stop_token* stop = nullptr);

  // Runs `work` on a thread where it may block. Returns when it has ended; it cannot be cancelled.
  virtual Task<void> Offload(absl::AnyInvocable<void()> work) = 0;

  virtual std::unique_ptr<Watch> WatchDescriptor(int fd) = 0;

  // For who knows that his next event is microseconds away: before its next sleep the loop looks
  // for events for a while, unless that was in vain lately.
  virtual void ExpectSoon() {}

  // How many loops share the work of this process, this one included.
  size_t pool_size() const { return pool_size_; }

  // Starts `task`; nobody waits for it. Any thread. Used to enter a loop from outside.
  void Spawn(Task<void> task);

 protected:
  // Runs timers that are due; returns the time of the next, or INT64_MAX.
  int64_t RunTimers();
  int64_t NextTimerNs() const { return timers_.empty() ? INT64_MAX : timers_.begin()->first.first; }
  static void SetCurrent(Loop* loop);

 private:
  friend class LoopPool;
  size_t pool_size_ = 1;
  uint64_t timer_sequence_ = 0;
  std::map<TimerId, absl::AnyInvocable<void()>> timers_;
};

// `co_await ResumeOn(loop)`: go on there. No suspension when already there.
struct ResumeOn {
  Loop* loop;
  bool await_ready() const noexcept { return Loop::Current() == loop; }
  void await_suspend(std::coroutine_handle<> handle) const { loop->Post(handle); }
  void await_resume() const noexcept {}
};

// The same, but always through the queue, also when already there.
struct PostTo {
  Loop* loop;
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) const { loop->Post(handle); }
  void await_resume() const noexcept {}
};

// `co_await Yield()`: let everything else that is ready run first.
struct Yield {
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) const { Loop::Current()->Post(handle); }
  void await_resume() const noexcept {}
};

// Runs `task` on `loop` and resumes the caller on its own loop.
template <typename T>
Task<T> RunOn(Loop* loop, Task<T> task) {
  Loop* home = Loop::Current();
  co_await ResumeOn{loop};
  if constexpr (std::is_void_v<T>) {
    co_await std::move(task);
    co_await ResumeOn{home};
  } else {
    T result = co_await std::move(task);
    co_await ResumeOn{home};
    co_return result;
  }
}

// The process's loops: one per thread, the first on the calling thread. Owns them, their threads
// and the threads for offloaded work.
class LoopPool {
 public:
  explicit LoopPool(int threads);
  ~LoopPool();  // Stop() must have been called and Run() returned
  // Runs loop 0 on this thread (and the others on theirs) until Stop(). Then the threads are
  // joined.
  void Run();
  // Any thread, also a signal watcher on a loop: loops return after what is queued.
  void Stop();
  size_t size() const;
  Loop* loop(size_t index) const;
  std::span<Loop* const> loops() const;  // as long as the pool lives
  // Round robin. Any thread.
  Loop* Next();

  // Runs `main` on loop 0 and the pool until it ends; the result is main's. For tools and tests.
  template <typename T>
  T RunMain(Task<T> main) {
    std::optional<T> result;
    loop(0)->Spawn(Finish(std::move(main), &result));
    Run();
    return *std::move(result);
  }

 private:
  template <typename T>
  Task<void> Finish(Task<T> main, std::optional<T>* result) {
    result->emplace(co_await std::move(main));
    Stop();
  }
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Runs `task` to its end on a loop of its own, in a thread of its own, and blocks meanwhile: for
// what must be done before the loops of the process run, or after. Nothing that belongs to that
// loop (streams, watches) may be kept.
template <typename T>
T RunApart(Task<T> task) {
  std::optional<T> result;
  std::thread thread([&] { result.emplace(LoopPool(1).RunMain(std::move(task))); });
  thread.join();
  return *std::move(result);
}

}  // namespace blk
