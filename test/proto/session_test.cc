#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <random>

#include "src/proto/session_client.h"
#include "src/proto/session_server.h"
#include "test/support/array_device.h"

using namespace blk;
using namespace blk::nbd;

namespace {

constexpr uint64_t kSize = 300'000;

// Counts how often the server had answered its only request.
class CountingStream final : public Stream {
 public:
  explicit CountingStream(StreamPtr stream) : stream_(std::move(stream)) {}
  Task<absl::StatusOr<size_t>> ReadSome(std::span<char> into) override {
    return stream_->ReadSome(into);
  }
  Task<absl::Status> WriteAll(std::span<const iovec> parts) override {
    return stream_->WriteAll(parts);
  }
  void LoneRequestAnswered() override { ++lone_requests; }
  void ShutdownWrite() override { stream_->ShutdownWrite(); }
  void ShutdownRead() override { stream_->ShutdownRead(); }
  void Cancel() override { stream_->Cancel(); }
  const Peer& peer() const override { return stream_->peer(); }

  int lone_requests = 0;

 private:
  const StreamPtr stream_;
};

// A server session and a client session at the two ends of a socket pair, on one loop.
struct Pair {
  test::ArrayDevice device;
  MemoryBudget budget{64 << 20};
  std::shared_ptr<Arena> arena;
  std::unique_ptr<BufferedReader> reader;
  std::unique_ptr<CountingStream> server_stream;
  std::unique_ptr<ServerSession> server;
  std::unique_ptr<ClientSession> client;
  TaskScope scope;
  absl::Status server_end = absl::UnknownError("still running");

  // With `arena_bytes` the two share memory, as two processes would: each has its own mapping.
  explicit Pair(ReplyStyle style, Facts facts = test::ArrayFacts(kSize),
                size_t server_requests_max = 256, uint64_t arena_bytes = 0)
      : device(facts) {
    int fds[2];
    BLK_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    server_stream = std::make_unique<CountingStream>(MakeSocketStream(fds[0]));
    reader = std::make_unique<BufferedReader>(server_stream.get());
    uint16_t flags = TransmissionFlagsFor(device.facts(), style);
    std::vector<MetaContext> contexts;
    if (style != ReplyStyle::kSimple) contexts.push_back({17, std::string(blk::kBaseAllocation)});
    server = std::make_unique<ServerSession>(
        reader.get(), &device,
        ServerSessionOptions{style, flags, contexts, 1, server_requests_max, &budget,
                             ServersArena(arena_bytes)});
    client =
        std::make_unique<ClientSession>(MakeSocketStream(fds[1]), std::span<const char>(),
                                        ClientSessionOptions{style, flags, contexts, 64, arena});
    scope.Spawn(Serve());
    client->Start();
  }
  std::shared_ptr<Arena> ServersArena(uint64_t bytes) {
    if (bytes == 0) return nullptr;
    arena = *Arena::Create(bytes);
    return *Arena::Adopt(dup(arena->fd()), bytes);
  }
  Task<void> Serve() {
    server_end = co_await server->Run();
    server_stream->ShutdownWrite();
  }
  Task<void> End() {
    co_await client->Close();
    co_await scope.Join();
  }
};

Task<void> OneRandomRequest(Pair* pair, std::string* model, uint64_t slot, uint64_t random,
                            int* failures) {
  // Each slot owns a part of the disk, so that concurrent requests do not overlap.
  uint64_t part = kSize / 16, base = slot * part;
  uint64_t offset = base + random % part, length = 1 + (random >> 20) % (base + part - offset);
  bool good = false;
  switch ((random >> 50) % 5) {
    case 0:
    case 1: {
      std::string into(length, 'x');
      absl::Status status = co_await pair->client->Read(offset, into);
      good = status.ok() && into == model->substr(offset, length);
      break;
    }
    case 2: {
      std::string from(length, static_cast<char>(random >> 40));
      model->replace(offset, length, from);
      good = (co_await pair->client->Write(offset, from, random & 1 ? kFua : 0)).ok();
      break;
    }
    case 3: {
      model->replace(offset, length, std::string(length, '\0'));
      good = (co_await pair->client->Zero(offset, length, 0)).ok();
      break;
    }
    case 4: {
      model->replace(offset, length, std::string(length, '\0'));
      good = (co_await pair->client->Trim(offset, length, 0)).ok();
      break;
    }
  }
  if (!good) ++*failures;
}

Task<void> RandomRequests(Pair* pair, std::string* model, uint64_t slot, int* failures) {
  std::mt19937_64 random(slot);
  for (int i = 0; i < 60; ++i) co_await OneRandomRequest(pair, model, slot, random(), failures);
}

Task<int> Oracle(ReplyStyle style, bool suspend, size_t server_requests_max,
                 uint64_t arena_bytes = 0, bool shared_buffers_ok = false) {
  Facts facts = test::ArrayFacts(kSize);
  facts.shared_buffers_ok = shared_buffers_ok;
  Pair pair(style, facts, server_requests_max, arena_bytes);
  pair.device.suspend = suspend;
  std::string model(kSize, '\0');
  int failures = 0;
  TaskScope scope;
  for (uint64_t slot = 0; slot < 16; ++slot)
    scope.Spawn(RandomRequests(&pair, &model, slot, &failures));
  co_await scope.Join();
  std::string all(kSize, 'x');
  if (!(co_await pair.client->Read(0, all)).ok() || all != model) ++failures;
  if (pair.device.bytes != model) ++failures;
  if (!(co_await pair.client->Flush()).ok() || pair.device.flushes != 1) ++failures;
  if (!(co_await pair.client->Cache(0, kSize)).ok()) ++failures;
  co_await pair.End();
  if (!pair.server_end.ok()) ++failures;
  co_return failures;
}

Task<ExtentList> Map(ReplyStyle style, bool one) {
  Pair pair(style);
  BLK_CHECK((co_await pair.client->Write(4096, std::string(5, 'a'), 0)).ok());
  ExtentList list(0, kSize);
  absl::Status status =
      co_await pair.client->Extents(blk::kBaseAllocation, &list, one ? kRequestOne : 0);
  if (style == ReplyStyle::kSimple) {
    CHECK(ErrnoOf(status) == EOPNOTSUPP);
  } else {
    CHECK(status.ok());
  }
  co_await pair.End();
  co_return list;
}

Task<void> Refusals(ReplyStyle style) {
  Facts facts = test::ArrayFacts(kSize);
  facts.read_only = true;
  facts.fast_zero = false;
  Pair pair(style, facts);
  std::string one(1, 'x'), two(2, 'x');
  CHECK(ErrnoOf(co_await pair.client->Write(0, one, 0)) == EPERM);
  CHECK(ErrnoOf(co_await pair.client->Read(kSize - 1, two)) == EINVAL);
  CHECK(ErrnoOf(co_await pair.client->Read(UINT64_MAX, two)) == EINVAL);
  CHECK(ErrnoOf(co_await pair.client->Read(5, {})) == EINVAL);
  CHECK(ErrnoOf(co_await pair.client->Zero(0, 10, kFastZero)) == EINVAL);
  // A payload that is refused is consumed: the connection goes on.
  std::string large(200'000, 'y');
  CHECK(ErrnoOf(co_await pair.client->Write(0, large, 0)) == EPERM);
  CHECK((co_await pair.client->Read(kSize - 1, one)).ok());
  pair.device.failure = ErrnoErrorAsIs(ENOSPC, "the disk is full");
  absl::Status status = co_await pair.client->Read(0, two);
  CHECK(ErrnoOf(status) == ENOSPC);
  if (style != ReplyStyle::kSimple)
    CHECK(status.message().find("the disk is full") != std::string::npos);
  co_await pair.End();
  CHECK(pair.server_end.ok());
}

Task<void> TenReads(Pair* pair) {
  std::string into(4096, 'x');
  for (int i = 0; i < 10; ++i) CHECK((co_await pair->client->Read(0, into)).ok());
}
// Of clients that read ten times each, how many requests the server answered alone.
Task<int> LoneRequests(int clients, bool suspend) {
  Pair pair(ReplyStyle::kStructured);
  pair.device.suspend = suspend;
  TaskScope scope;
  for (int i = 0; i < clients; ++i) scope.Spawn(TenReads(&pair));
  co_await scope.Join();
  const int lone = pair.server_stream->lone_requests;
  co_await pair.End();
  co_return lone;
}

Task<void> RunServer(ServerSession* server) { CHECK((co_await server->Run()).ok()); }

// A client whose arena is larger than what the server was given.
Task<void> ArenaRange(ReplyStyle style) {
  test::ArrayDevice device(kSize);
  MemoryBudget budget(64 << 20);
  std::shared_ptr<Arena> large = *Arena::Create(1 << 20);
  int fds[2];
  BLK_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
  StreamPtr server_stream = MakeSocketStream(fds[0]);
  BufferedReader reader(server_stream.get());
  ServerSession server(&reader, &device,
                       {style,
                        TransmissionFlagsFor(device.facts(), style),
                        {},
                        1,
                        256,
                        &budget,
                        *Arena::Adopt(dup(large->fd()), 8192)});
  ClientSession client(MakeSocketStream(fds[1]), {},
                       {style, TransmissionFlagsFor(device.facts(), style), {}, 64, large});
  TaskScope scope;
  scope.Spawn(RunServer(&server));
  client.Start();
  std::span<char> inside(large->data(), 4096), across(large->data() + 4096, 8192);
  std::fill(inside.begin(), inside.end(), 'i');
  CHECK((co_await client.Write(0, inside, 0)).ok());
  CHECK(ErrnoOf(co_await client.Read(0, across)) == EINVAL);
  CHECK(ErrnoOf(co_await client.Write(0, across, 0)) == EINVAL);
  std::fill(inside.begin(), inside.end(), 'x');
  CHECK((co_await client.Read(0, inside)).ok());
  CHECK(inside[4095] == 'i');
  co_await client.Close();
  co_await scope.Join();
}

Task<void> ServerDies() {
  Pair pair(ReplyStyle::kStructured);
  pair.device.suspend = true;
  pair.server->Abort();
  std::string one(1, 'x');
  CHECK(!(co_await pair.client->Read(0, one)).ok());
  CHECK(!(co_await pair.client->Read(0, one)).ok());
  co_await pair.End();
}

Task<void> Garbage(ReplyStyle style) {
  int fds[2];
  BLK_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
  StreamPtr server_stream = MakeSocketStream(fds[0]);
  BufferedReader reader(server_stream.get());
  test::ArrayDevice device(kSize);
  MemoryBudget budget(1 << 20);
  ServerSession server(&reader, &device, {style, kFlagHasFlags, {}, 1, 256, &budget});
  std::string garbage(1000, 'g');
  CHECK(send(fds[1], garbage.data(), garbage.size(), 0) == 1000);
  CHECK(ErrnoOf(co_await server.Run()) == EPROTO);
  close(fds[1]);
}

// What qemu 10 sends: an extended write that does not announce its payload, then a read of it.
Task<void> WriteWithoutPayloadFlag() {
  int fds[2];
  BLK_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
  StreamPtr server_stream = MakeSocketStream(fds[0]);
  BufferedReader reader(server_stream.get());
  test::ArrayDevice device(kSize);
  MemoryBudget budget(64 << 20);
  const ReplyStyle style = ReplyStyle::kExtended;
  ServerSession server(&reader, &device,
                       {style, TransmissionFlagsFor(device.facts(), style), {}, 1, 256, &budget});
  std::string bytes(2 * kExtendedRequestBytes + 3, '\0');
  StoreExtendedRequest(bytes.data(), {.type = kCmdWrite, .cookie = 1, .offset = 7, .length = 3});
  bytes.replace(kExtendedRequestBytes, 3, "abc");
  StoreExtendedRequest(bytes.data() + kExtendedRequestBytes + 3, {.type = kCmdDisconnect});
  CHECK(send(fds[1], bytes.data(), bytes.size(), 0) == static_cast<ssize_t>(bytes.size()));
  CHECK((co_await server.Run()).ok());
  CHECK(device.bytes.substr(6, 5) == std::string("\0abc\0", 5));
  close(fds[1]);
}

template <typename T>
T RunIt(Task<T> task) {
  LoopPool pool(1);
  return pool.RunMain(std::move(task));
}
Task<int> Done(Task<void> task) {
  co_await std::move(task);
  co_return 0;
}
constexpr ReplyStyle kStyles[] = {ReplyStyle::kSimple, ReplyStyle::kStructured,
                                  ReplyStyle::kExtended};

}  // namespace

TEST_CASE("random requests of many clients give what a byte array gives") {
  for (ReplyStyle style : kStyles)
    for (bool suspend : {false, true})
      for (size_t requests : {1, 256}) {
        CAPTURE(static_cast<int>(style));
        CAPTURE(suspend);
        CAPTURE(requests);
        CHECK(RunIt(Oracle(style, suspend, requests)) == 0);
      }
}
TEST_CASE("the same through shared memory, also when there is too little of it") {
  for (ReplyStyle style : kStyles)
    for (bool shared_buffers_ok : {false, true})
      for (uint64_t arena_bytes : {uint64_t{64 << 10}, uint64_t{16 << 20}}) {
        CAPTURE(static_cast<int>(style));
        CAPTURE(shared_buffers_ok);
        CAPTURE(arena_bytes);
        CHECK(RunIt(Oracle(style, true, 256, arena_bytes, shared_buffers_ok)) == 0);
        CHECK(RunIt(Oracle(style, false, 256, arena_bytes, shared_buffers_ok)) == 0);
      }
}
TEST_CASE("a range beyond the shared memory is refused, and the connection goes on") {
  for (ReplyStyle style : kStyles) RunIt(Done(ArenaRange(style)));
}
TEST_CASE("what cannot be shared safely is refused") {
  CHECK(!Arena::Adopt(open("/dev/zero", O_RDWR | O_CLOEXEC), 4096).ok());
  CHECK(!Arena::Adopt(memfd_create("unsealed", MFD_CLOEXEC | MFD_ALLOW_SEALING), 4096).ok());
  std::shared_ptr<Arena> arena = *Arena::Create(8192);
  CHECK(!Arena::Adopt(dup(arena->fd()), 8193).ok());
  CHECK(!Arena::Adopt(dup(arena->fd()), 0).ok());
  CHECK(Arena::Adopt(dup(arena->fd()), 8192).ok());
  CHECK(arena->At(8192, 0) != nullptr);
  CHECK(arena->At(8192, 1) == nullptr);
  CHECK(arena->At(UINT64_MAX, 2) == nullptr);
}
TEST_CASE("extents go over the wire, all or the first one") {
  RunIt(Map(ReplyStyle::kSimple, false));
  for (ReplyStyle style : {ReplyStyle::kStructured, ReplyStyle::kExtended}) {
    ExtentList all = RunIt(Map(style, false));
    CHECK(all.extents() == std::vector<Extent>{{4096, 3}, {5, 0}, {kSize - 4101, 3}});
    ExtentList one = RunIt(Map(style, true));
    CHECK(one.extents() == std::vector<Extent>{{4096, 3}});
  }
}
TEST_CASE("what is not allowed gets the error of the protocol document") {
  for (ReplyStyle style : kStyles) RunIt(Done(Refusals(style)));
}
TEST_CASE("a server that dies gives an error, not a hang") { RunIt(Done(ServerDies())); }
TEST_CASE("an extended write needs no PAYLOAD_LEN flag, as qemu 10 sends none") {
  RunIt(Done(WriteWithoutPayloadFlag()));
}
TEST_CASE("the stream is told of requests that are answered alone") {
  for (bool suspend : {false, true}) {
    CHECK(RunIt(LoneRequests(1, suspend)) == 10);
    CHECK(RunIt(LoneRequests(2, suspend)) == 0);
  }
}
TEST_CASE("garbage instead of a request ends the connection") {
  for (ReplyStyle style : kStyles) RunIt(Done(Garbage(style)));
}
