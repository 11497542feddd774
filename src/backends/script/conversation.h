#pragma once
// A program that is started once and answers all methods over one socket: docs/exec-protocol.md.
// Requests are sent as they come, many before the first is answered; the program may answer them in
// any order, one at a time or in parallel.
//
// Threads: calls may be made on any loop; the socket is used on one of them, the home, which is the
// loop of the first call after construction or Rest(). That loop must run until Rest() or Stop().
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "src/backends/script/method.h"
#include "src/backends/script/wire.h"
#include "src/core/process.h"
#include "src/core/scope.h"
#include "src/core/stream.h"
#include "src/core/sync.h"

namespace blk::script {

struct ConversationOptions {
  std::string name;  // for messages
  Command command;   // its input and output are replaced as `channel` says
  enum class Channel { kStandard, kDescriptor3 };
  Channel channel = Channel::kStandard;  // where the program finds the socket
  std::string_view bridge = {};          // what it finds as a file at descriptor 4; static
  // Longest time of a method; without it, as long as its client waits and a little more.
  std::optional<int64_t> timeout_ns = {};
};

class Conversation final : public MethodCaller {
 public:
  explicit Conversation(ConversationOptions options);
  ~Conversation() override;

  const std::string& name() const override { return options_.name; }
  Task<absl::Status> Start() override;
  bool wants_start() override { return !running_.load(); }
  Task<Answer> Call(MethodCall call) override;
  Known Has(std::string_view method) override;
  bool keeps_order() const override { return true; }
  bool wants_peer() const override { return true; }
  Task<void> Rest() override;
  Task<void> Stop() override;

 private:
  struct Pending {
    std::string method;
    std::span<char> into;
    Answer answer = {};
    Event done = {};
    bool fresh = true;  // nobody has answered
  };
  // A reply whose payload is still coming.
  struct Receiving {
    ReplyHead head;
    uint64_t left_bytes = 0;
    std::string text = {};
    uint64_t placed_bytes = 0;
  };

  absl::Status Launch();
  Loop* Home();
  Task<Answer> CallAtHome(MethodCall call);
  void Enqueue(uint64_t id, const MethodCall& call);
  Task<void> WriteLoop();
  Task<void> ReadLoop();
  absl::Status TakeReplies();
  absl::Status BeginReply(std::string_view line);
  absl::Status TakePayload();
  void FinishReply();
  void Resolve(uint64_t id, Answer answer);
  void Abandon(uint64_t id, absl::Status why);
  void ForgetAbandoned();
  void End(const absl::Status& why);
  Task<void> Quiet();
  Task<absl::Status> DescribeEnd();
  void LearnMethods(std::string_view list);

  const ConversationOptions options_;
  std::atomic<bool> running_{false};
  std::mutex home_mutex_;
  Loop* home_ = nullptr;  // guarded by home_mutex_
  // Written once, by the first `load`, before there are clients.
  std::optional<std::set<std::string, std::less<>>> methods_;
  bool learns_ = true;

  // All that follows belongs to the home loop.
  std::unique_ptr<Process> process_;
  Descriptor socket_;
  StreamPtr stream_;  // over a duplicate of socket_; gone while nobody is home
  TaskScope scope_;
  absl::Status ended_;
  uint64_t last_id_ = 0;
  absl::flat_hash_map<uint64_t, Pending*> pending_;
  // Asked, and not waited for any more; the timer ends the program that does not answer at all.
  absl::flat_hash_map<uint64_t, std::optional<Loop::TimerId>> abandoned_;
  std::string outgoing_, sending_;
  bool writing_ = false, reading_ = false;
  std::vector<char> buffer_;
  size_t begin_ = 0, end_ = 0;
  std::optional<Receiving> receiving_;
};

}  // namespace blk::script
