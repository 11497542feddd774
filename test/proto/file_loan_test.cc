// Reads that the server answers from the page cache: WriteWithFile of a socket, below a session.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <random>

#include "src/core/file_io.h"
#include "src/proto/session_client.h"
#include "src/proto/session_server.h"
#include "test/support/array_device.h"
#include "test/temporary.h"

namespace blk::nbd {
namespace {

constexpr uint64_t kSize = 8 << 20;

// Lends whatever is cached, and lets a test do something to the file each time.
class LendingDevice final : public Device {
 public:
  explicit LendingDevice(FileIo* file) : Device(test::ArrayFacts(kSize)), file_(*file) {}
  std::function<void()> when_lent;
  int lent = 0, read = 0;

 protected:
  Task<absl::Status> DoRead(const Call&, uint64_t offset, std::span<char> into) override {
    ++read;
    return file_.ReadAt(offset, into);
  }
  bool DoBorrow(const Call& call, uint64_t offset, uint64_t length, Loan* loan) override {
    if (!(call.flags & kLendFile) || !file_.IsCached(offset, length)) return false;
    ++lent;
    loan->SetFile({&file_, offset, length});
    if (when_lent) when_lent();
    return true;
  }

 private:
  FileIo& file_;
};

// A file, a server session over it and a client session, on one loop.
struct Pair {
  TemporaryDirectory folder;
  std::string content = std::string(kSize, '\0');
  std::unique_ptr<FileIo> file;
  std::unique_ptr<LendingDevice> device;
  MemoryBudget budget{256 << 20};
  StreamPtr stream;
  std::unique_ptr<BufferedReader> reader;
  std::unique_ptr<ServerSession> server;
  std::unique_ptr<ClientSession> client;
  TaskScope scope;
  absl::Status server_end = absl::UnknownError("still running");

  explicit Pair(ReplyStyle style) {
    std::mt19937_64 random(1);
    for (char& byte : content) byte = static_cast<char>(random());
    file = std::make_unique<FileIo>(open(folder.Write("disk", content).c_str(), O_RDWR | O_CLOEXEC),
                                    "disk");
    REQUIRE(fsync(file->fd()) == 0);  // only clean pages can be dropped
    device = std::make_unique<LendingDevice>(file.get());
    int fds[2];
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    stream = MakeSocketStream(fds[0]);
    reader = std::make_unique<BufferedReader>(stream.get());
    ServerSessionOptions options;
    options.style = style;
    options.budget = &budget;
    options.transmission_flags = TransmissionFlagsFor(device->facts(), style);
    ClientSessionOptions same{style, options.transmission_flags, {}, 64, nullptr};
    server = std::make_unique<ServerSession>(reader.get(), device.get(), std::move(options));
    client = std::make_unique<ClientSession>(MakeSocketStream(fds[1]), std::span<const char>(),
                                             std::move(same));
    scope.Spawn(Serve());
    client->Start();
  }
  Task<void> Serve() {
    server_end = co_await server->Run();
    stream->ShutdownWrite();
  }
  Task<void> End() {
    co_await client->Close();
    co_await scope.Join();
  }
  void DropCache() { (void)posix_fadvise(file->fd(), 0, 0, POSIX_FADV_DONTNEED); }
};

Task<void> ReadAndCompare(Pair* pair, uint64_t offset, uint64_t length, int* wrong) {
  std::string got(length, 'x');
  const absl::Status status = co_await pair->client->Read(offset, got);
  if (!status.ok() || got != std::string_view(pair->content).substr(offset, length)) ++*wrong;
}

// After this all of it is cached, and it is known that reads of what is cached do not wait.
Task<void> ReadAll(Pair* pair) {
  int wrong = 0;
  co_await ReadAndCompare(pair, 0, kSize, &wrong);
  co_await ReadAndCompare(pair, 0, 1, &wrong);
  CHECK(wrong == 0);
}

// Reads of 1 byte to 1 MiB at any offset, all at once, so that headers, copied bytes and ranges of
// files follow one another in every order, and more than the socket holds.
Task<int> RandomReads(ReplyStyle style, bool drop_cache) {
  Pair pair(style);
  if (drop_cache) pair.device->when_lent = [&] { pair.DropCache(); };
  std::mt19937_64 random(2);
  int wrong = 0;
  co_await ReadAll(&pair);
  TaskScope scope;
  for (int i = 0; i < 200; ++i) {
    const uint64_t length = 1 + random() % (random() % 2 ? 1000 : 1 << 20);
    scope.Spawn(ReadAndCompare(&pair, random() % (kSize - length), length, &wrong));
  }
  co_await scope.Join();
  co_await pair.End();
  CHECK(pair.server_end.message() == "");
  CHECK(pair.device->lent >= (drop_cache ? 1 : 50));
  CHECK(pair.device->read >= 50);  // the small ones
  co_return wrong;
}

TEST_CASE("files: what is lent is sent, between copied replies and in order") {
  for (ReplyStyle style : {ReplyStyle::kSimple, ReplyStyle::kStructured, ReplyStyle::kExtended}) {
    LoopPool pool(1);
    CHECK(pool.RunMain(RandomReads(style, /*drop_cache=*/false)) == 0);
  }
}

TEST_CASE("files: what leaves the page cache before it is sent comes from the disk") {
  for (ReplyStyle style : {ReplyStyle::kSimple, ReplyStyle::kExtended}) {
    LoopPool pool(1);
    CHECK(pool.RunMain(RandomReads(style, /*drop_cache=*/true)) == 0);
  }
}

Task<absl::Status> ReadOfShrinking(uint64_t length) {
  Pair pair(ReplyStyle::kSimple);
  co_await ReadAll(&pair);
  pair.device->when_lent = [&] { REQUIRE(ftruncate(pair.file->fd(), kSize / 2) == 0); };
  std::string got(length, 'x');
  const absl::Status status = co_await pair.client->Read(kSize / 2 - 4096, got);
  co_await pair.End();
  CHECK(!status.ok());  // the reply had begun: only the end of the connection can say so
  co_return pair.server_end;
}

TEST_CASE("files: one that is made shorter while it is sent ends the connection") {
  for (uint64_t length : {64 << 10, 1 << 20}) {
    LoopPool pool(1);
    const absl::Status end = pool.RunMain(ReadOfShrinking(length));
    CHECK(ErrnoOf(end) == EIO);
    CHECK(end.message().find("disk ends at or before 4194304") != std::string::npos);
  }
}

Task<absl::Status> ReadOfShortened() {
  Pair pair(ReplyStyle::kSimple);
  co_await ReadAll(&pair);
  REQUIRE(ftruncate(pair.file->fd(), kSize / 2 + 100) == 0);
  std::string got(64 << 10, 'x');
  const absl::Status status = co_await pair.client->Read(kSize / 2, got);
  CHECK((co_await pair.client->Read(0, got)).ok());
  co_await pair.End();
  co_return status;
}

TEST_CASE("files: one that was made shorter before gives EIO, and the connection goes on") {
  LoopPool pool(1);
  CHECK(ErrnoOf(pool.RunMain(ReadOfShortened())) == EIO);
}

}  // namespace
}  // namespace blk::nbd
