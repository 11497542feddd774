// pause: holds requests back while told so over a control socket: `p` pauses and answers `P` when
// nothing is in flight, `r` goes on and answers `R`, anything else is answered with `X`.
//
// Parallel-safe: two atomics. Held requests look every few milliseconds, so that they end when
// their clients go. The control socket is served on the loop of Start().
#include <unistd.h>

#include <atomic>

#include "absl/strings/ascii.h"
#include "src/backends/filters/request.h"
#include "src/core/loop.h"
#include "src/core/scope.h"
#include "src/core/spec.h"
#include "src/core/trace.h"

namespace blk {
namespace {

constexpr int64_t kLookNs = 10'000'000;

struct Config {
  std::string socket;
};

struct Gate {
  std::atomic<bool> paused{false};
  std::atomic<uint64_t> in_flight{0};
};

class PauseDevice final : public RequestFilter {
 public:
  PauseDevice(DevicePtr below, Gate* gate) : RequestFilter(std::move(below)), gate_(*gate) {}

 protected:
  Task<absl::Status> Handle(Request request) override {
    // Counted first: whoever pauses sees either the count or that this waits.
    while (++gate_.in_flight, gate_.paused) {
      --gate_.in_flight;
      BLK_CO_RETURN_IF_ERROR(co_await SleepFor(*request.call, kLookNs));
    }
    absl::Status status = co_await Perform(&below(), request);
    --gate_.in_flight;
    co_return status;
  }

 private:
  Gate& gate_;
};

class PauseLayer final : public FilterLayer {
 public:
  PauseLayer(LayerPtr below, Config config)
      : FilterLayer(std::move(below)), config_(std::move(config)) {}
  ~PauseLayer() override {
    if (fd_ < 0) return;
    close(fd_);
    unlink(config_.socket.c_str());
  }

  absl::Status Ready() override {
    BLK_ASSIGN_OR_RETURN(fd_, ListenUnix(config_.socket));
    return absl::OkStatus();
  }
  Task<absl::Status> Start() override {
    watch_ = Loop::Current()->WatchDescriptor(fd_);
    scope_.Spawn(Serve());
    return FilterLayer::Start();
  }
  Task<absl::Status> Stop() override {
    stopping_ = true;
    if (watch_) watch_->Cancel();
    if (stream_) stream_->Cancel();
    co_await scope_.Join();
    watch_.reset();
    co_return co_await below().Stop();
  }

 protected:
  absl::StatusOr<DevicePtr> Wrap(DevicePtr device, const OpenArgs&) override {
    return std::make_shared<PauseDevice>(std::move(device), &gate_);
  }

 private:
  // One controller after the other.
  Task<void> Serve() {
    while (!stopping_) {
      auto connection = co_await Accept(fd_, watch_.get());
      if (!connection.ok()) {
        if (stopping_) co_return;
        LogError(absl::StrCat("pause: ", connection.status().message()));
        if (!(co_await Loop::Current()->Sleep(kLookNs * 10)).ok()) co_return;
        continue;
      }
      stream_ = MakeSocketStream(*connection);
      co_await Obey();
      stream_.reset();
    }
  }
  Task<void> Obey() {
    while (!stopping_) {
      char command;
      auto got = co_await stream_->ReadSome(std::span(&command, 1));
      if (!got.ok() || *got == 0) co_return;
      // `echo p | nc` sends an end of line, too.
      if (absl::ascii_isspace(static_cast<unsigned char>(command))) continue;
      char answer = co_await Do(command);
      const iovec part{&answer, 1};
      if (!(co_await stream_->WriteAll(std::span(&part, 1))).ok()) co_return;
    }
  }
  Task<char> Do(char command) {
    if (command == 'r') {
      gate_.paused = false;
      co_return 'R';
    }
    if (command != 'p') co_return 'X';
    gate_.paused = true;
    while (gate_.in_flight > 0 && !stopping_) (void)co_await Loop::Current()->Sleep(kLookNs);
    co_return 'P';
  }

  const Config config_;
  int fd_ = -1;
  Gate gate_;
  std::unique_ptr<Watch> watch_;
  StreamPtr stream_;
  TaskScope scope_;
  bool stopping_ = false;
};

}  // namespace

const Spec& PauseSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("pause", "hold requests back on demand")
          .Param("pause-control", &Config::socket,
                 {.help = "Unix socket for commands: p pauses, r goes on",
                  .required = true,
                  .path = PathUse::kCreate,
                  .later = true})
          .Description(
              "A command is answered with its capital letter when it is done; for p that is when "
              "all requests have ended that came before. Others are answered with X.")
          .PrintedExample("pause(pause-control=/run/pause)+disk.img", "for snapshots of disk.img")
          .Make([](Config config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<PauseLayer>(std::move(below), std::move(config));
          }));
  return spec;
}

}  // namespace blk
