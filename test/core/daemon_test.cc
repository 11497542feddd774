#include "src/core/daemon.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>

#include "absl/strings/numbers.h"
#include "src/core/process.h"
#include "src/core/scope.h"
#include "src/core/stream.h"
#include "test/temporary.h"

using namespace blk;

namespace {

// Runs `body` in another process, whose exit status it returns: -SIGNAL if killed.
template <typename Body>
int InAnotherProcess(Body body) {
  std::fflush(nullptr);  // or both would print it
  pid_t pid = fork();
  if (pid == 0) {
    alarm(20);  // a test that hangs fails
    _exit(body());
  }
  int status = 0;
  REQUIRE(waitpid(pid, &status, 0) == pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

bool EventuallyTrue(auto condition) {
  for (int i = 0; i < 1000 && !condition(); ++i) usleep(5000);
  return condition();
}

bool Exists(const std::string& path) { return std::filesystem::exists(path); }

}  // namespace

TEST_CASE("the parent of a daemon ends with 0 once it is ready, and it lives on as a daemon does") {
  TemporaryDirectory directory;
  std::string here = std::filesystem::current_path();
  std::filesystem::current_path(directory.path());  // the pidfile's name is relative
  int status = InAnotherProcess([&] {
    pid_t session = getsid(0);
    auto notifier = ReadyNotifier::Start({.background = true, .pidfile = "pid"});
    if (!notifier.ok() || getsid(0) == session || getsid(0) != getpid()) return 1;
    if (Exists("pid")) return 2;  // too early
    if (!notifier->Ready().ok()) return 3;
    (void)EventuallyTrue([&] { return Exists(directory / "seen"); });
    return 0;
  });
  std::filesystem::current_path(here);
  REQUIRE(status == 0);
  pid_t pid = 0;
  REQUIRE(absl::SimpleAtoi(ReadWholeFile(directory / "pid"), &pid));
  std::string proc = "/proc/" + std::to_string(pid);
  CHECK(std::filesystem::read_symlink(proc + "/cwd") == "/");
  for (const char* fd : {"/fd/0", "/fd/1", "/fd/2"})
    CHECK(std::filesystem::read_symlink(proc + fd) == "/dev/null");
  directory.Write("seen", "");
  CHECK(EventuallyTrue([&] { return !Exists(directory / "pid"); }));
}

TEST_CASE("the parent of a daemon that fails or dies tells how") {
  CHECK(InAnotherProcess([] {
          auto notifier = ReadyNotifier::Start({.background = true});
          return notifier.ok() ? 5 : 6;
        }) == 5);
  CHECK(InAnotherProcess([] {
          int null = open("/dev/null", O_WRONLY);
          dup2(null, 2);  // what the parent says is tried by its exit status
          auto notifier = ReadyNotifier::Start({.background = true});
          if (notifier.ok()) kill(getpid(), SIGKILL);
          return 6;
        }) == 128 + SIGKILL);
}

TEST_CASE("a pidfile that cannot be written is an error, and in time") {
  CHECK(InAnotherProcess([] {
          auto notifier =
              ReadyNotifier::Start({.background = true, .pidfile = "/no/such/directory/pid"});
          if (!notifier.ok()) return 1;
          absl::Status ready = notifier->Ready();
          return ErrnoOf(ready) == ENOENT ? 7 : 2;
        }) == 7);
}

TEST_CASE("a server in the foreground writes a pidfile and keeps its place") {
  TemporaryDirectory directory;
  std::string pidfile = directory / "pid";
  CHECK(InAnotherProcess([&] {
          pid_t self = getpid();
          auto notifier = ReadyNotifier::Start({.pidfile = pidfile});
          if (!notifier.ok() || !notifier->Ready().ok() || getpid() != self) return 1;
          if (std::filesystem::current_path() == "/") return 2;
          _exit(ReadWholeFile(pidfile) == std::to_string(self) + "\n" ? 0 : 3);
        }) == 0);
  CHECK(Exists(pidfile));  // it ended without a farewell
  {
    auto notifier = ReadyNotifier::Start({.pidfile = pidfile});
    REQUIRE((notifier.ok() && notifier->Ready().ok()));
    CHECK(ReadWholeFile(pidfile) == std::to_string(getpid()) + "\n");
  }
  CHECK(!Exists(pidfile));
  {
    auto notifier = ReadyNotifier::Start({.pidfile = pidfile});
    REQUIRE((notifier.ok() && notifier->Ready().ok()));
    std::filesystem::remove(pidfile);
    directory.Write("pid", "another's");
  }
  CHECK(ReadWholeFile(pidfile) == "another's");
}

TEST_CASE("programs can be started before and after going to the background") {
  TemporaryDirectory directory;
  std::string result = directory / "result";
  CHECK(InAnotherProcess([&] {
          if (!Spawner::Start().ok()) return 1;
          auto notifier = ReadyNotifier::Start({.background = true});
          if (!notifier.ok() || !notifier->Ready().ok()) return 2;
          usleep(50'000);  // the parent and its spawner are gone
          auto process = StartProcess(ShellCommand("echo done > " + result));
          if (process.ok()) (void)(*process)->WaitBlocking();
          return 0;
        }) == 0);
  CHECK(EventuallyTrue([&] { return ReadWholeFile(result) == "done\n"; }));
}

namespace {

Task<void> SignalSoon(int signal) {
  (void)co_await Loop::Current()->Sleep(5'000'000);
  kill(getpid(), signal);
}
Task<void> CancelSoon(SignalWatcher* watcher) {
  (void)co_await Loop::Current()->Sleep(5'000'000);
  watcher->Cancel();
}

Task<std::vector<int>> ThreeEvents(SignalWatcher* watcher) {
  TaskScope scope;
  std::vector<int> seen;
  for (int signal : {SIGUSR2, SIGUSR1}) {
    scope.Spawn(SignalSoon(signal));
    auto got = co_await watcher->Next();
    seen.push_back(got.ok() ? *got : -ErrnoOf(got.status()));
  }
  scope.Spawn(CancelSoon(watcher));
  auto cancelled = co_await watcher->Next();
  seen.push_back(-ErrnoOf(cancelled.status()));
  co_await scope.Join();
  co_return seen;
}

}  // namespace

TEST_CASE("signals are events of a loop, whatever the thread they hit") {
  CHECK(InAnotherProcess([] {
          SignalWatcher watcher({SIGUSR1, SIGUSR2});
          LoopPool pool(3);
          std::vector<int> seen = pool.RunMain(ThreeEvents(&watcher));
          return seen == std::vector<int>{SIGUSR2, SIGUSR1, -ECANCELED} ? 0 : 1;
        }) == 0);
}

TEST_CASE("a process that ends with its parent does so when the parent is killed") {
  int ends[2];
  REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
  pid_t parent = fork();
  if (parent == 0) {
    pid_t self = getpid();
    if (fork() == 0) {
      if (!EndWithParent(self, SIGKILL).ok()) _exit(1);
      (void)!write(ends[1], "x", 1);
      pause();
    }
    close(ends[1]);
    pause();
  }
  close(ends[1]);
  char byte;
  REQUIRE(read(ends[0], &byte, 1) == 1);
  kill(parent, SIGKILL);
  waitpid(parent, nullptr, 0);
  CHECK(read(ends[0], &byte, 1) == 0);  // the only writer that is left is the child
  close(ends[0]);
}

TEST_CASE("a parent that has ended already is seen") {
  CHECK(InAnotherProcess(
            [] { return ErrnoOf(EndWithParent(getppid() + 1, SIGTERM)) == ESRCH ? 0 : 1; }) == 0);
}

namespace {

struct Activation {
  int error = 0;
  size_t count = 0;
  std::string notice, message;
};

// As a process finds itself with these variables and `sockets` listening sockets.
int Activate(const char* pid, const char* count, int sockets, bool (*right)(const Activation&)) {
  TemporaryDirectory directory;
  return InAnotherProcess([&] {
    for (int fd = 3; fd < 20; ++fd) close(fd);
    for (int i = 0; i < sockets; ++i)
      if (ListenUnix(directory / std::to_string(i)).value_or(-1) != 3 + i) return 1;
    setenv("LISTEN_PID", *pid ? pid : std::to_string(getpid()).c_str(), 1);
    setenv("LISTEN_FDS", count, 1);
    setenv("LISTEN_FDNAMES", "x", 1);
    Activation result;
    auto got = TakeActivatedSockets(&result.notice);
    result.error = ErrnoOf(got.status());
    result.message = got.status().message();
    if (got.ok()) result.count = got->size();
    if (!right(result)) {
      MESSAGE(result.error, " ", result.count, " ", result.notice, " ", result.message);
      return 2;
    }
    if (result.count == 0) return 0;
    if (getenv("LISTEN_PID") || getenv("LISTEN_FDS") || getenv("LISTEN_FDNAMES")) return 3;
    for (int fd : *got)
      if (fcntl(fd, F_GETFD) != FD_CLOEXEC || !(fcntl(fd, F_GETFL) & O_NONBLOCK)) return 4;
    return 0;
  });
}

}  // namespace

TEST_CASE("sockets of a superserver are taken") {
  auto two = [](const Activation& a) { return a.count == 2 && a.notice.empty(); };
  CHECK(Activate("", "2", 2, two) == 0);
}

TEST_CASE("activation that was not meant for us is ignored, with a notice") {
  CHECK(Activate("1", "1", 1, [](const Activation& a) {
          return a.error == 0 && a.count == 0 && a.notice == "LISTEN_PID was not for us (ignored)";
        }) == 0);
  CHECK(Activate("abc", "1", 1, [](const Activation& a) {
          return a.error == 0 && a.count == 0 &&
                 a.notice == "LISTEN_PID=abc is not a number (ignored)";
        }) == 0);
}

TEST_CASE("bad activation is an error that says what is bad") {
  CHECK(Activate("", "0", 1, [](const Activation& a) {
          return a.error == EINVAL && a.message == "socket activation: LISTEN_FDS=0 out of range";
        }) == 0);
  CHECK(Activate("", "-1", 1, [](const Activation& a) { return a.error == EINVAL; }) == 0);
  CHECK(Activate("", "two", 1, [](const Activation& a) {
          return a.message == "socket activation: LISTEN_FDS=two is not a number";
        }) == 0);
  CHECK(Activate("", "2", 1, [](const Activation& a) {
          return a.error == EBADF && a.message ==
                                         "socket activation: invalid file descriptor fd = 4: "
                                         "Bad file descriptor";
        }) == 0);
}
