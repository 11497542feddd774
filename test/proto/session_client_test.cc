// Requests to a server that does not answer: stopped, late, or left behind with shared memory.
#include "src/proto/session_client.h"

#include <doctest/doctest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

using namespace blk;
using namespace blk::nbd;

namespace {

constexpr int64_t kMillisecondNs = 1'000'000;

// A client session whose server is this test: it sees the bytes and answers when it likes.
struct Silent {
  int server_fd = -1;
  std::shared_ptr<Arena> arena;
  std::unique_ptr<ClientSession> client;

  explicit Silent(size_t requests_max = 16, bool shares = false) {
    int fds[2];
    BLK_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    server_fd = fds[0];
    if (shares) arena = *Arena::Create(1 << 20);
    client = std::make_unique<ClientSession>(
        MakeSocketStream(fds[1]), std::span<const char>(),
        ClientSessionOptions{ReplyStyle::kSimple, kFlagHasFlags, {}, requests_max, arena});
    client->Start();
  }
  ~Silent() {
    if (server_fd >= 0) close(server_fd);
  }
  void HangUp() { close(std::exchange(server_fd, -1)); }

  // Waits until so many bytes have come, and takes them.
  Task<std::string> Receive(size_t bytes) {
    std::string got(bytes, '\0');
    for (size_t at = 0; at < bytes;) {
      ssize_t n = recv(server_fd, got.data() + at, bytes - at, MSG_DONTWAIT);
      if (n > 0) at += n;
      if (n <= 0) (void)co_await Loop::Current()->Sleep(kMillisecondNs);
    }
    co_return got;
  }
  // Answers the request with this header, and for a read with these bytes.
  void Answer(std::string_view request_header, std::string_view data) {
    Request request;
    CHECK(ParseRequest(request_header, request) == ParseResult::kComplete);
    std::string reply(kSimpleReplyBytes, '\0');
    StoreSimpleReply(reply.data(), 0, request.cookie);
    reply += data;
    CHECK(send(server_fd, reply.data(), reply.size(), 0) == static_cast<ssize_t>(reply.size()));
  }
};

struct Outcome {
  absl::Status status = absl::UnknownError("still waiting");
  int64_t at_ns = 0;
};
Task<void> Into(Task<absl::Status> task, Outcome* outcome) {
  outcome->status = co_await std::move(task);
  outcome->at_ns = Loop::Current()->NowNs();
}
Task<void> StopAfter(std::stop_source* stop, int64_t ns) {
  (void)co_await Loop::Current()->Sleep(ns);
  stop->request_stop();
}

template <typename Body>
void RunIt(Body body) {
  LoopPool pool(1);
  CHECK(pool.RunMain(body()) == 0);
}

// A call that can be stopped.
struct Stoppable {
  std::stop_source stop;
  std::stop_token token = stop.get_token();
  Call call{.stop = &token};
};

// ---- Each a coroutine that returns 0

Task<int> StopEverything() {
  Silent silent;
  Stoppable one;
  std::string into(4096, 'x'), from(4096, 'y');
  Outcome read, write, flush, zero;
  TaskScope scope;
  scope.Spawn(Into(silent.client->Read(0, into, one.call), &read));
  scope.Spawn(Into(silent.client->Write(0, from, 0, one.call), &write));
  scope.Spawn(Into(silent.client->Flush(one.call), &flush));
  scope.Spawn(Into(silent.client->Zero(0, 4096, 0, one.call), &zero));
  (void)co_await silent.Receive(4 * kRequestBytes + from.size());
  one.stop.request_stop();
  co_await scope.Join();
  for (const Outcome* outcome : {&read, &write, &flush, &zero})
    CHECK(ErrnoOf(outcome->status) == ECANCELED);
  CHECK(silent.client->failure().ok());  // the connection can still be used
  co_await silent.client->Close();       // and is left although it owes answers
  co_return 0;
}

Task<int> StopFromAnotherThread() {
  Silent silent;
  Stoppable one;
  std::string into(4096, 'x');
  std::thread stopper([&one] {
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    one.stop.request_stop();
  });
  CHECK(ErrnoOf(co_await silent.client->Read(0, into, one.call)) == ECANCELED);
  stopper.join();
  co_await silent.client->Close();
  co_return 0;
}

// The answer to a request that was given up comes late; the one after it is still understood.
Task<int> LateAnswer() {
  Silent silent;
  std::stop_source stop;
  std::stop_token token = stop.get_token();
  Call stopped{.stop = &token};
  std::string first(5, 'x'), second(5, 'x');
  Outcome first_end, second_end;
  TaskScope scope;
  scope.Spawn(Into(silent.client->Read(0, first, stopped), &first_end));
  std::string first_request = co_await silent.Receive(kRequestBytes);
  stop.request_stop();
  co_await scope.Join();
  scope.Spawn(Into(silent.client->Read(5, second), &second_end));
  std::string second_request = co_await silent.Receive(kRequestBytes);
  silent.Answer(first_request, "FIRST");
  silent.Answer(second_request, "again");
  co_await scope.Join();
  CHECK(ErrnoOf(first_end.status) == ECANCELED);
  CHECK(first == "xxxxx");  // not touched after the task has ended
  CHECK(second_end.status.ok());
  CHECK(second == "again");
  CHECK(silent.client->in_flight() == 0);
  co_await silent.client->Close();
  co_return 0;
}

Task<int> Deadlines() {
  Silent silent;
  std::string into(10, 'x'), other(10, 'x');
  const int64_t now_ns = Loop::Current()->NowNs();
  Call soon{.deadline_ns = now_ns + 20 * kMillisecondNs};
  Call later{.deadline_ns = now_ns + 60 * kMillisecondNs};
  Outcome first, second;
  TaskScope scope;
  scope.Spawn(Into(silent.client->Read(0, into, later), &second));
  scope.Spawn(Into(silent.client->Read(0, other, soon), &first));
  co_await scope.Join();
  CHECK(ErrnoOf(first.status) == ETIMEDOUT);
  CHECK(ErrnoOf(second.status) == ETIMEDOUT);
  CHECK(first.at_ns >= soon.deadline_ns);
  CHECK(first.at_ns < later.deadline_ns);
  CHECK(second.at_ns >= later.deadline_ns);
  co_await silent.client->Close();
  co_return 0;
}

// A payload that is half sent or half received cannot be left alone: the connection ends.
Task<int> HalfSent() {
  Silent silent;
  Stoppable one;
  std::string from(16 << 20, 'y'), into(10, 'x');
  Outcome write, bystander;
  TaskScope scope;
  scope.Spawn(Into(silent.client->Read(0, into), &bystander));
  scope.Spawn(Into(silent.client->Write(0, from, 0, one.call), &write));
  scope.Spawn(StopAfter(&one.stop, 5 * kMillisecondNs));
  co_await scope.Join();
  CHECK(ErrnoOf(write.status) == ECANCELED);
  CHECK(ErrnoOf(bystander.status) == ECONNRESET);
  CHECK(!silent.client->failure().ok());
  co_await silent.client->Close();
  co_return 0;
}

Task<int> HalfReceived() {
  Silent silent;
  Stoppable one;
  std::string into(1 << 20, 'x');
  Outcome read;
  TaskScope scope;
  scope.Spawn(Into(silent.client->Read(0, into, one.call), &read));
  silent.Answer(co_await silent.Receive(kRequestBytes), std::string(10'000, 'd'));
  scope.Spawn(StopAfter(&one.stop, 5 * kMillisecondNs));
  co_await scope.Join();
  CHECK(ErrnoOf(read.status) == ECANCELED);
  std::string before = into;
  (void)send(silent.server_fd, before.data(), 1000, MSG_NOSIGNAL | MSG_DONTWAIT);
  (void)co_await Loop::Current()->Sleep(5 * kMillisecondNs);
  CHECK(into == before);
  co_await silent.client->Close();
  co_return 0;
}

// With all slots taken, a request that waits for one can be stopped too.
Task<int> WaitingForRoom() {
  Silent silent(/*requests_max=*/2);
  Stoppable one;
  std::string into[3] = {std::string(8, 'x'), std::string(8, 'x'), std::string(8, 'x')};
  Outcome ends[3];
  TaskScope scope;
  scope.Spawn(Into(silent.client->Read(0, into[0]), &ends[0]));
  scope.Spawn(Into(silent.client->Read(0, into[1]), &ends[1]));
  scope.Spawn(Into(silent.client->Read(0, into[2], one.call), &ends[2]));
  scope.Spawn(StopAfter(&one.stop, 5 * kMillisecondNs));
  co_await scope.Join();
  CHECK(ErrnoOf(ends[2].status) == ECANCELED);
  co_await silent.client->Close();
  co_return 0;
}

// Many users of one connection, each with a token of its own.
Task<int> ManyTokens() {
  Silent silent(/*requests_max=*/16);
  constexpr int kUsers = 12;
  std::stop_source stops[kUsers];
  std::stop_token tokens[kUsers];
  Call calls[kUsers];
  std::string into[kUsers];
  Outcome ends[kUsers];
  TaskScope scope;
  for (int i = 0; i < kUsers; ++i) {
    tokens[i] = stops[i].get_token();
    calls[i].stop = &tokens[i];
    into[i].assign(8, 'x');
    scope.Spawn(Into(silent.client->Read(0, into[i], calls[i]), &ends[i]));
  }
  (void)co_await silent.Receive(kUsers * kRequestBytes);
  for (int i = kUsers; i-- > 0;) {
    stops[i].request_stop();
    for (int turn = 0; turn < 10; ++turn) co_await Yield();
    CHECK(ErrnoOf(ends[i].status) == ECANCELED);
    if (i > 0) CHECK(ends[i - 1].status.message() == "still waiting");
  }
  co_await scope.Join();
  co_await silent.client->Close();
  co_return 0;
}

// ---- Shared memory

Task<int> ArenaAfterGivingUp() {
  Silent silent(16, /*shares=*/true);
  Stoppable one;
  const uint64_t bytes = 64 << 10;
  std::string large(bytes, 'x');
  char* mine = silent.arena->TakePiece(bytes);
  Outcome staged, named;
  TaskScope scope;
  scope.Spawn(
      Into(silent.client->Read(0, large, one.call), &staged));  // through a piece of its own
  scope.Spawn(Into(silent.client->Read(0, {mine, bytes}, one.call), &named));
  std::string requests = co_await silent.Receive(2 * (kRequestBytes + kArenaOffsetBytes));
  const uint64_t staged_at = LoadU64(requests.data() + kRequestBytes);
  CHECK(LoadU64(requests.data() + 2 * kRequestBytes + kArenaOffsetBytes) ==
        silent.arena->OffsetOf(mine));
  one.stop.request_stop();
  co_await scope.Join();
  CHECK(ErrnoOf(named.status) == ECANCELED);
  // The server may still write to both: neither is handed out or used again.
  silent.arena->GivePiece(mine, bytes);
  for (int i = 0; i < 20; ++i) {
    char* piece = silent.arena->TakePiece(bytes);
    if (!piece) break;
    CHECK(piece != mine);
    CHECK(silent.arena->OffsetOf(piece) != staged_at);
  }
  CHECK(ErrnoOf(co_await silent.client->Read(0, {mine, bytes})) == EIO);
  co_await silent.client->Close();
  co_return 0;
}

// `hangs_up`: the server ends; else it breaks the protocol, and may go on writing.
Task<int> ArenaAfterFailure(bool hangs_up) {
  Silent silent(16, /*shares=*/true);
  const uint64_t bytes = 64 << 10;
  char* mine = silent.arena->TakePiece(bytes);
  Outcome read;
  TaskScope scope;
  scope.Spawn(Into(silent.client->Read(0, {mine, bytes}), &read));
  (void)co_await silent.Receive(kRequestBytes + kArenaOffsetBytes);
  if (hangs_up) {
    silent.HangUp();
  } else {
    CHECK(send(silent.server_fd, "garbage garbage garbage", 23, 0) == 23);
  }
  co_await scope.Join();
  CHECK(ErrnoOf(read.status) == (hangs_up ? ECONNRESET : EPROTO));
  CHECK(silent.arena->Retired(mine, bytes) == !hangs_up);
  silent.arena->GivePiece(mine, bytes);
  CHECK((silent.arena->TakePiece(bytes) == mine) == hangs_up);
  co_await silent.client->Close();
  co_return 0;
}

// A server that ends takes no more requests, but answers those it has: that is no failure of
// theirs.
Task<int> AnswersOfAServerThatEnds() {
  Silent silent;
  std::string into(5, 'x'), more(5, 'x');
  Outcome read, refused;
  TaskScope scope;
  scope.Spawn(Into(silent.client->Read(0, into), &read));
  std::string request = co_await silent.Receive(kRequestBytes);
  shutdown(silent.server_fd, SHUT_RD);
  scope.Spawn(Into(silent.client->Read(0, more), &refused));
  (void)co_await Loop::Current()->Sleep(5 * kMillisecondNs);
  silent.Answer(request, "right");
  silent.HangUp();
  co_await scope.Join();
  CHECK(read.status.ok());
  CHECK(into == "right");
  CHECK(!refused.status.ok());
  co_await silent.client->Close();
  co_return 0;
}

}  // namespace

TEST_CASE("requests to a silent server end when they are stopped") { RunIt(StopEverything); }
TEST_CASE("a request may be stopped by another thread") { RunIt(StopFromAnotherThread); }
TEST_CASE("the late answer to a stopped request is skipped") { RunIt(LateAnswer); }
TEST_CASE("each request ends at its own deadline") { RunIt(Deadlines); }
TEST_CASE("a payload that is half sent ends with the connection") { RunIt(HalfSent); }
TEST_CASE("a payload that is half received ends with the connection") { RunIt(HalfReceived); }
TEST_CASE("a request that waits for its turn can be stopped") { RunIt(WaitingForRoom); }
TEST_CASE("one user's stop leaves the others alone") { RunIt(ManyTokens); }
TEST_CASE("memory that a server may still write to is not used again") {
  RunIt(ArenaAfterGivingUp);
}
TEST_CASE("memory is used again when the server has ended, and only then") {
  RunIt([] { return ArenaAfterFailure(true); });
  RunIt([] { return ArenaAfterFailure(false); });
}
TEST_CASE("a server that ends may answer what it has") { RunIt(AnswersOfAServerThatEnds); }
