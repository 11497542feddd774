#pragma once
// The loop of a real process: epoll, edge-triggered, with every descriptor registered once. A
// request that finds the loop asleep costs epoll_wait, read and send, and no other system call
// (ARCHITECTURE.md, "Loops and waiting", has the figures). Owned by LoopPool.
#include <sys/epoll.h>

#include <atomic>
#include <condition_variable>
#include <deque>

#include "src/core/descriptor.h"
#include "src/core/loop.h"

namespace blk {

// The threads for blocking work, shared by the loops. Each starts when work finds nobody free, so
// that a run without such work has none. Thread-safe; the destructor ends what was posted.
class OffloadPool {
 public:
  explicit OffloadPool(int threads_max) : threads_max_(threads_max) {}
  ~OffloadPool();
  void Post(absl::AnyInvocable<void()> work);

 private:
  void Work();
  const size_t threads_max_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<absl::AnyInvocable<void()>> queue_;  // guarded by mutex_, as is the rest
  size_t idle_ = 0;
  bool ending_ = false;
  std::vector<std::thread> threads_;
};

class EpollWatch;

class EpollLoop final : public Loop {
 public:
  // `offload` is used as long as the loop runs, and ends before the loop does: it posts to it.
  explicit EpollLoop(OffloadPool* offload);
  ~EpollLoop() override;

  // Runs on this thread until Stop() (any thread), which lets what is queued run first.
  void Run();
  void Stop();

  void Post(std::coroutine_handle<> handle) override;
  int64_t NowNs() override;
  uint64_t Random() override;
  Task<void> Offload(absl::AnyInvocable<void()> work) override;
  std::unique_ptr<Watch> WatchDescriptor(int fd) override;
  void ExpectSoon() override { expected_soon_ = true; }

 private:
  friend class EpollWatch;
  // Registered watches; an event names its slot and generation, since a watch may be gone when its
  // event is looked at.
  struct Slot {
    EpollWatch* watch = nullptr;
    uint32_t generation = 0;
  };
  // Waiters of one watch.
  struct Woken {
    std::coroutine_handle<> reader, writer;
  };
  bool Register(int fd, EpollWatch* watch, uint32_t* slot);
  void Modify(int fd, uint32_t slot, bool writing);
  void ModifyLocked(int fd, uint32_t slot, bool writing);
  epoll_event EventsOf(uint32_t slot, bool writing) const;
  void Unregister(int fd, uint32_t slot);
  void RunQueued();
  void ArmTimer();
  bool WasTold();  // by another thread: something to resume, or to end
  void WaitForEvents(bool may_sleep);
  bool LookForEvents();
  int TakeEvents(bool may_sleep);
  void Dispatch(const epoll_event& event);
  void Wake();

  Descriptor epoll_, wake_, timer_;
  OffloadPool* const offload_;
  uint64_t random_ = 0;
  std::mutex slots_mutex_;   // a watch may be destroyed on another loop
  std::vector<Slot> slots_;  // guarded by slots_mutex_, as are the free ones
  std::vector<uint32_t> free_slots_;
  int64_t armed_ns_ = INT64_MAX;
  bool expected_soon_ = false;  // somebody said so since the last wait
  int looks_to_skip_ = 0, looks_in_vain_ = 0;
  std::vector<std::coroutine_handle<>> local_, batch_;
  std::atomic<bool> stopping_{false};
  std::atomic<bool> asleep_{false};  // or about to: whoever posts must wake it
  std::mutex mutex_;
  std::vector<std::coroutine_handle<>> remote_;  // guarded by mutex_
};

}  // namespace blk
