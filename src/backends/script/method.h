#pragma once
// The methods of a program that is a disk: what is asked of it, what it answers, and who carries
// both. The methods, their arguments and their answers are those of nbdkit-sh-plugin(3), whether a
// program runs for each call (program_per_call.h) or one serves them all (conversation.h).
//
// Threads: as each MethodCaller says.
#include <cstdint>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "src/core/task.h"

namespace blk::script {

// Spans live until the call has completed.
struct MethodCall {
  std::string method;
  std::vector<std::string> arguments = {};
  std::span<const char> input = {};       // what the method is given to write
  std::span<char> into = {};              // where its output goes; its length must be this one
  const std::stop_token* stop = nullptr;  // requested: complete soon, with ECANCELED
  int64_t timeout_ns_max = INT64_MAX;     // beside the caller's own limit
};

struct Answer {
  enum class Kind { kDone, kMissing, kFalse, kFailed };
  // What the program wants of the server or of its connection, whatever the answer is.
  enum class Demand { kNone, kShutdown, kDisconnect, kDisconnectNow };
  Kind kind = Kind::kDone;
  Demand demand = Demand::kNone;
  std::string output = {};  // kDone; empty where the call said `into`
  absl::Status error = {};  // kFailed

  static Answer Missing() { return {.kind = Kind::kMissing}; }
  static Answer Failed(absl::Status error) {
    return {.kind = Kind::kFailed, .error = std::move(error)};
  }
  bool done() const { return kind == Kind::kDone; }
  bool missing() const { return kind == Kind::kMissing; }
};

class MethodCaller {
 public:
  enum class Known { kNo, kYes, kMaybe };

  virtual ~MethodCaller() = default;

  // How messages call the program: a script's path, `eval`.
  virtual const std::string& name() const = 0;
  // Makes the program ready to be called. Called first, and again whenever wants_start() says so.
  virtual Task<absl::Status> Start() { return absl::OkStatus(); }
  // The program is not there: it was not started, or it has ended.
  virtual bool wants_start() { return false; }
  // Errors are answers: none is missing because of them.
  virtual Task<Answer> Call(MethodCall call) = 0;
  // Whether the program has a method; kMaybe: only a call will tell.
  virtual Known Has(std::string_view method) = 0;
  // The requests of connections need not be kept apart: whoever is behind this does.
  virtual bool keeps_order() const { return false; }
  // `open` and `preconnect` have a last argument that says who the client is.
  virtual bool wants_peer() const { return false; }
  // No calls are under way, and the next may come on another loop.
  virtual Task<void> Rest() { return {}; }
  // No more calls come.
  virtual Task<void> Stop() { return {}; }
};

// The error that a program reports in words, `ENOSPC no room is left`: the errno if the first word
// is one of those known (upper or lower case), else EIO; and a message `name: method: text`.
absl::Status ReportedError(std::string_view name, std::string_view method, std::string_view text);

// The errno of such a name; 0 if unknown.
int ErrnoByName(std::string_view name);

}  // namespace blk::script
