#include "src/core/loop.h"

#include <sys/random.h>

#include <asio/io_context.hpp>
#include <asio/posix/stream_descriptor.hpp>
#include <asio/post.hpp>
#include <asio/steady_timer.hpp>
#include <asio/thread_pool.hpp>
#include <atomic>
#include <chrono>
#include <optional>

#include "src/core/limits.h"

namespace blk {
namespace {

thread_local Loop* current_loop = nullptr;

internal::Detached Drive(Task<void> task) { co_await std::move(task); }

internal::Detached DriveOn(Loop* loop, Task<void> task) {
  co_await ResumeOn{loop};
  co_await std::move(task);
}

int64_t MonotonicNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
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
  TimersChanged();
  return id;
}

int64_t Loop::RunTimers() {
  int64_t now_ns = NowNs();
  while (!timers_.empty() && timers_.begin()->first.first <= now_ns) {
    auto node = timers_.extract(timers_.begin());
    node.mapped()();
  }
  return timers_.empty() ? INT64_MAX : timers_.begin()->first.first;
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

namespace {

class AsioWatch final : public Watch {
 public:
  // Regular files cannot be watched and never make anybody wait: waits on them end at once.
  AsioWatch(asio::io_context& context, int fd) : descriptor_(context) {
    descriptor_.assign(fd, error_);
  }
  ~AsioWatch() override {
    if (!error_) descriptor_.release();
  }
  Task<absl::Status> Readable() override { return Wait(asio::posix::stream_descriptor::wait_read); }
  Task<absl::Status> Writable() override {
    return Wait(asio::posix::stream_descriptor::wait_write);
  }
  void Cancel() override {
    cancelled_ = true;
    asio::error_code ignored;
    if (!error_) descriptor_.cancel(ignored);
  }

 private:
  using WaitType = asio::posix::stream_descriptor::wait_type;
  struct Awaiter {
    asio::posix::stream_descriptor& descriptor;
    WaitType type;
    asio::error_code error{};
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) {
      descriptor.async_wait(type, [this, handle](asio::error_code e) {
        error = e;
        handle.resume();
      });
    }
    asio::error_code await_resume() const noexcept { return error; }
  };
  Task<absl::Status> Wait(WaitType type) {
    if (cancelled_) co_return ErrnoErrorAsIs(ECANCELED, "cancelled");
    if (error_ == asio::error::no_permission) co_return absl::OkStatus();
    if (error_) co_return ErrnoError(error_.value(), "cannot watch a descriptor");
    asio::error_code error = co_await Awaiter{descriptor_, type};
    if (error == asio::error::operation_aborted) co_return ErrnoErrorAsIs(ECANCELED, "cancelled");
    if (error) co_return ErrnoError(error.value(), "cannot wait for a descriptor");
    co_return absl::OkStatus();
  }
  asio::posix::stream_descriptor descriptor_;
  asio::error_code error_;
  bool cancelled_ = false;
};

// The threads for blocking work; they start with the first of it, since many runs need none.
class OffloadPool {
 public:
  explicit OffloadPool(int threads) : threads_(threads) {}
  ~OffloadPool() {
    if (pool_) pool_->join();
  }
  asio::thread_pool& get() {
    std::call_once(once_, [this] { pool_.emplace(threads_); });
    return *pool_;
  }

 private:
  const int threads_;
  std::once_flag once_;
  std::optional<asio::thread_pool> pool_;
};

// Posts from the loop's own thread go to a plain queue, posts from others to a guarded one; either
// is drained by one handler, so that a batch costs one wake-up.
class AsioLoop final : public Loop {
 public:
  explicit AsioLoop(OffloadPool& offload)
      : work_(asio::make_work_guard(context_)), timer_(context_), offload_(offload) {
    BLK_CHECK(getrandom(&random_, sizeof random_, 0) == sizeof random_);
  }

  void Run() {
    SetCurrent(this);
    context_.run();
    SetCurrent(nullptr);
  }
  void Stop() {
    asio::post(context_, [this] { context_.stop(); });
  }

  void Post(std::coroutine_handle<> handle) override {
    if (Current() == this) {
      local_.push_back(handle);
      if (std::exchange(local_scheduled_, true)) return;
      asio::post(context_, [this] { DrainLocal(); });
      return;
    }
    {
      std::lock_guard lock(mutex_);
      remote_.push_back(handle);
      if (remote_.size() > 1) return;
    }
    asio::post(context_, [this] { DrainRemote(); });
  }

  int64_t NowNs() override { return MonotonicNs(); }

  uint64_t Random() override {  // splitmix64
    uint64_t z = (random_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }

  Task<void> Offload(absl::AnyInvocable<void()> work) override {
    struct Awaiter {
      AsioLoop* loop;
      absl::AnyInvocable<void()>& work;
      bool await_ready() const noexcept { return false; }
      void await_suspend(std::coroutine_handle<> handle) {
        asio::post(loop->offload_.get(), [this, handle] {
          work();
          loop->Post(handle);  // the frame may be gone after this
        });
      }
      void await_resume() const noexcept {}
    };
    co_await Awaiter{this, work};
  }

  std::unique_ptr<Watch> WatchDescriptor(int fd) override {
    return std::make_unique<AsioWatch>(context_, fd);
  }

 private:
  void DrainLocal() {
    draining_.swap(local_);
    local_scheduled_ = false;
    for (auto handle : draining_) handle.resume();
    draining_.clear();
  }
  void DrainRemote() {
    std::vector<std::coroutine_handle<>> batch;
    {
      std::lock_guard lock(mutex_);
      batch.swap(remote_);
    }
    for (auto handle : batch) handle.resume();
  }
  void TimersChanged() override {
    if (std::exchange(timers_scheduled_, true)) return;
    asio::post(context_, [this] { ArmTimer(); });
  }
  void ArmTimer() {
    timers_scheduled_ = false;
    int64_t next_ns = RunTimers();
    if (next_ns == armed_ns_) return;
    armed_ns_ = next_ns;
    if (next_ns == INT64_MAX) {
      timer_.cancel();
      return;
    }
    timer_.expires_at(std::chrono::steady_clock::time_point(std::chrono::nanoseconds(next_ns)));
    timer_.async_wait([this](asio::error_code error) {
      if (error) return;
      armed_ns_ = INT64_MAX;
      ArmTimer();
    });
  }

  asio::io_context context_{1};
  asio::executor_work_guard<asio::io_context::executor_type> work_;
  asio::steady_timer timer_;
  OffloadPool& offload_;
  uint64_t random_ = 0;
  std::vector<std::coroutine_handle<>> local_, draining_;
  bool local_scheduled_ = false;
  bool timers_scheduled_ = false;
  int64_t armed_ns_ = INT64_MAX;
  std::mutex mutex_;
  std::vector<std::coroutine_handle<>> remote_;  // guarded by mutex_
};

}  // namespace

struct LoopPool::Impl {
  OffloadPool offload;
  std::vector<std::unique_ptr<AsioLoop>> loops;
  std::vector<Loop*> pointers;  // to the same
  std::vector<std::thread> threads;
  std::atomic<size_t> next{0};
  explicit Impl(int offload_threads) : offload(offload_threads) {}
};

LoopPool::LoopPool(int threads)
    : impl_(
          std::make_unique<Impl>(std::max(4, std::min(2 * threads, limits::kOffloadThreadsMax)))) {
  BLK_CHECK(threads >= 1);
  for (int i = 0; i < threads; ++i) {
    impl_->loops.push_back(std::make_unique<AsioLoop>(impl_->offload));
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
