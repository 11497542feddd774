#include "src/backends/script/conversation.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "src/core/trace.h"

namespace blk::script {
namespace {

constexpr size_t kBufferBytes = 256 << 10;
constexpr int kSocketBufferBytes = 1 << 20;
// Where the user sets no limit: how long a method may go on after its client has left.
constexpr int64_t kAfterClientNs = 10'000'000'000;
// Between the end of the socket and that of the program.
constexpr int64_t kEndNs = 2'000'000'000;

absl::StatusOr<Descriptor> BridgeFile(std::string_view text) {
  Descriptor file(memfd_create("blk-bridge", MFD_CLOEXEC));
  if (!file.valid()) return ErrnoError(errno, "cannot make a file in memory");
  while (!text.empty()) {
    ssize_t done = write(file.get(), text.data(), text.size());
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return ErrnoError(errno, "cannot write to a file in memory");
    text.remove_prefix(done);
  }
  if (lseek(file.get(), 0, SEEK_SET) < 0)
    return ErrnoError(errno, "cannot rewind a file in memory");
  return file;
}

// Calls `act` on this loop once `stop` is requested, on whichever thread, unless destroyed before.
class OnStop {
 public:
  OnStop(const std::stop_token* stop, absl::AnyInvocable<void()> act) {
    if (stop == nullptr) return;
    *cell_ = std::move(act);
    callback_.emplace(*stop, [loop = Loop::Current(), cell = cell_] { loop->Spawn(Run(cell)); });
  }
  ~OnStop() { *cell_ = nullptr; }

 private:
  using Cell = std::shared_ptr<absl::AnyInvocable<void()>>;
  static Task<void> Run(Cell cell) {
    if (*cell) (*cell)();
    co_return;
  }
  Cell cell_ = std::make_shared<absl::AnyInvocable<void()>>();
  std::optional<std::stop_callback<absl::AnyInvocable<void()>>> callback_;
};

}  // namespace

Conversation::Conversation(ConversationOptions options) : options_(std::move(options)) {}
Conversation::~Conversation() = default;

absl::Status Conversation::Launch() {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) < 0)
    return ErrnoError(errno, "cannot make a socket");
  Descriptor ours(ends[0]), theirs(ends[1]);
  for (int fd : ends)  // so that a batch of small requests or one large reply fits
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &kSocketBufferBytes, sizeof kSocketBufferBytes);
  Command command = options_.command;
  command.own_group = true;
  Descriptor bridge;
  if (!options_.bridge.empty()) {
    BLK_ASSIGN_OR_RETURN(bridge, BridgeFile(options_.bridge));
    command.descriptors.emplace_back(4, bridge.get());
  }
  if (options_.channel == ConversationOptions::Channel::kStandard) {
    command.input = command.output = Redirect::To(theirs.get());
  } else {
    command.input = Redirect::Null();
    command.descriptors.emplace_back(3, theirs.get());
  }
  BLK_ASSIGN_OR_RETURN(process_, StartProcess(command));
  socket_ = std::move(ours);
  return absl::OkStatus();
}

Task<absl::Status> Conversation::Start() {
  Loop* home = Home();
  struct Here {
    static Task<absl::Status> Run(Conversation* self) {
      co_await self->Quiet();
      absl::Status status;
      co_await Loop::Current()->Offload([&] { status = self->Launch(); });
      if (!status.ok()) co_return Annotate(status, self->name());
      self->abandoned_.clear();
      self->outgoing_.clear();
      self->begin_ = self->end_ = 0;
      self->receiving_.reset();
      self->ended_ = absl::OkStatus();
      self->running_ = true;
      co_return status;
    }
  };
  co_return co_await RunOn(home, Here::Run(this));
}

Loop* Conversation::Home() {
  std::lock_guard lock(home_mutex_);
  if (home_ == nullptr) home_ = Loop::Current();
  return home_;
}

MethodCaller::Known Conversation::Has(std::string_view method) {
  if (!methods_) return Known::kMaybe;
  return methods_->contains(method) ? Known::kYes : Known::kNo;
}

Task<Answer> Conversation::Call(MethodCall call) {
  Loop* home = Home();
  if (home == Loop::Current()) return CallAtHome(std::move(call));
  return RunOn(home, CallAtHome(std::move(call)));
}

Task<Answer> Conversation::CallAtHome(MethodCall call) {
  if (!ended_.ok()) co_return Answer::Failed(ended_);
  Loop* loop = Loop::Current();
  const uint64_t id = ++last_id_;
  Pending pending{.method = call.method, .into = call.into};
  pending_.emplace(id, &pending);
  Enqueue(id, call);
  if (!std::exchange(reading_, true)) scope_.Spawn(ReadLoop());
  OnStop on_stop(call.stop, [this, id] {
    Abandon(id, ErrnoErrorAsIs(ECANCELED, absl::StrCat(name(), ": its client has left")));
  });
  std::optional<Loop::TimerId> timer;
  if (options_.timeout_ns || call.timeout_ns_max != INT64_MAX) {
    const bool deadly = options_.timeout_ns && *options_.timeout_ns <= call.timeout_ns_max;
    const int64_t after_ns = deadly ? *options_.timeout_ns : call.timeout_ns_max;
    timer = loop->StartTimer(loop->NowNs() + after_ns, [this, id, deadly] {
      auto found = pending_.find(id);
      if (found == pending_.end()) return;
      absl::Status late = ErrnoErrorAsIs(
          ETIMEDOUT, absl::StrCat(name(), ": ", found->second->method, " took too long"));
      deadly ? End(late) : Abandon(id, late);
    });
  }
  while (pending.fresh) co_await pending.done.Wait();
  if (timer) loop->CancelTimer(*timer);
  if (call.method == "load" && std::exchange(learns_, false) && pending.answer.done())
    LearnMethods(pending.answer.output);
  co_return std::move(pending.answer);
}

// The answer to `load` may say which methods there are.
void Conversation::LearnMethods(std::string_view list) {
  std::vector<std::string> names =
      absl::StrSplit(list, absl::ByAnyChar(" \t\r\n"), absl::SkipEmpty());
  if (names.empty()) return;
  methods_.emplace(names.begin(), names.end());
  methods_->insert("load");
}

void Conversation::Enqueue(uint64_t id, const MethodCall& call) {
  outgoing_ += RequestLine(id, call.method, call.input.size(), call.arguments);
  outgoing_.append(call.input.data(), call.input.size());
  if (!std::exchange(writing_, true)) scope_.Spawn(WriteLoop());
}

Task<void> Conversation::WriteLoop() {
  co_await Yield();  // whatever else this turn of the loop asks goes along
  while (!outgoing_.empty() && ended_.ok()) {
    if (!stream_) stream_ = MakeSocketStream(dup(socket_.get()));
    sending_.clear();
    std::swap(sending_, outgoing_);
    iovec part{sending_.data(), sending_.size()};
    // A program that takes nothing more is one that has ended: the reader finds out how.
    if (!(co_await stream_->WriteAll({&part, 1})).ok()) break;
  }
  writing_ = false;
}

Task<void> Conversation::ReadLoop() {
  if (!stream_) stream_ = MakeSocketStream(dup(socket_.get()));
  buffer_.resize(kBufferBytes);
  while (ended_.ok() && (!pending_.empty() || !abandoned_.empty())) {
    if (begin_ == end_) begin_ = end_ = 0;
    if (end_ == buffer_.size()) {  // the beginning of a line
      std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
      end_ -= begin_;
      begin_ = 0;
    }
    auto got = co_await stream_->ReadSome({buffer_.data() + end_, buffer_.size() - end_});
    if (got.ok() && *got > 0) {
      end_ += *got;
      if (absl::Status taken = TakeReplies(); !taken.ok()) End(Annotate(taken, name()));
      continue;
    }
    if (!got.ok() && ErrnoOf(got.status()) == ECANCELED) break;
    End(co_await DescribeEnd());
  }
  reading_ = false;
}

absl::Status Conversation::TakeReplies() {
  for (;;) {
    if (receiving_) {
      BLK_RETURN_IF_ERROR(TakePayload());
      if (receiving_) return absl::OkStatus();  // more is to come
      continue;
    }
    std::string_view seen(buffer_.data() + begin_, end_ - begin_);
    const size_t line_bytes = seen.find('\n');
    if (line_bytes == std::string_view::npos) {
      if (seen.size() <= kReplyLineBytesMax) return absl::OkStatus();
      return ParseReplyLine(seen).status().ok() ? ErrnoErrorAsIs(EPROTO, "it sent an endless line")
                                                : ParseReplyLine(seen).status();
    }
    BLK_RETURN_IF_ERROR(BeginReply(seen.substr(0, line_bytes)));
    begin_ += line_bytes + 1;
  }
}

absl::Status Conversation::BeginReply(std::string_view line) {
  BLK_ASSIGN_OR_RETURN(ReplyHead head, ParseReplyLine(line));
  if (head.kind == ReplyHead::Kind::kAnswer && !pending_.contains(head.id) &&
      !abandoned_.contains(head.id))
    return ErrnoErrorAsIs(EPROTO,
                          absl::StrCat("it answered what was not asked: request ", head.id));
  receiving_ = Receiving{.head = head, .left_bytes = head.payload_bytes};
  return absl::OkStatus();
}

// Moves payload from the buffer to its place. The call may be abandoned between two parts.
absl::Status Conversation::TakePayload() {
  Receiving& reply = *receiving_;
  const size_t step = std::min<uint64_t>(reply.left_bytes, end_ - begin_);
  auto found =
      reply.head.kind == ReplyHead::Kind::kAnswer ? pending_.find(reply.head.id) : pending_.end();
  Pending* pending = found == pending_.end() ? nullptr : found->second;
  const bool fits = pending && reply.head.answer == Answer::Kind::kDone && !pending->into.empty() &&
                    pending->into.size() == reply.head.payload_bytes;
  if (fits) {
    std::memcpy(pending->into.data() + reply.placed_bytes, buffer_.data() + begin_, step);
  } else if (pending ? pending->into.empty() || reply.head.answer != Answer::Kind::kDone
                     : reply.head.kind != ReplyHead::Kind::kAnswer) {
    reply.text.append(buffer_.data() + begin_, step);
  }
  reply.placed_bytes += step;
  reply.left_bytes -= step;
  begin_ += step;
  if (reply.left_bytes == 0) FinishReply();
  return absl::OkStatus();
}

void Conversation::FinishReply() {
  Receiving reply = *std::exchange(receiving_, std::nullopt);
  const ReplyHead& head = reply.head;
  if (head.kind != ReplyHead::Kind::kAnswer) {
    std::string text = absl::StrCat(name(), ": ", absl::StripTrailingAsciiWhitespace(reply.text));
    head.kind == ReplyHead::Kind::kLog ? LogError(text) : LogDebug(text);
    return;
  }
  if (auto late = abandoned_.find(head.id); late != abandoned_.end()) {
    if (late->second) Loop::Current()->CancelTimer(*late->second);
    abandoned_.erase(late);
    return;
  }
  Pending& pending = *pending_.at(head.id);
  Answer answer{.kind = head.answer, .demand = head.demand, .output = std::move(reply.text)};
  const uint64_t wanted_bytes = pending.into.size();
  if (head.answer == Answer::Kind::kFailed) {
    answer.error = ReportedError(name(), pending.method, answer.output);
  } else if (answer.done() && wanted_bytes > 0 && head.payload_bytes != wanted_bytes) {
    answer.kind = Answer::Kind::kFailed;
    answer.error =
        ErrnoErrorAsIs(EIO, absl::StrCat(name(), ": ", pending.method, " gave ", head.payload_bytes,
                                         " bytes instead of ", wanted_bytes));
  }
  Resolve(head.id, std::move(answer));
}

void Conversation::Resolve(uint64_t id, Answer answer) {
  auto found = pending_.find(id);
  if (found == pending_.end()) return;
  Pending* pending = found->second;
  pending_.erase(found);
  pending->answer = std::move(answer);
  pending->fresh = false;
  pending->done.Set();
}

// The program is not told. If it does not get done with it soon, it hangs.
void Conversation::Abandon(uint64_t id, absl::Status why) {
  auto found = pending_.find(id);
  if (found == pending_.end()) return;
  std::string hangs = absl::StrCat(name(), ": ", found->second->method,
                                   " is still running long after its client has left");
  Resolve(id, Answer::Failed(std::move(why)));
  Loop* loop = Loop::Current();
  const int64_t at_ns = loop->NowNs() + options_.timeout_ns.value_or(kAfterClientNs);
  abandoned_[id] = loop->StartTimer(
      at_ns, [this, hangs = std::move(hangs)] { End(ErrnoErrorAsIs(ETIMEDOUT, hangs)); });
}

void Conversation::ForgetAbandoned() {
  for (auto& [id, timer] : abandoned_) {
    if (timer) Loop::Current()->CancelTimer(*timer);
    timer.reset();
  }
}

void Conversation::End(const absl::Status& why) {
  if (!ended_.ok()) return;
  ended_ = ErrnoErrorAsIs(EIO, why.message());
  running_ = false;
  LogError(why.message());
  if (process_) (void)process_->Kill(SIGKILL);
  if (stream_) stream_->Cancel();
  ForgetAbandoned();
  abandoned_.clear();
  std::vector<uint64_t> ids;
  for (const auto& [id, pending] : pending_) ids.push_back(id);
  for (uint64_t id : ids) Resolve(id, Answer::Failed(ended_));
}

Task<absl::Status> Conversation::DescribeEnd() {
  auto status = co_await process_->Wait(kEndNs);
  std::string how =
      status.ok() ? absl::StrCat("has ended: ", status->ToString()) : "has closed its connection";
  co_return ErrnoErrorAsIs(EIO, absl::StrCat(name(), ": the program ", how));
}

// Nothing of the home loop is used any more.
Task<void> Conversation::Quiet() {
  ForgetAbandoned();
  if (stream_) stream_->Cancel();
  co_await scope_.Join();
  stream_.reset();
}

Task<void> Conversation::Rest() {
  co_await RunOn(Home(), Quiet());
  std::lock_guard lock(home_mutex_);
  home_ = nullptr;
}

// The end of its input is what tells a program to end.
Task<void> Conversation::Stop() {
  co_await Rest();
  running_ = false;
  socket_.Reset();
  if (!process_) co_return;
  if (!(co_await process_->Wait(kEndNs)).ok()) LogDebug(name(), ": it does not end, and is killed");
  process_.reset();
}

}  // namespace blk::script
