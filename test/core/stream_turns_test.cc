// When a stream tells the loop to look for the client's next request instead of sleeping.
#include <doctest/doctest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <functional>

#include "src/core/stream.h"
#include "test/support/queue_loop.h"

using namespace blk;

namespace {

// A loop whose waits end at once: the client does its part in them.
class TurnLoop final : public test::QueueLoop {
 public:
  explicit TurnLoop(std::function<void()> client) : client_(std::move(client)) {}
  std::unique_ptr<Watch> WatchDescriptor(int) override { return std::make_unique<Turn>(this); }
  void ExpectSoon() override { ++expected_; }

  int expected() const { return expected_; }

 private:
  struct Turn final : Watch {
    explicit Turn(TurnLoop* loop) : loop(loop) {}
    Task<absl::Status> Readable() override {
      loop->client_();
      return absl::OkStatus();
    }
    Task<absl::Status> Writable() override { return absl::OkStatus(); }
    void Cancel() override {}
    TurnLoop* const loop;
  };
  std::function<void()> client_;
  int expected_ = 0;
};

constexpr int kTurns = 100;

Task<void> Answer(Stream* stream, int lone_every) {
  char request[64], answer[100] = {};
  const iovec part{answer, sizeof answer};
  for (int i = 0; i < kTurns; ++i) {
    BLK_CHECK((co_await stream->ReadSome(request)).ok());
    BLK_CHECK((co_await stream->WriteAll({&part, 1})).ok());
    if (lone_every > 0 && i % lone_every == 0) stream->LoneRequestAnswered();
  }
}

void Connect(int family, int ends[2]) {
  if (family == AF_UNIX) {
    BLK_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
    return;
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t bytes = sizeof address;
  auto* any = reinterpret_cast<sockaddr*>(&address);
  const int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  BLK_CHECK(bind(listener, any, bytes) == 0 && listen(listener, 1) == 0);
  BLK_CHECK(getsockname(listener, any, &bytes) == 0);
  ends[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  BLK_CHECK(connect(ends[1], any, bytes) == 0);
  ends[0] = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC);
  BLK_CHECK(ends[0] >= 0);
  close(listener);
}

struct Case {
  int lone_every = 1;   // turns; 0: never
  int reads_every = 1;  // turns
  int family = AF_UNIX;
};
// How many of the waits were announced.
int Expected(Case c) {
  int ends[2], turn = 0;
  Connect(c.family, ends);
  int expected;
  {
    TurnLoop loop([&] {
      char answers[8192];
      if (++turn % c.reads_every == 0)
        while (recv(ends[1], answers, sizeof answers, MSG_DONTWAIT) > 0);
      BLK_CHECK(send(ends[1], "request", 7, 0) == 7);
    });
    StreamPtr stream = MakeSocketStream(ends[0]);
    loop.Spawn(Answer(stream.get(), c.lone_every));
    loop.Run();
    expected = loop.expected();
  }
  close(ends[1]);
  return expected;
}

}  // namespace

TEST_CASE("the request of a client that sends one at a time is looked for, from the 33rd on") {
  const int expected = Expected({});
  CHECK(expected > 60);
  CHECK(expected <= kTurns - 32);
}
TEST_CASE("who is not always alone with his request is not looked out for") {
  CHECK(Expected({.lone_every = 0}) == 0);
  CHECK(Expected({.lone_every = 3}) == 0);
}
TEST_CASE("a client that has more in flight than it has read is not looked out for") {
  CHECK(Expected({.reads_every = 7}) == 0);
  CHECK(Expected({.reads_every = 1000}) == 0);
}
TEST_CASE("a peer that is no process of this machine is not looked out for") {
  CHECK(Expected({.family = AF_INET}) == 0);
}
