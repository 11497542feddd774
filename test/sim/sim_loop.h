#pragma once
// SimLoop: a Loop whose clock is simulated, so that no real time passes and one seed replays a run.
// Everything runs on the thread that calls Run(). When nothing is left to run but the main task has
// not ended, that is a deadlock, and Run() says so.
#include <deque>
#include <optional>
#include <random>

#include "src/core/loop.h"

namespace blk::sim {

class SimLoop final : public Loop {
 public:
  explicit SimLoop(uint64_t seed) : random_(seed) {}
  ~SimLoop() override;

  void Post(std::coroutine_handle<> handle) override { ready_.push_back(handle); }
  int64_t NowNs() override { return now_ns_; }
  uint64_t Random() override { return random_(); }
  // The work is done at once and its caller resumed after a while.
  Task<void> Offload(absl::AnyInvocable<void()> work) override;
  // There are no descriptors here: stops the program.
  std::unique_ptr<Watch> WatchDescriptor(int fd) override;

  // Up to `below`, exclusive.
  uint64_t Below(uint64_t below) { return random_() % below; }
  // True once in `times`.
  bool OneIn(uint64_t times) { return Below(times) == 0; }
  // Mostly nothing or microseconds, now and then as long as `longest_ns`.
  int64_t RandomDelayNs(int64_t longest_ns);
  // Resumes the caller after a random delay, which may be none.
  Task<void> Delay(int64_t longest_ns);

  // Runs `main` and all that it starts to its end. Nothing: a deadlock (its frames are leaked), or
  // more steps than any right run needs.
  template <typename T>
  std::optional<T> Run(Task<T> main) {
    std::optional<T> result;
    SetCurrent(this);
    Spawn(Finish(std::move(main), &result));
    RunReady(&result_known_);
    SetCurrent(nullptr);
    return result;
  }

 private:
  static constexpr uint64_t kStepsMax = 20'000'000;

  template <typename T>
  Task<void> Finish(Task<T> main, std::optional<T>* result) {
    result->emplace(co_await std::move(main));
    result_known_ = true;
  }
  void RunReady(const bool* done);

  std::mt19937_64 random_;
  int64_t now_ns_ = 1'000'000'000;
  std::deque<std::coroutine_handle<>> ready_;
  bool result_known_ = false;
};

}  // namespace blk::sim
