#include "src/core/process.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <filesystem>

#include "absl/strings/str_split.h"
#include "src/core/loop.h"
#include "src/core/scope.h"
#include "test/temporary.h"

using namespace blk;

namespace {

Command Shell(std::string script) { return ShellCommand(std::move(script)); }

std::string ReadAll(int fd) {
  std::string all;
  char buffer[4096];
  for (ssize_t got; (got = read(fd, buffer, sizeof buffer)) > 0;) all.append(buffer, got);
  return all;
}

// What a program writes to its stdout.
std::string OutputOf(Command command) {
  command.output = Redirect::Pipe();
  auto process = StartProcess(command);
  REQUIRE_MESSAGE(process.ok(), process.status().ToString());
  std::string output = ReadAll((*process)->output.get());
  CHECK((*process)->WaitBlocking(10'000).ok());
  return output;
}

ExitStatus StatusOf(const Command& command) {
  auto process = StartProcess(command);
  REQUIRE_MESSAGE(process.ok(), process.status().ToString());
  auto status = (*process)->WaitBlocking(10'000);
  REQUIRE_MESSAGE(status.ok(), status.status().ToString());
  return *status;
}

// The line that /proc has on a process, after its name: "S PARENT …". Empty when it has gone.
std::string StateOf(pid_t pid) {
  Descriptor stat(open(absl::StrCat("/proc/", pid, "/stat").c_str(), O_RDONLY | O_CLOEXEC));
  std::string text = ReadAll(stat.get());
  size_t end_of_name = text.rfind(") ");
  return end_of_name == std::string::npos ? "" : text.substr(end_of_name + 2);
}

// Zombies are not alive: only their parent has still to notice.
bool Alive(pid_t pid) {
  std::string state = StateOf(pid);
  return !state.empty() && state[0] != 'Z' && state[0] != 'X';
}

bool EndsWithin(pid_t pid, int milliseconds) {
  for (int i = 0; i < milliseconds / 5 && Alive(pid); ++i) usleep(5000);
  return !Alive(pid);
}

std::vector<pid_t> ChildrenOf(pid_t parent) {
  std::vector<pid_t> children;
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    pid_t pid = atoi(entry.path().filename().c_str());
    std::string state = pid > 0 ? StateOf(pid) : "";
    if (!state.empty() && atoi(state.c_str() + 2) == parent) children.push_back(pid);
  }
  return children;
}

pid_t SpawnerPid() {
  REQUIRE(Spawner::Start().ok());
  for (pid_t pid : ChildrenOf(getpid())) {
    Descriptor name(open(absl::StrCat("/proc/", pid, "/comm").c_str(), O_RDONLY | O_CLOEXEC));
    if (ReadAll(name.get()) == "blk-spawner\n") return pid;
  }
  FAIL("no spawner");
  return -1;
}

size_t DescriptorsOf(pid_t pid) {
  auto files = std::filesystem::directory_iterator("/proc/" + std::to_string(pid) + "/fd");
  return std::distance(begin(files), end(files));
}

std::string WriteWithMode(const TemporaryDirectory& directory, const char* name,
                          std::string_view text, mode_t mode) {
  std::string path = directory.Write(name, text);
  chmod(path.c_str(), mode);
  return path;
}

}  // namespace

TEST_CASE("a program's exit status comes back, and again") {
  CHECK(StatusOf(Shell("exit 0")).ok());
  CHECK(StatusOf(Shell("exit 7")).code == 7);
  CHECK(StatusOf(Shell("exit 7")).ToString() == "exit status 7");
  auto process = StartProcess(Shell("exit 3"));
  REQUIRE(process.ok());
  for (int i = 0; i < 3; ++i) CHECK((*process)->WaitBlocking()->code == 3);
  CHECK(ErrnoOf((*process)->Kill(SIGTERM)) == ESRCH);
}

TEST_CASE("a program killed by a signal says which") {
  ExitStatus own = StatusOf(Shell("kill -USR1 $$"));
  CHECK(own.signal == SIGUSR1);
  CHECK(own.shell_code() == 128 + SIGUSR1);
  CHECK(own.ToString() == "killed by SIGUSR1");
  auto process = StartProcess(Shell("exec sleep 1000"));
  REQUIRE(process.ok());
  CHECK(ErrnoOf((*process)->WaitBlocking(20).status()) == ETIMEDOUT);
  CHECK((*process)->Kill(SIGTERM).ok());
  CHECK((*process)->WaitBlocking()->signal == SIGTERM);
}

TEST_CASE("a storm of signals loses no exit status") {
  for (int round = 0; round < 50; ++round) {
    auto process = StartProcess(Shell("exec sleep 1000"));
    REQUIRE(process.ok());
    for (int i = 0; i < 100; ++i)
      if (!(*process)->Kill(SIGKILL).ok()) break;
    auto status = (*process)->WaitBlocking(10'000);
    REQUIRE_MESSAGE(status.ok(), status.status().ToString());
    CHECK(status->signal == SIGKILL);
  }
}

TEST_CASE("a program that cannot be run is an error with its name, reason and errno") {
  TemporaryDirectory directory;
  Command command;
  command.argv = {"blk-no-such-program"};
  command.environment = {{"PATH", "/usr/bin:/bin"}};
  absl::Status status = StartProcess(command).status();
  CHECK(ErrnoOf(status) == ENOENT);
  CHECK(status.message() ==
        "blk-no-such-program: there is no such program on the PATH (/usr/bin:/bin)");
  command.argv = {"/no/such/program"};
  status = StartProcess(command).status();
  CHECK(ErrnoOf(status) == ENOENT);
  CHECK(status.message() == "/no/such/program: cannot run it: No such file or directory");
  command.argv = {WriteWithMode(directory, "text", "no program", 0644)};
  CHECK(ErrnoOf(StartProcess(command).status()) == EACCES);
  command.argv = {WriteWithMode(directory, "broken", "#!/no/such/interpreter\n", 0755)};
  CHECK(ErrnoOf(StartProcess(command).status()) == ENOENT);
  command.argv = {"true"};
  command.directory = "/no/such/directory";
  CHECK(ErrnoOf(StartProcess(command).status()) == ENOENT);
}

TEST_CASE("a script without an interpreter line runs as a shell would run it") {
  TemporaryDirectory directory;
  Command command;
  command.argv = {WriteWithMode(directory, "script", "echo \"$0 $*\"", 0755), "a b", "c"};
  CHECK(OutputOf(command) == command.argv[0] + " a b c\n");
}

TEST_CASE("the environment is ours, changed as asked") {
  setenv("BLK_TEST_KEPT", "kept", 1);
  setenv("BLK_TEST_CHANGED", "old", 1);
  setenv("BLK_TEST_GONE", "old", 1);
  Command command = Shell(
      "echo $BLK_TEST_KEPT $BLK_TEST_CHANGED ${BLK_TEST_GONE-gone}; env | "
      "grep -c BLK_TEST_CHANGED=");
  command.environment = {{"BLK_TEST_CHANGED", "first"}, {"BLK_TEST_CHANGED", "last"}};
  command.unset = {"BLK_TEST_GONE"};
  CHECK(OutputOf(command) == "kept last gone\n1\n");
}

TEST_CASE("a large argument list and environment arrive whole") {
  Command command = Shell("echo $# ${#1} ${#BLK_TEST_LARGE}");
  command.argv.push_back("name");
  for (int i = 0; i < 1000; ++i) command.argv.push_back(std::string(1000, 'x'));
  command.environment = {{"BLK_TEST_LARGE", std::string(100'000, 'y')}};
  CHECK(OutputOf(command) == "1000 1000 100000\n");
}

TEST_CASE("a program is on the PATH that it gets, and we can be put on it first") {
  TemporaryDirectory directory;
  WriteWithMode(directory, "blk-test-tool", "#!/bin/sh\necho tool", 0755);
  Command command;
  command.argv = {"blk-test-tool"};
  command.environment = {{"PATH", directory.path() + ":/usr/bin:/bin"}};
  CHECK(OutputOf(command) == "tool\n");
  Command ours = Shell("echo \"$PATH\"");
  PutOurselvesOnPath(&ours);
  std::string here = std::filesystem::read_symlink("/proc/self/exe").parent_path();
  CHECK(OutputOf(ours) == here + ":" + getenv("PATH") + "\n");
}

TEST_CASE("a program has the descriptors that were named and no other") {
  Descriptor leak(open("/dev/null", O_RDONLY));  // not close-on-exec, and yet
  TemporaryDirectory directory;
  std::string three = WriteWithMode(directory, "three", "3", 0644),
              four = WriteWithMode(directory, "four", "4", 0644);
  Descriptor file3(open(three.c_str(), O_RDONLY | O_CLOEXEC));
  Descriptor file4(open(four.c_str(), O_RDONLY | O_CLOEXEC));
  Command command;
  command.argv = {"bash", "-c",
                  "cat <&3; cat <&4; cat <&77; echo; for f in /proc/$$/fd/*; do "
                  "[ -e $f ] && echo ${f##*/}; done"};
  // Each sits where another belongs, if the numbers fall that way.
  command.descriptors = {{4, file3.get()}, {3, file4.get()}, {77, leak.get()}};
  std::vector<std::string> lines = absl::StrSplit(OutputOf(command), '\n', absl::SkipEmpty());
  std::erase(lines, "255");  // bash's own
  CHECK(lines == std::vector<std::string>{"43", "0", "1", "2", "3", "4", "77"});
}

TEST_CASE("descriptors may trade places") {
  int pipe_a[2], pipe_b[2];
  REQUIRE((pipe2(pipe_a, O_CLOEXEC) == 0 && pipe2(pipe_b, O_CLOEXEC) == 0));
  (void)!write(pipe_a[1], "a", 1);
  (void)!write(pipe_b[1], "b", 1);
  Command command = Shell(absl::StrCat("head -c1 <&", pipe_a[0], "; head -c1 <&", pipe_b[0]));
  command.argv[0] = "bash";  // dash knows one digit only
  command.descriptors = {{pipe_a[0], pipe_b[0]}, {pipe_b[0], pipe_a[0]}};
  CHECK(OutputOf(command) == "ba");
  for (int fd : {pipe_a[0], pipe_a[1], pipe_b[0], pipe_b[1]}) close(fd);
}

TEST_CASE("signal mask and dispositions are fresh, also when started from a thread that blocks") {
  sigset_t mask, before;
  sigfillset(&mask);
  pthread_sigmask(SIG_SETMASK, &mask, &before);
  std::string status = OutputOf(Shell("grep -E 'SigBlk|SigIgn' /proc/self/status"));
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  std::vector<std::string> lines = absl::StrSplit(status, '\n', absl::SkipEmpty());
  REQUIRE(lines.size() == 2);
  CHECK(lines[0] == "SigBlk:\t0000000000000000");
  uint64_t ignored = strtoull(lines[1].c_str() + 8, nullptr, 16);
  CHECK((ignored >> (SIGPIPE - 1) & 1) == 0);
  struct sigaction ours;
  sigaction(SIGPIPE, nullptr, &ours);
  CHECK((ours.sa_handler == SIG_IGN));
}

TEST_CASE("input, directory and the place of stderr are as asked") {
  Command command = Shell("cat; pwd; echo error >&2");
  command.directory = "/usr";
  command.input = command.output = command.errors = Redirect::Pipe();
  auto process = StartProcess(command);
  REQUIRE(process.ok());
  CHECK(write((*process)->input.get(), "in\n", 3) == 3);
  (*process)->input.Reset();
  CHECK(ReadAll((*process)->output.get()) == "in\n/usr\n");
  CHECK(ReadAll((*process)->errors.get()) == "error\n");
  CHECK((*process)->WaitBlocking()->ok());
  Command quiet = Shell("cat; echo");
  quiet.input = Redirect::Null();
  CHECK(OutputOf(quiet) == "\n");
}

TEST_CASE("writing to a program that has ended is an error, not death") {
  Command command = Shell("exit 0");
  command.input = Redirect::Pipe();
  auto process = StartProcess(command);
  REQUIRE(process.ok());
  CHECK((*process)->WaitBlocking()->ok());
  CHECK(write((*process)->input.get(), "x", 1) == -1);
  CHECK(errno == EPIPE);
}

TEST_CASE("LISTEN_PID is the program's own") {
  Command command = Shell("echo $LISTEN_PID $$");
  command.environment = {{"LISTEN_PID", "wrong"}};
  command.listen_pid = true;
  std::vector<std::string> pids = absl::StrSplit(OutputOf(command), absl::ByAnyChar(" \n"));
  CHECK(pids[0] == pids[1]);
}

TEST_CASE("200 programs at a time leave no descriptor and no zombie") {
  pid_t spawner = SpawnerPid();
  CHECK(StatusOf(Shell("exit 0")).ok());
  // The spawner closes a program's channel a moment after it has told of its end.
  usleep(100'000);
  size_t ours = DescriptorsOf(getpid()), its = DescriptorsOf(spawner);
  {
    std::vector<std::unique_ptr<Process>> processes;
    for (int i = 0; i < 200; ++i) {
      Command command = Shell(absl::StrCat("read x; exit ", i));
      command.input = Redirect::Pipe();
      auto process = StartProcess(command);
      REQUIRE_MESSAGE(process.ok(), process.status().ToString());
      processes.push_back(*std::move(process));
    }
    CHECK(ChildrenOf(spawner).size() == 200);
    for (auto& process : processes) process->input.Reset();
    for (int i = 0; i < 200; ++i) CHECK(processes[i]->WaitBlocking(20'000)->code == i);
  }
  CHECK(ChildrenOf(spawner).empty());
  CHECK(DescriptorsOf(getpid()) == ours);
  for (int i = 0; i < 1000 && DescriptorsOf(spawner) != its; ++i) usleep(5000);
  CHECK(DescriptorsOf(spawner) == its);
}

TEST_CASE("more programs than may run at a time are refused, and the others go on") {
  std::vector<std::unique_ptr<Process>> processes;
  absl::Status refused;
  Command command = Shell("read x");
  int never[2];
  REQUIRE(pipe2(never, O_CLOEXEC) == 0);
  command.input = Redirect::To(never[0]);
  while (refused.ok() && processes.size() <= limits::kProgramsMax) {
    auto process = StartProcess(command);
    refused = process.status();
    if (process.ok()) processes.push_back(*std::move(process));
  }
  CHECK(processes.size() == limits::kProgramsMax);
  CHECK(ErrnoOf(refused) == EAGAIN);
  close(never[0]);
  close(never[1]);
  for (auto& process : processes) CHECK(process->WaitBlocking(20'000).ok());
  CHECK(StatusOf(Shell("exit 5")).code == 5);
}

TEST_CASE("a Process that goes takes its program with it, and a group all of it") {
  pid_t pid = -1;
  {
    auto process = StartProcess(Shell("exec sleep 1000"));
    REQUIRE(process.ok());
    pid = (*process)->pid();
    CHECK(Alive(pid));
  }
  CHECK(EndsWithin(pid, 5000));

  Command group = Shell("sleep 1000 & echo $!; exit 0");
  group.own_group = true;
  group.output = Redirect::Pipe();
  auto leader = StartProcess(group);
  REQUIRE(leader.ok());
  pid_t member = std::stoi(ReadAll((*leader)->output.get()));  // ends only when sleep does
  CHECK((*leader)->WaitBlocking()->ok());
  CHECK(EndsWithin(member, 5000));
}

namespace {

// In another process: starts two programs, one of which minds no SIGTERM, and tells their pids and
// the spawner's; then does what `how` says. Returns the pids.
std::vector<pid_t> StartInAnotherProcess(pid_t* other, void (*how)()) {
  int ends[2];
  REQUIRE(pipe2(ends, O_CLOEXEC) == 0);
  *other = fork();
  if (*other == 0) {
    auto meek = StartProcess(Shell("exec sleep 1000"));
    Command deaf = Shell("trap '' TERM; echo; while :; do sleep 0.1; done");
    deaf.output = Redirect::Pipe();
    auto stubborn = StartProcess(deaf);
    if (!meek.ok() || !stubborn.ok()) _exit(1);
    char newline;
    (void)!read((*stubborn)->output.get(), &newline, 1);  // the trap is set
    pid_t pids[3] = {(*meek)->pid(), (*stubborn)->pid(), SpawnerPid()};
    (void)!write(ends[1], pids, sizeof pids);
    how();
    _exit(0);
  }
  close(ends[1]);
  std::vector<pid_t> pids(3);
  REQUIRE(read(ends[0], pids.data(), 3 * sizeof(pid_t)) == 3 * sizeof(pid_t));
  close(ends[0]);
  return pids;
}

}  // namespace

TEST_CASE("programs and the spawner end when the process that wanted them is killed") {
  pid_t parent = -1;
  std::vector<pid_t> pids = StartInAnotherProcess(&parent, [] { pause(); });
  for (pid_t pid : pids) CHECK(Alive(pid));
  kill(parent, SIGKILL);
  waitpid(parent, nullptr, 0);
  CHECK(EndsWithin(pids[0], 2000));  // SIGTERM was enough
  CHECK(Alive(pids[1]));
  CHECK(EndsWithin(pids[1], 8000));
  CHECK(EndsWithin(pids[2], 8000));
}

TEST_CASE("programs end when the spawner is killed") {
  pid_t parent = -1;
  std::vector<pid_t> pids = StartInAnotherProcess(&parent, [] { pause(); });
  kill(pids[2], SIGKILL);
  CHECK(EndsWithin(pids[0], 2000));
  CHECK(EndsWithin(pids[1], 2000));
  kill(parent, SIGKILL);
  waitpid(parent, nullptr, 0);
}

TEST_CASE("when the spawner is killed, waiting and starting are errors") {
  pid_t other = fork();
  if (other == 0) {
    auto process = StartProcess(Shell("exec sleep 1000"));
    if (!process.ok()) _exit(1);
    kill(SpawnerPid(), SIGKILL);
    if (ErrnoOf((*process)->WaitBlocking(5000).status()) != EIO) _exit(2);
    if (StartProcess(Shell("exit 0")).ok()) _exit(3);
    _exit(0);
  }
  int status = -1;
  waitpid(other, &status, 0);
  CHECK(status == 0);
}

TEST_CASE("stopping the spawner returns when its programs have ended") {
  pid_t other = -1;
  std::vector<pid_t> pids = StartInAnotherProcess(&other, [] {
    Spawner::Stop();
    _exit(ChildrenOf(getpid()).empty() ? 42 : 1);
  });
  int status = -1;
  waitpid(other, &status, 0);
  CHECK(WEXITSTATUS(status) == 42);
  for (pid_t pid : pids) CHECK(EndsWithin(pid, 500));
}

namespace {

Task<absl::StatusOr<ExitStatus>> WaitOnLoop(Command command, int64_t timeout_ns) {
  auto process = StartProcess(command);
  BLK_CO_RETURN_IF_ERROR(process.status());
  co_return co_await (*process)->Wait(timeout_ns);
}

Task<void> WaitAndCount(int index, int* right) {
  auto status = co_await WaitOnLoop(Shell(absl::StrCat("exit ", index)), INT64_MAX);
  *right += status.ok() && status->code == index;
}

Task<int> ManyWaits() {
  int right = 0;
  TaskScope scope;
  for (int i = 0; i < 50; ++i) scope.Spawn(WaitAndCount(i, &right));
  co_await scope.Join();
  co_return right;
}

Task<void> CancelSoon(Process* process) {
  (void)co_await Loop::Current()->Sleep(10'000'000);
  process->CancelWait();
}

Task<absl::Status> CancelledWait() {
  auto process = StartProcess(ShellCommand("exec sleep 1000"));
  BLK_CO_RETURN_IF_ERROR(process.status());
  TaskScope scope;
  scope.Spawn(CancelSoon(process->get()));
  auto status = co_await (*process)->Wait();
  co_await scope.Join();
  co_return status.status();
}

absl::StatusOr<CommandOutput> Run(Command command, std::string input = "", RunLimits limits = {}) {
  LoopPool pool(1);
  return pool.RunMain(RunCommand(std::move(command), std::move(input), limits));
}

}  // namespace

TEST_CASE("loops wait for programs, many at once, in time or not") {
  LoopPool pool(1);
  CHECK(pool.RunMain(ManyWaits()) == 50);
  LoopPool late(1);
  CHECK(ErrnoOf(late.RunMain(WaitOnLoop(Shell("exec sleep 1000"), 20'000'000)).status()) ==
        ETIMEDOUT);
  LoopPool cancelled(1);
  CHECK(ErrnoOf(cancelled.RunMain(CancelledWait())) == ECANCELED);
}

TEST_CASE("RunCommand feeds, collects and tells the exit status") {
  std::string input;
  for (int i = 0; i < 300'000; ++i) input += static_cast<char>('a' + i % 23);
  auto result = Run(Shell("cat; echo problem >&2; exit 4"), input);
  REQUIRE_MESSAGE(result.ok(), result.status().ToString());
  CHECK(result->output == input);
  CHECK(result->errors == "problem\n");
  CHECK(result->status.code == 4);
  auto deaf = Run(Shell("echo deaf"), std::string(1 << 20, 'x'));
  REQUIRE_MESSAGE(deaf.ok(), deaf.status().ToString());
  CHECK(deaf->output == "deaf\n");
}

TEST_CASE("RunCommand bounds output, errors and time") {
  RunLimits limits;
  limits.output_bytes_max = 1000;
  limits.error_bytes_max = 10;
  auto exact = Run(Shell("head -c 1000 /dev/zero; echo 0123456789abcdef >&2"), "", limits);
  REQUIRE_MESSAGE(exact.ok(), exact.status().ToString());
  CHECK(exact->output.size() == 1000);
  CHECK(exact->errors == "0123456789");
  CHECK(ErrnoOf(Run(Shell("head -c 1001 /dev/zero"), "", limits).status()) == EFBIG);
  CHECK(ErrnoOf(Run(Shell("cat /dev/zero"), "", limits).status()) == EFBIG);
  limits.timeout_ns = 50'000'000;
  CHECK(ErrnoOf(Run(Shell("sleep 1000; echo"), "", limits).status()) == ETIMEDOUT);
  CHECK(ErrnoOf(Run({.argv = {"/no/such"}}, "", limits).status()) == ENOENT);
}

TEST_CASE("RunCommand does not wait for what a program left behind") {
  auto start = std::chrono::steady_clock::now();
  auto result = Run(Shell("setsid sleep 20 & echo done"));
  REQUIRE(result.ok());
  CHECK(result->output == "done\n");
  CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(10));
}

TEST_CASE("a script is read as far as needed and then stopped") {
  auto source = ScriptSource::Start(BashCommand("while :; do printf '%04x' $((i++)); done"));
  REQUIRE(source.ok());
  std::string got;
  while (got.size() < 2048) {
    char buffer[100];
    auto some = (*source)->Read(buffer);
    REQUIRE((some.ok() && *some > 0));
    got.append(buffer, *some);
  }
  CHECK(got.substr(0, 20) == "00000001000200030004");
  CHECK((*source)->Finish().ok());
}

TEST_CASE("a script that fails at its end is an error, one that succeeds is not") {
  for (auto [script, code] : {std::pair{"echo x; exit 3", EIO}, {"echo x", 0}}) {
    auto source = ScriptSource::Start(BashCommand(script));
    REQUIRE(source.ok());
    char buffer[100];
    CHECK(*(*source)->Read(buffer) == 2);
    CHECK(*(*source)->Read(buffer) == 0);
    absl::Status status = (*source)->Finish();
    CHECK(ErrnoOf(status) == code);
    if (code) CHECK(status.message() == "bash failed: exit status 3");
  }
}
