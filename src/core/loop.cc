#include "src/core/loop.h"

#include <atomic>
#include <optional>

#include "src/core/epoll_loop.h"
#include "src/core/limits.h"

namespace blk {
namespace {

thread_local Loop* current_loop = nullptr;

internal::Detached Drive(Task<void> task) { co_await std::move(task); }

internal::Detached DriveOn(Loop* loop, Task<void> task) {
  co_await ResumeOn{loop};
  co_await std::move(task);
}

// Sleeping: resumed by the timer, or by the stop callback, whichever comes first. The callback may
// run on any thread, so it only posts; the loop then finds out which it was.
struct SleepAwaiter {
  Loop* loop;
  int64_t at_ns;
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) {
    timer = loop->StartTimer(at_ns, [handle] { handle.resume(); });
  }
  void await_resume() const noexcept {}
  Loop::TimerId timer{};
};

// Never in line: the loop may be in the middle of something that stop was requested from.
internal::Detached CancelTimerOn(Loop* loop, std::shared_ptr<std::optional<Loop::TimerId>> timer,
                                 std::coroutine_handle<> sleeper) {
  co_await PostTo{loop};
  if (!*timer) co_return;  // it woke by itself
  loop->CancelTimer(**timer);
  timer->reset();
  sleeper.resume();
}

// A sleep that can be stopped: the shared cell is empty once somebody has woken the sleeper.
struct StoppableSleepAwaiter {
  Loop* loop;
  int64_t at_ns;
  const std::stop_token& stop;
  std::shared_ptr<std::optional<Loop::TimerId>> timer =
      std::make_shared<std::optional<Loop::TimerId>>();
  std::optional<std::stop_callback<absl::AnyInvocable<void()>>> callback{};

  bool await_ready() const noexcept { return stop.stop_requested(); }
  void await_suspend(std::coroutine_handle<> handle) {
    *timer = loop->StartTimer(at_ns, [handle, cell = timer] {
      cell->reset();
      handle.resume();
    });
    callback.emplace(stop,
                     [loop = loop, cell = timer, handle] { CancelTimerOn(loop, cell, handle); });
  }
  void await_resume() const noexcept {}
};

}  // namespace

Loop* Loop::Current() { return current_loop; }
void Loop::SetCurrent(Loop* loop) { current_loop = loop; }

void Loop::Spawn(Task<void> task) {
  if (Current() == this) {
    Drive(std::move(task));
  } else {
    DriveOn(this, std::move(task));
  }
}

Loop::TimerId Loop::StartTimer(int64_t at_ns, absl::AnyInvocable<void()> fire) {
  TimerId id{at_ns, timer_sequence_++};
  timers_.emplace(id, std::move(fire));
  return id;
}

int64_t Loop::RunTimers() {
  if (timers_.empty()) return INT64_MAX;
  int64_t now_ns = NowNs();
  while (!timers_.empty() && timers_.begin()->first.first <= now_ns) {
    auto node = timers_.extract(timers_.begin());
    node.mapped()();
  }
  return NextTimerNs();
}

Task<absl::Status> Loop::Sleep(int64_t duration_ns, const std::stop_token* stop) {
  int64_t at_ns = NowNs() + duration_ns;
  if (stop == nullptr || !stop->stop_possible()) {
    co_await SleepAwaiter{this, at_ns};
    co_return absl::OkStatus();
  }
  co_await StoppableSleepAwaiter{this, at_ns, *stop};
  if (stop->stop_requested()) co_return ErrnoErrorAsIs(ECANCELED, "stopped while waiting");
  co_return absl::OkStatus();
}

struct LoopPool::Impl {
  std::vector<std::unique_ptr<EpollLoop>> loops;
  std::vector<Loop*> pointers;  // to the same
  std::vector<std::thread> threads;
  std::atomic<size_t> next{0};
  // Ends before the loops: a thread that has posted a result, with which the last task may have
  // ended, has yet to look whether that loop sleeps.
  OffloadPool offload;
  explicit Impl(int offload_threads) : offload(offload_threads) {}
};

LoopPool::LoopPool(int threads)
    : impl_(
          std::make_unique<Impl>(std::max(4, std::min(2 * threads, limits::kOffloadThreadsMax)))) {
  BLK_CHECK(threads >= 1);
  for (int i = 0; i < threads; ++i) {
    impl_->loops.push_back(std::make_unique<EpollLoop>(&impl_->offload));
    impl_->loops.back()->pool_size_ = threads;
    impl_->pointers.push_back(impl_->loops.back().get());
  }
}

LoopPool::~LoopPool() = default;

void LoopPool::Run() {
  for (size_t i = 1; i < impl_->loops.size(); ++i)
    impl_->threads.emplace_back([loop = impl_->loops[i].get()] { loop->Run(); });
  impl_->loops[0]->Run();
  for (std::thread& thread : impl_->threads) thread.join();
  impl_->threads.clear();
}

void LoopPool::Stop() {
  for (auto& loop : impl_->loops) loop->Stop();
}

std::span<Loop* const> LoopPool::loops() const { return impl_->pointers; }
size_t LoopPool::size() const { return impl_->loops.size(); }
Loop* LoopPool::loop(size_t index) const { return impl_->loops[index].get(); }
Loop* LoopPool::Next() { return impl_->loops[impl_->next++ % impl_->loops.size()].get(); }

}  // namespace blk
