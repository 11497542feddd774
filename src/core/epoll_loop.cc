#include "src/core/epoll_loop.h"

#include <sched.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <sys/timerfd.h>

#include <cerrno>
#include <chrono>

namespace blk {
namespace {

constexpr int kEventsPerWait = 128;
// LookForEvents(): how long; when others must have wanted the processor; up to 2^8 - 1 waits are
// not looked at after looks in vain.
constexpr int64_t kLookNs = 100'000;
constexpr int64_t kOthersRanNs = 20'000;
constexpr int kLooksInVainMax = 8;
// Events that belong to no watch carry these instead of a slot and its generation.
constexpr uint64_t kWakeEvent = ~uint64_t{0};
constexpr uint64_t kTimerEvent = ~uint64_t{0} - 1;

}  // namespace

// ---- OffloadPool

OffloadPool::~OffloadPool() {
  {
    std::lock_guard lock(mutex_);
    ending_ = true;
  }
  ready_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void OffloadPool::Post(absl::AnyInvocable<void()> work) {
  std::unique_lock lock(mutex_);
  queue_.push_back(std::move(work));
  if (idle_ >= queue_.size()) return ready_.notify_one();
  if (threads_.size() >= threads_max_) return;
  try {
    threads_.emplace_back([this] { Work(); });
  } catch (const std::system_error&) {
    // The system gives no more threads: those that there are do it, or else this one.
    if (!threads_.empty()) return;
    work = std::move(queue_.back());
    queue_.pop_back();
    lock.unlock();
    work();
  }
}

void OffloadPool::Work() {
  std::unique_lock lock(mutex_);
  for (;;) {
    ++idle_;
    ready_.wait(lock, [this] { return !queue_.empty() || ending_; });
    --idle_;
    if (queue_.empty()) return;
    absl::AnyInvocable<void()> work = std::move(queue_.front());
    queue_.pop_front();
    lock.unlock();
    work();
    work = nullptr;
    lock.lock();
  }
}

// ---- EpollWatch

// Edge-triggered: an event that finds nobody waiting is remembered once, so a waiter may be woken
// in vain, which its contract allows, but never sleeps through an edge. Regular files cannot be
// watched and never make anybody wait.
class EpollWatch final : public Watch {
 public:
  EpollWatch(EpollLoop* loop, int fd) : loop_(loop), fd_(fd) {
    if (!loop->Register(fd, this, &slot_)) error_ = errno;
  }
  ~EpollWatch() override {
    if (!error_) loop_->Unregister(fd_, slot_);  // from here on no event comes
    BLK_CHECK(!in_.waiter && !out_.waiter);
  }

  Task<absl::Status> Readable() override { return Wait(&in_); }
  Task<absl::Status> Writable() override {
    WatchWriting();
    return Wait(&out_);
  }

  void Cancel() override {
    cancelled_ = true;
    for (Direction* direction : {&in_, &out_})
      if (direction->waiter) loop_->Post(std::exchange(direction->waiter, nullptr));
  }

  // Whom an event wakes. The loop holds slots_mutex_, so that this watch does not end meanwhile on
  // another loop, and resumes them without it: they may destroy this watch.
  EpollLoop::Woken Signal(uint32_t events) {
    EpollLoop::Woken woken;
    // The end of a stream may come with its last bytes, and has no edge of its own: from then on
    // nobody waits any more, since every read or write has an answer.
    const bool broken = events & (EPOLLHUP | EPOLLERR);
    const bool end = broken || (events & EPOLLRDHUP);
    if (end || (events & (EPOLLIN | EPOLLPRI))) woken.reader = in_.Signal(end);
    if (broken || (events & EPOLLOUT)) {
      if (!out_.waiter && std::exchange(writing_, false))
        loop_->ModifyLocked(fd_, slot_, /*writing=*/false);
      woken.writer = out_.Signal(broken);
    }
    return woken;
  }

 private:
  struct Direction {
    bool ready = false, ended = false;
    std::coroutine_handle<> waiter;

    std::coroutine_handle<> Signal(bool end) {
      ended |= end;
      ready = !waiter;
      return std::exchange(waiter, nullptr);
    }
  };
  struct Awaiter {
    Direction* direction;
    bool await_ready() const noexcept {
      return std::exchange(direction->ready, false) || direction->ended;
    }
    void await_suspend(std::coroutine_handle<> handle) const noexcept {
      BLK_CHECK(!direction->waiter);
      direction->waiter = handle;
    }
    void await_resume() const noexcept {}
  };

  // Only while somebody writes more than the kernel takes: a peer that reads makes an event each
  // time. Switching it on reports what is ready already.
  void WatchWriting() {
    if (!error_ && !std::exchange(writing_, true)) loop_->Modify(fd_, slot_, /*writing=*/true);
  }

  Task<absl::Status> Wait(Direction* direction) {
    if (error_ == EPERM) return absl::OkStatus();
    if (error_) return ErrnoError(error_, "cannot watch a descriptor");
    if (cancelled_) return ErrnoErrorAsIs(ECANCELED, "cancelled");
    return WaitForEdge(direction);
  }
  Task<absl::Status> WaitForEdge(Direction* direction) {
    co_await Awaiter{direction};
    if (cancelled_) co_return ErrnoErrorAsIs(ECANCELED, "cancelled");
    co_return absl::OkStatus();
  }

  EpollLoop* const loop_;
  const int fd_;
  uint32_t slot_ = 0;
  int error_ = 0;
  bool cancelled_ = false, writing_ = false;
  Direction in_, out_;
};

// ---- EpollLoop

EpollLoop::EpollLoop(OffloadPool* offload)
    : epoll_(epoll_create1(EPOLL_CLOEXEC)),
      wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)),
      timer_(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)),
      offload_(offload) {
  BLK_CHECK(epoll_.valid() && wake_.valid() && timer_.valid());
  BLK_CHECK(getrandom(&random_, sizeof random_, 0) == sizeof random_);
  epoll_event event{.events = EPOLLIN | EPOLLET, .data = {.u64 = kWakeEvent}};
  BLK_CHECK(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, wake_.get(), &event) == 0);
  event.data.u64 = kTimerEvent;
  BLK_CHECK(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, timer_.get(), &event) == 0);
}

EpollLoop::~EpollLoop() = default;

void EpollLoop::Run() {
  SetCurrent(this);
  for (;;) {
    RunQueued();
    if (stopping_) break;
    RunTimers();
    WaitForEvents(local_.empty());
  }
  RunQueued();  // what came while that ran, and before Stop()
  SetCurrent(nullptr);
}

void EpollLoop::Stop() {
  stopping_ = true;
  Wake();
}

void EpollLoop::Wake() {
  uint64_t one = 1;
  (void)!write(wake_.get(), &one, sizeof one);
}

void EpollLoop::Post(std::coroutine_handle<> handle) {
  if (Current() == this) return local_.push_back(handle);
  {
    std::lock_guard lock(mutex_);
    remote_.push_back(handle);
  }
  if (asleep_.exchange(false)) Wake();
}

// What is posted meanwhile waits for the next turn, after the descriptors had theirs.
void EpollLoop::RunQueued() {
  batch_.swap(local_);
  for (auto handle : batch_) handle.resume();
  batch_.clear();
  {
    std::lock_guard lock(mutex_);
    batch_.swap(remote_);
  }
  for (auto handle : batch_) handle.resume();
  batch_.clear();
}

bool EpollLoop::WasTold() {
  std::lock_guard lock(mutex_);
  return !remote_.empty() || stopping_;
}

void EpollLoop::WaitForEvents(bool may_sleep) {
  const bool expected_soon = std::exchange(expected_soon_, false);
  if (may_sleep) {
    if (expected_soon && LookForEvents()) return;
    ArmTimer();
    asleep_ = true;
    if (WasTold()) may_sleep = false;  // by a post that saw a loop awake
  }
  TakeEvents(may_sleep);
}

// Events for a while without sleep, since waking up costs more than most requests. Whoever else
// wants the processor gets it. After looking in vain it sleeps at once the next times.
bool EpollLoop::LookForEvents() {
  if (looks_to_skip_ > 0) return --looks_to_skip_, false;
  const int64_t begin_ns = NowNs();
  const int64_t end_ns = std::min(begin_ns + kLookNs, NextTimerNs());
  for (int64_t now_ns = begin_ns; now_ns < end_ns;) {
    if (TakeEvents(/*may_sleep=*/false) > 0) return looks_in_vain_ = 0, true;
    if (WasTold()) return true;
    sched_yield();
    const int64_t before_ns = std::exchange(now_ns, NowNs());
    if (now_ns - before_ns > kOthersRanNs) break;
  }
  looks_to_skip_ = (1 << looks_in_vain_) - 1;
  looks_in_vain_ = std::min(looks_in_vain_ + 1, kLooksInVainMax);
  return false;
}

int EpollLoop::TakeEvents(bool may_sleep) {
  epoll_event events[kEventsPerWait];
  const int count = epoll_wait(epoll_.get(), events, kEventsPerWait, may_sleep ? -1 : 0);
  asleep_ = false;
  for (int i = 0; i < count; ++i) Dispatch(events[i]);
  return count;
}

void EpollLoop::Dispatch(const epoll_event& event) {
  uint64_t ignored;
  if (event.data.u64 == kWakeEvent) {
    (void)!read(wake_.get(), &ignored, sizeof ignored);
  } else if (event.data.u64 == kTimerEvent) {
    (void)!read(timer_.get(), &ignored, sizeof ignored);
    armed_ns_ = INT64_MAX;
  } else {
    Woken woken;
    {
      std::lock_guard lock(slots_mutex_);
      const Slot& slot = slots_[static_cast<uint32_t>(event.data.u64)];
      if (slot.watch && slot.generation == event.data.u64 >> 32)
        woken = slot.watch->Signal(event.events);
    }
    if (woken.reader && woken.writer) Post(std::exchange(woken.writer, nullptr));
    if (woken.reader) woken.reader.resume();
    if (woken.writer) woken.writer.resume();
  }
}

// A timer that is armed too early is left: it wakes the loop once in vain.
void EpollLoop::ArmTimer() {
  int64_t next_ns = NextTimerNs();
  if (next_ns >= armed_ns_) return;
  if (!timer_.valid()) {
    timer_.Reset(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
    epoll_event event{.events = EPOLLIN | EPOLLET, .data = {.u64 = kTimerEvent}};
    BLK_CHECK(timer_.valid() && epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, timer_.get(), &event) == 0);
  }
  int64_t at_ns = std::max<int64_t>(next_ns, 1);  // zero would disarm it
  itimerspec at{.it_interval = {}, .it_value = {at_ns / 1'000'000'000, at_ns % 1'000'000'000}};
  BLK_CHECK(timerfd_settime(timer_.get(), TFD_TIMER_ABSTIME, &at, nullptr) == 0);
  armed_ns_ = next_ns;
}

int64_t EpollLoop::NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

uint64_t EpollLoop::Random() {  // splitmix64
  uint64_t z = (random_ += 0x9e3779b97f4a7c15);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

Task<void> EpollLoop::Offload(absl::AnyInvocable<void()> work) {
  struct Awaiter {
    EpollLoop* loop;
    absl::AnyInvocable<void()>& work;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) {
      loop->offload_->Post([this, handle] {
        work();
        loop->Post(handle);  // the frame may be gone after this
      });
    }
    void await_resume() const noexcept {}
  };
  co_await Awaiter{this, work};
}

std::unique_ptr<Watch> EpollLoop::WatchDescriptor(int fd) {
  return std::make_unique<EpollWatch>(this, fd);
}

epoll_event EpollLoop::EventsOf(uint32_t slot, bool writing) const {
  uint32_t events = EPOLLIN | EPOLLPRI | EPOLLRDHUP | EPOLLET;
  if (writing) events |= EPOLLOUT;
  return {.events = events, .data = {.u64 = uint64_t{slots_[slot].generation} << 32 | slot}};
}

bool EpollLoop::Register(int fd, EpollWatch* watch, uint32_t* slot) {
  std::lock_guard lock(slots_mutex_);
  if (free_slots_.empty()) {
    free_slots_.push_back(static_cast<uint32_t>(slots_.size()));
    slots_.emplace_back();
  }
  *slot = free_slots_.back();
  epoll_event event = EventsOf(*slot, false);
  slots_[*slot].watch = watch;  // the loop may see an event at once
  if (epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) < 0) {
    slots_[*slot].watch = nullptr;
    return false;
  }
  free_slots_.pop_back();
  return true;
}

void EpollLoop::Modify(int fd, uint32_t slot, bool writing) {
  std::lock_guard lock(slots_mutex_);
  ModifyLocked(fd, slot, writing);
}

void EpollLoop::ModifyLocked(int fd, uint32_t slot, bool writing) {
  epoll_event event = EventsOf(slot, writing);
  BLK_CHECK(epoll_ctl(epoll_.get(), EPOLL_CTL_MOD, fd, &event) == 0);
}

void EpollLoop::Unregister(int fd, uint32_t slot) {
  std::lock_guard lock(slots_mutex_);
  epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
  slots_[slot].watch = nullptr;
  ++slots_[slot].generation;
  free_slots_.push_back(slot);
}

}  // namespace blk
