// exitwhen: ends the server when something has happened outside and the clients have left.
//
// Parallel-safe: two atomics; the events are looked at when clients come and go, and, while there
// are none, from time to time on the loop of Start().
#include <poll.h>
#include <signal.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <stop_token>

#include "src/core/loop.h"
#include "src/core/process.h"
#include "src/core/scope.h"
#include "src/core/spec.h"
#include "src/core/trace.h"

namespace blk {
namespace {

constexpr int kHappened = 88;                     // the exit status of a script
constexpr int64_t kScriptNsMax = 60'000'000'000;  // then it is killed: nothing has happened

struct Config {
  std::vector<std::string> created, deleted, scripts;
  std::vector<int> pipes;
  std::vector<int> processes;
  Nanoseconds poll = std::chrono::seconds(60);

  bool empty() const {
    return created.empty() && deleted.empty() && scripts.empty() && pipes.empty() &&
           processes.empty();
  }
};

bool PipeClosed(int fd) {
  pollfd entry{fd, 0, 0};
  return poll(&entry, 1, 0) != 0;  // POLLHUP, POLLERR, or no such descriptor
}

// Whether any event has happened that needs no waiting.
bool HasHappened(const Config& config) {
  for (const std::string& path : config.created)
    if (access(path.c_str(), F_OK) == 0) return true;
  for (const std::string& path : config.deleted)
    if (access(path.c_str(), F_OK) != 0 && errno == ENOENT) return true;
  for (int fd : config.pipes)
    if (PipeClosed(fd)) return true;
  for (int pid : config.processes)
    if (kill(pid, 0) != 0 && errno == ESRCH) return true;
  return false;
}

class ExitWhenLayer final : public FilterLayer {
 public:
  ExitWhenLayer(LayerPtr below, Config config)
      : FilterLayer(std::move(below)), config_(std::move(config)) {}

  void AttachServer(ServerControl* server) override {
    server_ = server;
    FilterLayer::AttachServer(server);
  }
  Task<absl::Status> Start() override {
    if (server_ && !config_.empty()) scope_.Spawn(PollWhileIdle());
    return FilterLayer::Start();
  }
  Task<absl::Status> Preconnect(const Peer& peer) override {
    if (config_.empty()) return below().Preconnect(peer);
    return Checked(&peer);
  }
  Task<absl::Status> Stop() override {
    stop_.request_stop();
    co_await scope_.Join();
    co_return co_await below().Stop();
  }

 protected:
  absl::StatusOr<DevicePtr> Wrap(DevicePtr device, const OpenArgs& args) override {
    if (args.session && !config_.empty()) {
      ++open_;
      args.session->AtEnd([this] { return Left(); });
    }
    return device;
  }

 private:
  Task<absl::Status> Checked(const Peer* peer) {
    if (co_await Happened())
      co_return ErrnoErrorAsIs(ESHUTDOWN, "the server is about to end: no new clients");
    co_return co_await below().Preconnect(*peer);
  }

  Task<void> Left() {
    if (--open_ == 0 && server_ && co_await Happened()) server_->ShutdownServer();
  }

  // Once an event has happened it stays so.
  Task<bool> Happened() {
    if (!happened_ && HasHappened(config_)) happened_ = true;
    for (const std::string& script : config_.scripts) {
      if (happened_) break;
      auto output = co_await RunCommand(ShellCommand(script), "", {.timeout_ns = kScriptNsMax});
      if (!output.ok()) {
        LogError(absl::StrCat("exitwhen: ", output.status().message()));
      } else if (output->status.shell_code() == kHappened) {
        happened_ = true;
      } else if (!output->status.ok()) {
        LogError(absl::StrCat("exitwhen: the script ended with ", output->status.ToString()));
      }
    }
    co_return happened_;
  }

  Task<void> PollWhileIdle() {
    const std::stop_token stopped = stop_.get_token();
    do {
      if (open_ == 0 && co_await Happened() && open_ == 0) {
        server_->ShutdownServer();
        co_return;
      }
    } while ((co_await Loop::Current()->Sleep(config_.poll.count(), &stopped)).ok());
  }

  const Config config_;
  ServerControl* server_ = nullptr;  // null outside a server: then nothing is to be ended
  std::atomic<int> open_{0};         // by clients that have not left
  std::atomic<bool> happened_{false};
  TaskScope scope_;
  std::stop_source stop_;
};

}  // namespace

const Spec& ExitWhenSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("exitwhen", "end the server when something has happened")
          .Param("exit-when-file-created", &Config::created,
                 {.help = "this file exists", .path = PathUse::kRead, .later = true})
          .Param("exit-when-file-deleted", &Config::deleted,
                 {.help = "this file does not exist", .path = PathUse::kRead, .later = true})
          .Param("exit-when-pipe-closed", &Config::pipes,
                 {.help = "the other end of this open pipe was closed", .word = "FD", .min = "0"})
          .Param("exit-when-process-exits", &Config::processes,
                 {.help = "this process has ended", .word = "PID", .min = "1"})
          .Param("exit-when-script", &Config::scripts,
                 {.help = "this shell script ends with status 88", .word = "SCRIPT"})
          .Param("exit-when-poll", &Config::poll,
                 {.help = "how often to look while there are no clients", .min = "1ms"})
          .Description(
              "Any of the events is enough. Then no new clients are let in, and the server ends "
              "when the last one has left. A script that takes longer than a minute is killed.")
          .NeedsOf([](const Config& config) {
            std::vector<Need> needs;
            if (!config.scripts.empty()) needs.push_back({Need::Kind::kProgram, "sh"});
            return needs;
          })
          .Example("exitwhen(exit-when-file-created=/nonexistent/stop)+memory:64K")
          .Make([](Config config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<ExitWhenLayer>(std::move(below), std::move(config));
          }));
  return spec;
}

}  // namespace blk
