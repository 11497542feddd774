#pragma once
// Starting programs: `--run`, scripts, captive servers. Nothing else in blk forks and execs.
//
// A small *spawner* process does it, so that neither threads, rings nor memory of blk are ever
// copied. It is forked by Spawner::Start(), which main() calls before any thread, sandbox or device
// exists; a process that did not call it (unit tests) gets one with its first program, safely also
// from a process with threads: the spawner uses nothing but system calls.
//
// A program that is started
//  - has exactly the descriptors that its Command names, an empty signal mask and SIGPIPE as usual;
//  - ends when this process ends, however that happens: SIGTERM, 3 seconds later SIGKILL; and with
//    SIGKILL when the spawner is killed;
//  - leaves no zombie: the spawner reaps it and sends its exit status over a socket of its own,
//    whose other end is the Process. Signals go the same way, so they never meet a reused pid.
//
// Threads: everything may be called on any thread; a Process is used on one at a time.
#include <sys/types.h>

#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "src/core/descriptor.h"
#include "src/core/limits.h"
#include "src/core/task.h"

namespace blk {

class Watch;

struct Identity;

class Spawner {
 public:
  // Forks the spawner unless there is one. Also makes this process ignore SIGPIPE: writing to a
  // program that has ended is an error (EPIPE), not death.
  static absl::Status Start();
  // Nothing more is started (EPERM); what runs goes on. For a process that will serve strangers:
  // the spawner is outside its sandbox.
  static absl::Status Close();
  // Programs still running get SIGTERM, then SIGKILL; returns when they and the spawner have ended.
  // main() calls it last; without it the same happens, but after the end of this process.
  static void Stop();
  // Programs started from now on have this user and group. For DropPrivileges (identity.h).
  static absl::Status BecomeForPrograms(const Identity& identity);
};

// What a standard descriptor of a program becomes.
struct Redirect {
  enum class Kind { kInherit, kNull, kPipe, kDescriptor };
  Kind kind = Kind::kInherit;
  int fd = -1;  // kDescriptor: borrowed until StartProcess returns

  static Redirect Inherit() { return {}; }
  static Redirect Null() { return {Kind::kNull, -1}; }
  static Redirect Pipe() { return {Kind::kPipe, -1}; }
  static Redirect To(int fd) { return {Kind::kDescriptor, fd}; }
};

struct Command {
  // argv[0] with a '/' is a path, else it is looked for on the PATH that the program will have.
  std::vector<std::string> argv = {};
  std::vector<std::pair<std::string, std::string>> environment = {};  // added to ours or replacing
  std::vector<std::string> unset = {};                                // not passed on from ours
  std::string directory = {};                                         // empty: where we are
  Redirect input = {}, output = {}, errors = {};
  // {number in the program, descriptor of ours}; borrowed until StartProcess returns.
  std::vector<std::pair<int, int>> descriptors = {};
  // The program leads a process group: signals reach all of it, and what is left of it when the
  // program ends is killed. For scripts that must not outlive their use. Such a program cannot read
  // from the terminal, and Ctrl-C does not reach it.
  bool own_group = false;
  // LISTEN_PID is set to the program's pid (socket activation).
  bool listen_pid = false;
};

// `sh -c script`.
Command ShellCommand(std::string script);
// The same in bash where there is one, so that `$((i++))` works.
Command BashCommand(std::string script);

// Puts the directory of the running program first on the command's PATH, so that a script finds
// `blk` as the same blk. Nothing changes if it cannot be found out (no /proc).
void PutOurselvesOnPath(Command* command);

// The file that `name` means for a command with this PATH; ENOENT, or EACCES if there is one that
// may not be run. A name with a '/' is returned unchanged.
absl::StatusOr<std::string> FindProgram(const std::string& name, const std::string& path);

struct ExitStatus {
  int code = 0;    // when signal is 0
  int signal = 0;  // that ended it
  bool ok() const { return code == 0 && signal == 0; }
  int shell_code() const { return signal ? 128 + signal : code; }  // as $? tells it
  std::string ToString() const;  // "exit status 3", "killed by SIGTERM"
};

class Process {
 public:
  Process(const Process&) = delete;
  // A program that still runs is killed (SIGKILL); nobody waits for it.
  ~Process();

  pid_t pid() const { return pid_; }
  const std::string& name() const { return name_; }  // argv[0]

  // Our ends of what was asked for with Redirect::Pipe(): blocking, close-on-exec.
  Descriptor input, output, errors;

  // How the program ended; again and again the same. ETIMEDOUT when it has not within the time,
  // ECANCELED after CancelWait(); EIO when the spawner was killed. One waiter at a time.
  Task<absl::StatusOr<ExitStatus>> Wait(int64_t timeout_ns = INT64_MAX);
  void CancelWait();
  // The same for before loops run. A negative timeout waits for ever.
  absl::StatusOr<ExitStatus> WaitBlocking(int timeout_ms = -1);

  // ESRCH when it has ended already.
  absl::Status Kill(int signal);

 private:
  friend absl::StatusOr<std::unique_ptr<Process>> StartProcess(const Command& command);
  Process() = default;
  bool Poll();  // looks at the socket without waiting; true when result_ is known

  pid_t pid_ = -1;
  std::string name_;
  Descriptor channel_;
  bool ended_ = false;
  absl::StatusOr<ExitStatus> result_ = ExitStatus{};  // when ended_
  Watch* waiting_ = nullptr;
};

// Returns when the program runs, or with the reason why it does not: its name, what failed, errno.
// Blocks for about a millisecond; on a loop, a caller that cares uses Offload.
absl::StatusOr<std::unique_ptr<Process>> StartProcess(const Command& command);

struct RunLimits {
  size_t output_bytes_max = limits::kProgramOutputBytesMax;
  size_t error_bytes_max = limits::kProgramErrorBytesMax;
  int64_t timeout_ns = INT64_MAX;
  const std::stop_token* stop = nullptr;  // requested, on any thread: the program is killed
};

struct CommandOutput {
  ExitStatus status;
  std::string output;
  std::string errors;  // the first error_bytes_max bytes
};

// Runs a program to its end on the current loop, in a process group of its own: `input` is its
// stdin, stdout and stderr are collected (the command's own redirections are ignored). A failing
// exit status is a result. Errors: what StartProcess says; EFBIG when it writes more than
// output_bytes_max, ETIMEDOUT, ECANCELED after `limits.stop`: it is killed then. `input` is
// borrowed until the task completes. What processes that it left behind write after its end is
// lost.
Task<absl::StatusOr<CommandOutput>> RunCommand(Command command, std::string_view input,
                                               RunLimits limits);

// The output of a program, read bit by bit and only as far as needed, before loops run.
class ScriptSource {
 public:
  // Output is a pipe and the process group its own, whatever the command says. What else the
  // command says holds: input should be Null().
  static absl::StatusOr<std::unique_ptr<ScriptSource>> Start(Command command);

  // At least one byte; 0 at the end of the output. Blocks.
  absl::StatusOr<size_t> Read(std::span<char> into);

  // Call once, last. When Read has returned 0, waits for the program: an error if it failed. When
  // it has not, the program is stopped, however far it came: OK.
  absl::Status Finish();

 private:
  std::unique_ptr<Process> process_;
  bool at_end_ = false;
};

}  // namespace blk
