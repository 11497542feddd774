#include "src/core/spawner.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "src/core/limits.h"

// The spawner may have been forked from a process with threads, whose locks (malloc's too) may be
// held for ever here: no allocation, no stdio, no Status in this file.
namespace blk::internal {
namespace {

constexpr int kRequests = 3, kParent = 4, kSignals = 5;  // where the spawner keeps its descriptors
constexpr int kGraceMs = 3000;

struct Child {
  pid_t pid;
  int channel;  // -1: nobody is interested any more
  bool own_group;
};

struct State {
  Child children[limits::kProgramsMax];
  size_t count = 0;
  bool parent_watched = false;
  bool closed = false;                             // the last request has come
  uint32_t user = kSpawnKeep, group = kSpawnKeep;  // of programs
};

void Report(int fd, SpawnStage stage, int error) {
  SpawnFailure failure{stage, error};
  (void)!write(fd, &failure, sizeof failure);
}

void Reply(int channel, SpawnReplyKind kind, int value) {
  SpawnReply reply{kind, value};
  (void)send(channel, &reply, sizeof reply, MSG_NOSIGNAL | MSG_DONTWAIT);
}

void SendSignal(const Child& child, int signal) {
  kill(child.own_group ? -child.pid : child.pid, signal);
}

int64_t NowMs() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * int64_t{1000} + now.tv_nsec / 1'000'000;
}

// Handlers belong to the program that we were forked from. What is ignored stays so (nohup), except
// what blk itself ignores and what waiting for children needs.
void ResetSignals() {
  for (int number = 1; number < NSIG; ++number) {
    struct sigaction action;
    if (sigaction(number, nullptr, &action) == 0 && action.sa_handler != SIG_IGN)
      signal(number, SIG_DFL);
  }
  signal(SIGPIPE, SIG_DFL);
  signal(SIGCHLD, SIG_DFL);
}

void CloseFrom(int first) {
  if (close_range(first, ~0U, 0) == 0) return;
  for (int fd = first; fd < 65536; ++fd) close(fd);  // Linux before 5.9
}

// Leaves 0, 1, 2 (which lead nowhere) and ours: a pipe or socket of the parent that stayed open
// here would never be seen to end.
void ArrangeDescriptors(int requests_fd, int parent_pidfd) {
  int requests = fcntl(requests_fd, F_DUPFD, 16);
  int parent = parent_pidfd < 0 ? -1 : fcntl(parent_pidfd, F_DUPFD, 16);
  int null = open("/dev/null", O_RDWR);
  for (int fd = 0; fd < 3; ++fd) dup2(null >= 0 ? null : requests, fd);
  dup3(requests, kRequests, O_CLOEXEC);
  if (parent >= 0) {
    dup3(parent, kParent, O_CLOEXEC);
  } else {
    close(kParent);
  }
  sigset_t child;
  sigemptyset(&child);
  sigaddset(&child, SIGCHLD);
  int signals = signalfd(-1, &child, SFD_NONBLOCK);
  int high = fcntl(signals, F_DUPFD, 16);
  dup3(high, kSignals, O_CLOEXEC);
  CloseFrom(kSignals + 1);
}

char** TableAt(char* base, uint64_t offset) {
  auto* table = reinterpret_cast<uint64_t*>(base + offset);
  for (uint64_t* entry = table; *entry != 0; ++entry)
    *entry = reinterpret_cast<uint64_t>(base + *entry);
  return reinterpret_cast<char**>(table);
}

void WriteNumber(char* into, pid_t value) {
  char digits[16];
  int count = 0;
  for (; value > 0; value /= 10) digits[count++] = static_cast<char>('0' + value % 10);
  while (count > 0) *into++ = digits[--count];
}

// Puts each descriptor where the program wants it. All are moved out of the way first, since one
// may sit where another has to go.
int PlaceDescriptors(const SpawnBody& body, const uint64_t* targets, int* fds, int* report) {
  int above = kSignals;
  for (uint32_t i = 0; i < body.target_count; ++i)
    if (static_cast<int>(targets[i]) > above) above = static_cast<int>(targets[i]);
  *report = fcntl(*report, F_DUPFD_CLOEXEC, above + 1);
  if (*report < 0) return errno;
  for (uint32_t i = 0; i < body.target_count; ++i) {
    fds[i] = fcntl(fds[i], F_DUPFD_CLOEXEC, above + 1);
    if (fds[i] < 0) return errno;
  }
  for (uint32_t i = 0; i < body.target_count; ++i)
    if (dup2(fds[i], static_cast<int>(targets[i])) < 0) return errno;
  return 0;
}

// What the identity of this new process should be; an errno. Raw calls change this thread, which is
// the only one.
int BecomeIdentity(uint32_t user, uint32_t group) {
  const gid_t* groups = group == kSpawnKeep ? nullptr : &group;
  if (user != kSpawnKeep || group != kSpawnKeep)
    if (syscall(SYS_setgroups, groups ? 1 : 0, groups) < 0) return errno;
  if (group != kSpawnKeep && syscall(SYS_setgid, group) < 0) return errno;
  if (user != kSpawnKeep && syscall(SYS_setuid, user) < 0) return errno;
  return 0;
}

// In the new process.
[[noreturn]] void BecomeProgram(const State& state, char* base, int* fds, pid_t spawner) {
  auto& body = *reinterpret_cast<SpawnBody*>(base);
  int report = fds[2];
  if (int error = BecomeIdentity(state.user, state.group)) {
    Report(report, kSpawnIdentity, error);
    _exit(127);
  }
  prctl(PR_SET_PDEATHSIG, SIGKILL);      // (a change of identity would clear it)
  if (getppid() != spawner) _exit(127);  // it died before the line above
  if (body.own_group) setpgid(0, 0);
  if (fchdir(fds[3]) < 0) {
    Report(report, kSpawnDirectory, errno);
    _exit(127);
  }
  auto* targets = reinterpret_cast<uint64_t*>(base + body.targets);
  int unmoved = report;
  if (int error = PlaceDescriptors(body, targets, fds + kSpawnFixedDescriptors, &report)) {
    Report(report >= 0 ? report : unmoved, kSpawnDescriptors, error);
    _exit(127);
  }
  if (body.listen_pid) WriteNumber(base + body.listen_pid, getpid());
  // The free slot stays out of the table that is turned into pointers.
  char** argv = TableAt(base, body.arguments + sizeof(uint64_t));
  char** environment = TableAt(base, body.environment);
  char* path = base + body.path;
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
  execve(path, argv, environment);
  if (errno == ENOEXEC) {  // a script without #!, which shells run too
    argv[0] = path;
    argv[-1] = base + body.shell;
    execve(base + body.shell, argv - 1, environment);
  }
  Report(report, kSpawnExec, errno);
  _exit(127);
}

// True when the channel was kept.
bool Launch(State& state, char* base, int* fds) {
  int channel = fds[1], report = fds[2];
  if (state.count == limits::kProgramsMax) {
    Report(report, kSpawnFork, EAGAIN);
    return false;
  }
  auto& body = *reinterpret_cast<SpawnBody*>(base);
  pid_t spawner = getpid();
  pid_t pid = _Fork();
  if (pid == 0) BecomeProgram(state, base, fds, spawner);
  if (pid < 0) {
    Report(report, kSpawnFork, errno);
    return false;
  }
  if (body.own_group) setpgid(pid, pid);  // also here: a signal may come before it gets there
  Reply(channel, kStarted, pid);
  state.children[state.count++] = {pid, channel, body.own_group != 0};
  return true;
}

// Takes one request. False when the parent has ended.
bool TakeRequest(State& state) {
  SpawnPacket packet{};
  iovec part{&packet, sizeof packet};
  alignas(cmsghdr) char control[CMSG_SPACE(kSpawnDescriptorsMax * sizeof(int))];
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  ssize_t got = recvmsg(kRequests, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (got < 0) return errno == EAGAIN || errno == EINTR;
  if (got == 0) return false;

  int fds[kSpawnDescriptorsMax];
  size_t count = 0;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
    count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    std::memcpy(fds, CMSG_DATA(header), count * sizeof(int));
  }
  bool kept = false;
  if (count == 0 && packet.descriptors == 0) {
    if (packet.become_user != kSpawnKeep) state.user = packet.become_user;
    if (packet.become_group != kSpawnKeep) state.group = packet.become_group;
    state.closed |= packet.last != 0;
  } else if (state.closed) {
    if (count > 2) Report(fds[2], kSpawnFork, EPERM);
  } else if (count < kSpawnFixedDescriptors || count != packet.descriptors) {
    // The kernel cuts the list when this process has no numbers left.
    if (count > 2) Report(fds[2], kSpawnFork, EMFILE);
  } else if (struct stat body; fstat(fds[0], &body) == 0) {
    void* base =
        mmap(nullptr, body.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_POPULATE, fds[0], 0);
    if (base == MAP_FAILED) {
      Report(fds[2], kSpawnFork, errno);
    } else {
      kept = Launch(state, static_cast<char*>(base), fds);
      munmap(base, body.st_size);
    }
  }
  for (size_t i = 0; i < count; ++i)
    if (i != 1 || !kept) close(fds[i]);
  return true;
}

void Reap(State& state) {
  signalfd_siginfo ignored[8];
  while (read(kSignals, ignored, sizeof ignored) > 0) continue;
  for (;;) {
    siginfo_t info{};
    if (waitid(P_ALL, 0, &info, WEXITED | WNOHANG | WNOWAIT) < 0 || info.si_pid == 0) return;
    size_t index = 0;
    while (index < state.count && state.children[index].pid != info.si_pid) ++index;
    // The rest of the group goes before the leader is reaped: until then its number is not reused.
    if (index < state.count && state.children[index].own_group) kill(-info.si_pid, SIGKILL);
    int status = 0;
    waitpid(info.si_pid, &status, 0);
    if (index == state.count) continue;
    Child& child = state.children[index];
    if (child.channel >= 0) {
      Reply(child.channel, kExited, status);
      close(child.channel);
    }
    child = state.children[--state.count];
  }
}

void ServeChannel(Child& child) {
  int32_t signal = 0;
  ssize_t got = recv(child.channel, &signal, sizeof signal, MSG_DONTWAIT);
  if (got == sizeof signal) {
    SendSignal(child, signal);
  } else if (got >= 0 || (errno != EAGAIN && errno != EINTR)) {
    // Closed. A Process that goes has sent SIGKILL before; without that the parent is ending, and
    // End() will be gentler.
    close(child.channel);
    child.channel = -1;
  }
}

// The parent has ended: so does everything that it started.
[[noreturn]] void End(State& state) {
  for (size_t i = 0; i < state.count; ++i) SendSignal(state.children[i], SIGTERM);
  int64_t until_ms = NowMs() + kGraceMs;
  Reap(state);
  while (state.count > 0 && NowMs() < until_ms) {
    pollfd signals{kSignals, POLLIN, 0};
    poll(&signals, 1, static_cast<int>(until_ms - NowMs()) + 1);
    Reap(state);
  }
  for (size_t i = 0; i < state.count; ++i) SendSignal(state.children[i], SIGKILL);
  _exit(0);
}

}  // namespace

void RunSpawner(int requests_fd, int parent_pidfd) {
  sigset_t all;
  sigfillset(&all);
  sigprocmask(SIG_SETMASK, &all, nullptr);  // a Ctrl-C is the parent's business
  prctl(PR_SET_NAME, "blk-spawner");
  ResetSignals();
  ArrangeDescriptors(requests_fd, parent_pidfd);
  State state;
  state.parent_watched = parent_pidfd >= 0;
  for (;;) {
    pollfd polls[3 + limits::kProgramsMax];
    polls[0] = {kSignals, POLLIN, 0};
    polls[1] = {kRequests, POLLIN, 0};
    polls[2] = {state.parent_watched ? kParent : -1, POLLIN, 0};
    size_t children = state.count;
    for (size_t i = 0; i < children; ++i) polls[3 + i] = {state.children[i].channel, POLLIN, 0};
    if (poll(polls, 3 + children, -1) < 0) continue;
    // Channels first, while the table is as it was polled.
    for (size_t i = 0; i < children; ++i)
      if (polls[3 + i].revents) ServeChannel(state.children[i]);
    if (polls[0].revents) Reap(state);
    if (polls[2].revents) End(state);
    if (polls[1].revents && !TakeRequest(state)) End(state);
  }
}

}  // namespace blk::internal
