#include "src/core/daemon.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "src/core/param.h"

namespace blk {
namespace {

constexpr char kReady = 'R';
constexpr int kFirstActivated = 3;  // SD_LISTEN_FDS_START

// The parent's life after the fork.
[[noreturn]] void AwaitReady(int socket, pid_t child) {
  char byte = 0;
  ssize_t got;
  do {
    got = read(socket, &byte, 1);
  } while (got < 0 && errno == EINTR);
  if (got == 1 && byte == kReady) _exit(0);
  int status = 0;
  while (waitpid(child, &status, 0) < 0)
    if (errno != EINTR) _exit(1);
  if (WIFEXITED(status)) _exit(WEXITSTATUS(status));
  std::fprintf(stderr, "blk: error: killed by SIG%s before it was ready\n",
               sigabbrev_np(WTERMSIG(status)));
  _exit(128 + WTERMSIG(status));
}

absl::StatusOr<Descriptor> WritePidfile(const std::string& path) {
  Descriptor file(open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666));
  std::string text = absl::StrCat(getpid(), "\n");
  if (!file.valid() ||
      write(file.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()))
    return ErrnoError(errno, absl::StrCat("cannot write the pidfile ", path));
  return file;
}

absl::Status LetGoOfTerminal(bool keep_errors) {
  if (chdir("/") < 0) return ErrnoError(errno, "cannot enter the directory /");
  Descriptor null(open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null.valid()) return ErrnoError(errno, "cannot open /dev/null");
  std::fflush(nullptr);
  for (int fd = 0; fd < (keep_errors ? 2 : 3); ++fd) dup2(null.get(), fd);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<ReadyNotifier> ReadyNotifier::Start(DaemonOptions options) {
  ReadyNotifier notifier;
  if (!options.pidfile.empty()) {
    BLK_ASSIGN_OR_RETURN(notifier.pidfile_, AbsolutePath(options.pidfile));
  }
  notifier.background_ = options.background;
  notifier.keep_pidfile_ = options.keep_pidfile;
  notifier.keep_errors_ = options.keep_errors;
  if (!options.background) return notifier;
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
    return ErrnoError(errno, "cannot make a socket");
  Descriptor parents(ends[0]), childs(ends[1]);
  std::fflush(nullptr);  // or both would print it
  pid_t pid = fork();
  if (pid < 0) return ErrnoError(errno, "cannot go to the background");
  if (pid > 0) {
    childs.Reset();
    AwaitReady(parents.get(), pid);
  }
  // At once, so that programs started before the server is ready do not stay on the terminal.
  setsid();
  notifier.parent_ = std::move(childs);
  return notifier;
}

ReadyNotifier::~ReadyNotifier() {
  struct stat ours, there;
  // Only what we wrote: another server may have put its own in the same place.
  if (written_pidfile_.valid() && !keep_pidfile_ && fstat(written_pidfile_.get(), &ours) == 0 &&
      stat(pidfile_.c_str(), &there) == 0 && ours.st_ino == there.st_ino &&
      ours.st_dev == there.st_dev)
    unlink(pidfile_.c_str());
}

absl::Status ReadyNotifier::Ready() {
  if (!pidfile_.empty()) {
    BLK_ASSIGN_OR_RETURN(written_pidfile_, WritePidfile(pidfile_));
  }
  if (!background_) return absl::OkStatus();
  // The terminal first: whoever waits for the parent may wait for the end of its output, too.
  BLK_RETURN_IF_ERROR(LetGoOfTerminal(keep_errors_));
  if (send(parent_.get(), &kReady, 1, MSG_NOSIGNAL) != 1)
    return ErrnoErrorAsIs(ECANCELED, "the process that waits for the server was killed");
  parent_.Reset();
  return absl::OkStatus();
}

SignalWatcher::SignalWatcher(std::initializer_list<int> signals) {
  sigset_t set;
  sigemptyset(&set);
  for (int signal : signals) sigaddset(&set, signal);
  pthread_sigmask(SIG_BLOCK, &set, nullptr);
  fd_.Reset(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
  error_ = fd_.valid() ? 0 : errno;
}

Task<absl::StatusOr<int>> SignalWatcher::Next() {
  BLK_CHECK(waiting_ == nullptr);
  if (error_) co_return ErrnoError(error_, "cannot wait for signals");
  auto watch = Loop::Current()->WatchDescriptor(fd_.get());
  signalfd_siginfo info;
  absl::Status ready;
  while (ready.ok() && !cancelled_) {
    if (read(fd_.get(), &info, sizeof info) == sizeof info)
      co_return static_cast<int>(info.ssi_signo);
    waiting_ = watch.get();
    ready = co_await watch->Readable();
    waiting_ = nullptr;
  }
  if (cancelled_) co_return ErrnoErrorAsIs(ECANCELED, "cancelled");
  co_return ready;
}

void SignalWatcher::Cancel() {
  cancelled_ = true;
  if (waiting_) waiting_->Cancel();
}

absl::Status EndWithParent(pid_t parent, int signal) {
  if (prctl(PR_SET_PDEATHSIG, signal) < 0)
    return ErrnoError(errno, "cannot ask to be told of the parent's end");
  if (getppid() != parent)  // it ended before the line above could tell
    return ErrnoErrorAsIs(ESRCH, "the parent process has ended already");
  return absl::OkStatus();
}

absl::StatusOr<std::vector<int>> TakeActivatedSockets(std::string* notice) {
  notice->clear();
  const char* pid_text = getenv("LISTEN_PID");
  const char* count_text = getenv("LISTEN_FDS");
  if (!pid_text || !count_text) return std::vector<int>{};
  int64_t pid = 0;
  if (!absl::SimpleAtoi(pid_text, &pid)) {
    *notice = absl::StrCat("LISTEN_PID=", pid_text, " is not a number (ignored)");
    return std::vector<int>{};
  }
  if (pid != getpid()) {
    *notice = "LISTEN_PID was not for us (ignored)";
    return std::vector<int>{};
  }
  int count = 0;
  if (!absl::SimpleAtoi(count_text, &count))
    return absl::InvalidArgumentError(
        absl::StrCat("socket activation: LISTEN_FDS=", count_text, " is not a number"));
  if (count < 1 || count > 1000)
    return absl::InvalidArgumentError(
        absl::StrCat("socket activation: LISTEN_FDS=", count_text, " out of range"));
  std::vector<int> descriptors;
  for (int fd = kFirstActivated; fd < kFirstActivated + count; ++fd) {
    int listens = 0;
    socklen_t bytes = sizeof listens;
    auto bad = [fd] {
      return absl::StrCat("socket activation: invalid file descriptor fd = ", fd);
    };
    if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &bytes) < 0)
      return ErrnoError(errno, bad());
    if (!listens) return ErrnoErrorAsIs(EINVAL, absl::StrCat(bad(), ": it does not listen"));
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    descriptors.push_back(fd);
  }
  for (const char* name : {"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"}) unsetenv(name);
  return descriptors;
}

}  // namespace blk
