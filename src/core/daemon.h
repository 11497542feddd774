#pragma once
// Living as a server: going to the background, the pidfile, signals as events, ending with the
// parent, and sockets that a superserver opened for us (systemd.socket(5), sd_listen_fds(3)).
//
// Threads: everything that says "before threads" must come before the first LoopPool.
#include <sys/types.h>

#include <initializer_list>
#include <string>
#include <vector>

#include "src/core/descriptor.h"
#include "src/core/loop.h"

namespace blk {

struct DaemonOptions {
  bool background = false;
  std::string pidfile = {};   // empty: none
  bool keep_pidfile = false;  // when the process ends
  bool keep_errors = false;   // in the background: standard error stays what it is
};

// From the start of a server to the moment at which clients may come.
class ReadyNotifier {
 public:
  // Before threads. In the background, the process forks here: the caller goes on in the child, in
  // a session of its own; the parent ends with status 0 once Ready() was called, or as the child
  // ended (with its exit status; 128 + the number of the signal that killed it). Until Ready() the
  // child keeps standard error, so an error is printed by whoever found it, as in the foreground.
  // Start a spawner afterwards: the one of the parent ends with the parent.
  static absl::StatusOr<ReadyNotifier> Start(DaemonOptions options);

  ReadyNotifier(ReadyNotifier&&) = default;
  ReadyNotifier& operator=(ReadyNotifier&&) = delete;
  // Removes the pidfile if Ready() made one and it is not to be kept.
  ~ReadyNotifier();

  // Writes the pidfile. In the background also: lets the parent end, makes / the working directory
  // (so paths that are opened later must be absolute) and /dev/null the standard descriptors,
  // except standard error with keep_errors. ECANCELED when the parent was killed meanwhile: nobody
  // waits for this server any more.
  absl::Status Ready();

 private:
  ReadyNotifier() = default;

  std::string pidfile_;  // absolute
  bool background_ = false, keep_pidfile_ = false, keep_errors_ = false;
  Descriptor parent_;  // of the background
  Descriptor written_pidfile_;
};

// Signals as events of a loop.
class SignalWatcher {
 public:
  // Before threads: blocks the signals here and, since threads inherit it, everywhere. Programs
  // that are started have them unblocked.
  explicit SignalWatcher(std::initializer_list<int> signals);
  SignalWatcher(const SignalWatcher&) = delete;

  // The number of the next signal; ECANCELED after Cancel(). One waiter, on one loop.
  Task<absl::StatusOr<int>> Next();
  // On the loop of the waiter, or while nobody waits.
  void Cancel();

 private:
  Descriptor fd_;
  int error_ = 0;  // of signalfd
  Watch* waiting_ = nullptr;
  bool cancelled_ = false;
};

// This process gets `signal` when the thread that started it ends. ESRCH when `parent`, what
// getppid() said when this program began, has ended already.
absl::Status EndWithParent(pid_t parent, int signal);

// The listening sockets that were passed to this process: 3 and up, as many as LISTEN_FDS says, if
// LISTEN_PID is this process. Empty when there are none. The variables are removed, the descriptors
// made close-on-exec and non-blocking; the caller owns them. Variables that were meant for another
// process are no error, but a sentence in *notice. Before threads, and before the background.
absl::StatusOr<std::vector<int>> TakeActivatedSockets(std::string* notice);

}  // namespace blk
