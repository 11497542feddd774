#include "src/core/loop.h"

#include <doctest/doctest.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "src/core/scope.h"
#include "src/core/stream.h"
#include "src/core/sync.h"

using namespace blk;

namespace {

Task<int> Ready(int value) { return value; }
Task<int> Double(Task<int> task) { co_return 2 * co_await std::move(task); }

Task<absl::Status> Nested(int depth) {
  if (depth == 0) co_return absl::OkStatus();
  BLK_CO_RETURN_IF_ERROR(co_await Nested(depth - 1));
  co_return absl::OkStatus();
}

Task<int> Sum(int a) {
  int sum = co_await Double(Ready(a));
  co_await Yield();
  sum += co_await Double(Double(Ready(1)));
  BLK_CHECK((co_await Nested(10000)).ok());
  co_return sum;
}

Task<void> SleepThenAppend(int64_t ns, std::vector<int>* order, int value) {
  (void)co_await Loop::Current()->Sleep(ns);
  order->push_back(value);
}

Task<bool> SleepsEndInOrder() {
  std::vector<int> order;
  TaskScope scope;
  scope.Spawn(SleepThenAppend(20'000'000, &order, 3));
  scope.Spawn(SleepThenAppend(1'000'000, &order, 1));
  scope.Spawn(SleepThenAppend(10'000'000, &order, 2));
  co_await scope.Join();
  co_return order == std::vector<int>{1, 2, 3};
}

Task<void> StopAfter(int64_t ns, std::stop_source source) {
  (void)co_await Loop::Current()->Sleep(ns);
  source.request_stop();
}

Task<absl::Status> StoppedSleep(bool from_other_thread) {
  std::stop_source source;
  std::stop_token token = source.get_token();
  TaskScope scope;
  std::jthread thread;
  if (from_other_thread) {
    thread = std::jthread([&] {
      usleep(1000);
      source.request_stop();
    });
  } else {
    scope.Spawn(StopAfter(1'000'000, source));
  }
  absl::Status status = co_await Loop::Current()->Sleep(3600'000'000'000, &token);
  co_await scope.Join();
  co_return status;
}

struct Counters {
  int inside = 0, most = 0, done = 0;
};
Task<void> Critical(Mutex* mutex, Counters* counters) {
  MutexGuard guard = co_await mutex->Lock();
  counters->most = std::max(counters->most, ++counters->inside);
  co_await Yield();
  --counters->inside;
  ++counters->done;
}
Task<void> CriticalOn(Loop* loop, Mutex* mutex, Counters* counters) {
  co_await RunOn(loop, Critical(mutex, counters));
}
Task<Counters> MutexOverLoops(LoopPool* pool) {
  Mutex mutex;
  Counters counters;
  TaskScope scope;
  for (int i = 0; i < 1000; ++i)
    scope.Spawn(CriticalOn(pool->loop(i % pool->size()), &mutex, &counters));
  co_await scope.Join();
  co_return counters;
}

Task<bool> OffloadComesBack() {
  std::thread::id here = std::this_thread::get_id(), there;
  co_await Loop::Current()->Offload([&] { there = std::this_thread::get_id(); });
  co_return here == std::this_thread::get_id() && there != here;
}

Task<void> EchoServer(int fd, bool* done) {
  auto watch = Loop::Current()->WatchDescriptor(fd);
  auto connection = co_await Accept(fd, watch.get());
  BLK_CHECK(connection.ok());
  StreamPtr stream = MakeSocketStream(*connection);
  std::vector<char> buffer(100'000);
  for (;;) {
    auto got = co_await stream->ReadSome(buffer);
    BLK_CHECK(got.ok());
    if (*got == 0) break;
    iovec part{buffer.data(), *got};
    BLK_CHECK((co_await stream->WriteAll({&part, 1})).ok());
  }
  *done = true;
}

Task<void> SendAll(Stream* stream, const std::string* bytes) {
  std::vector<iovec> parts;
  for (size_t at = 0; at < bytes->size(); at += 777)
    parts.push_back(
        {const_cast<char*>(bytes->data()) + at, std::min<size_t>(777, bytes->size() - at)});
  BLK_CHECK((co_await stream->WriteAll(parts)).ok());
  stream->ShutdownWrite();
}

Task<bool> Echo(std::string path) {
  auto fd = ListenUnix(path);
  BLK_CHECK(fd.ok());
  bool done = false;
  TaskScope scope;
  scope.Spawn(EchoServer(*fd, &done));
  auto stream = co_await ConnectUnix(path);
  BLK_CHECK(stream.ok());
  std::string sent;
  for (size_t i = 0; i < 3'000'000; ++i) sent += static_cast<char>(i * 7919 >> 5);
  scope.Spawn(SendAll(stream->get(), &sent));
  BufferedReader reader(stream->get());
  std::string got(sent.size(), 0);
  BLK_CHECK((co_await reader.ReadExactly(std::span(got).first(1'000'001))).ok());
  BLK_CHECK((co_await reader.ReadExactly(std::span(got).subspan(1'000'001))).ok());
  char more;
  absl::Status at_end = co_await reader.ReadExactly({&more, 1});
  co_await scope.Join();
  close(*fd);
  unlink(path.c_str());
  co_return done&& got == sent&& ErrnoOf(at_end) == ECONNRESET;
}

// The peer's last bytes and its end arrive together, before or after the reader begins to wait.
Task<bool> LastBytesThenEnd(bool reader_waits_first) {
  int ends[2];
  BLK_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  StreamPtr stream = MakeSocketStream(ends[0]);
  std::jthread peer([&] {
    if (reader_waits_first) usleep(20'000);
    BLK_CHECK(write(ends[1], "last", 4) == 4);
    close(ends[1]);
  });
  if (!reader_waits_first) peer.join();
  char buffer[100];
  auto bytes = co_await stream->ReadSome(buffer);
  auto end = co_await stream->ReadSome(buffer);
  co_return bytes.ok() && *bytes == 4 && end.ok() && *end == 0;
}

// The same while nobody waits, after bytes that somebody has waited for.
Task<bool> LastBytesAndEndUnawaited() {
  int ends[2];
  BLK_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  StreamPtr stream = MakeSocketStream(ends[0]);
  char buffer[100];
  std::jthread peer([&] {
    usleep(10'000);
    BLK_CHECK(write(ends[1], "first", 5) == 5);
  });
  auto first = co_await stream->ReadSome(buffer);
  peer.join();
  BLK_CHECK(write(ends[1], "last", 4) == 4);
  close(ends[1]);
  (void)co_await Loop::Current()->Sleep(10'000'000);  // the loop learns of it all
  auto last = co_await stream->ReadSome(buffer);
  auto end = co_await stream->ReadSome(buffer);
  co_return *first == 5 && *last == 4 && end.ok() && *end == 0;
}

Task<absl::Status> WriteUntilFull(Stream* stream) {
  std::vector<char> bytes(8 << 20);
  iovec part{bytes.data(), bytes.size()};
  co_return co_await stream->WriteAll({&part, 1});
}
Task<absl::Status> BlockedWriterMeetsTheEnd() {
  int ends[2];
  BLK_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  StreamPtr stream = MakeSocketStream(ends[0]);
  std::jthread peer([fd = ends[1]] {
    std::vector<char> some(100'000);  // the writer goes on a few times before its peer leaves
    for (int i = 0; i < 20; ++i) (void)!read(fd, some.data(), some.size());
    usleep(10'000);
    close(fd);
  });
  co_return co_await WriteUntilFull(stream.get());
}

Task<void> OffloadOnce(std::atomic<int>* ran) {
  co_await Loop::Current()->Offload([ran] { ++*ran; });
}
Task<int> OffloadMany() {
  std::atomic<int> ran{0};
  TaskScope scope;
  for (int i = 0; i < 1000; ++i) scope.Spawn(OffloadOnce(&ran));
  co_await scope.Join();
  co_return ran;
}

// No thread can be started while this lives: the system has no room for a stack of that size. (A
// limit on their number does not bind root.)
class NoNewThreads {
 public:
  NoNewThreads() {
    REQUIRE(pthread_getattr_default_np(&before_) == 0);
    pthread_attr_t huge;
    REQUIRE(pthread_attr_init(&huge) == 0);
    REQUIRE(pthread_attr_setstacksize(&huge, size_t{1} << 50) == 0);
    REQUIRE(pthread_setattr_default_np(&huge) == 0);
    pthread_attr_destroy(&huge);
  }
  ~NoNewThreads() {
    CHECK(pthread_setattr_default_np(&before_) == 0);
    pthread_attr_destroy(&before_);
  }

 private:
  pthread_attr_t before_;
};

Task<bool> OffloadHere() {
  std::thread::id there;
  co_await Loop::Current()->Offload([&] { there = std::this_thread::get_id(); });
  co_return there == std::this_thread::get_id();
}
// One thread there is, and it has work until that of the others is queued.
Task<bool> OffloadToTheOneThread() {
  std::atomic<int> ran{0}, started{0};
  std::atomic<bool> go_on{false};
  TaskScope scope;
  struct Work {
    static Task<void> Block(std::atomic<int>* started, std::atomic<bool>* go_on) {
      co_await Loop::Current()->Offload([=] {
        ++*started;
        go_on->wait(false);
      });
    }
  };
  scope.Spawn(Work::Block(&started, &go_on));
  {
    NoNewThreads none;
    while (started == 0) std::this_thread::yield();
    for (int i = 0; i < 10; ++i) scope.Spawn(OffloadOnce(&ran));
  }
  CHECK(ran == 0);
  go_on = true;
  go_on.notify_all();
  co_await scope.Join();
  co_return ran == 10;
}

// What loop 1 is told while it runs something, and before it is stopped, it does.
Task<void> Count(int* ran) {
  ++*ran;
  co_return;
}
Task<void> HoldUp(std::atomic<int>* stage) {
  *stage = 1;
  while (*stage < 2) std::this_thread::yield();
  co_return;
}
Task<int> PostThenStop(LoopPool* pool, std::atomic<int>* stage, int* ran) {
  pool->loop(1)->Spawn(HoldUp(stage));
  while (*stage < 1) std::this_thread::yield();
  pool->loop(1)->Spawn(Count(ran));
  pool->Stop();
  *stage = 2;
  co_return 0;
}

// A watch is destroyed by another loop, while the events that it watches for come.
Task<void> WatchEndsElsewhere(LoopPool* pool, std::atomic<int>* fd_written) {
  for (int i = 0; i < 2000; ++i) {
    int ends[2];
    BLK_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
    auto watch = Loop::Current()->WatchDescriptor(ends[0]);
    *fd_written = ends[1];
    co_await ResumeOn{pool->loop(1)};
    watch.reset();
    for (int told = ends[1]; !fd_written->compare_exchange_weak(told, -1) && told != -1;) {
      told = ends[1];
      std::this_thread::yield();
    }
    co_await ResumeOn{pool->loop(0)};
    close(ends[0]);
    close(ends[1]);
  }
}
// Writes to whatever it is told; meanwhile it says -2.
Task<bool> WatchesEndElsewhere(LoopPool* pool) {
  std::atomic<int> fd{-1};
  std::jthread writer([&fd](std::stop_token stop) {
    while (!stop.stop_requested()) {
      int told = fd;
      if (told < 0 || !fd.compare_exchange_strong(told, -2)) continue;
      for (int i = 0; i < 20; ++i) (void)!write(told, "x", 1);
      fd = -1;
    }
  });
  co_await WatchEndsElsewhere(pool, &fd);
  co_return true;
}

Task<bool> LookAndGoOn(LoopPool* pool) {
  for (int i = 0; i < 3000; ++i) {
    Loop::Current()->ExpectSoon();
    co_await ResumeOn{pool->loop(i % 2)};
    if (i % 100 != 0) continue;
    const int64_t before_ns = Loop::Current()->NowNs();
    Loop::Current()->ExpectSoon();
    (void)co_await Loop::Current()->Sleep(20'000);
    if (Loop::Current()->NowNs() - before_ns < 20'000) co_return false;
  }
  Loop::Current()->ExpectSoon();
  co_return true;
}

Task<absl::Status> WaitForFile() {
  FILE* file = tmpfile();
  auto watch = Loop::Current()->WatchDescriptor(fileno(file));
  absl::Status status = co_await watch->Readable();
  watch.reset();
  fclose(file);
  co_return status;
}

}  // namespace

TEST_CASE("a peer's last bytes and its end are both seen when they come together") {
  for (bool waits_first : {false, true}) {
    LoopPool pool(1);
    CHECK(pool.RunMain(LastBytesThenEnd(waits_first)));
  }
}
TEST_CASE("an end that came while nobody waited is seen") {
  LoopPool pool(1);
  CHECK(pool.RunMain(LastBytesAndEndUnawaited()));
}
TEST_CASE("a writer that waits for room learns that its peer has left") {
  LoopPool pool(1);
  int error = ErrnoOf(pool.RunMain(BlockedWriterMeetsTheEnd()));
  CHECK((error == EPIPE || error == ECONNRESET));
}
TEST_CASE("more offloaded work than threads is all done") {
  LoopPool pool(2);
  CHECK(pool.RunMain(OffloadMany()) == 1000);
}
TEST_CASE("offloaded work is done where no thread can be started") {
  bool here = false;
  {
    NoNewThreads none;
    LoopPool pool(1);
    here = pool.RunMain(OffloadHere());
  }
  CHECK(here);
  LoopPool pool(1);
  CHECK(pool.RunMain(OffloadToTheOneThread()));
}
TEST_CASE("a pool that is gone as soon as its last offloaded work has ended") {
  for (int i = 0; i < 200; ++i) {
    LoopPool pool(1);
    CHECK(pool.RunMain(OffloadComesBack()));
  }
}
TEST_CASE("a loop that is stopped does first what it was told before") {
  std::atomic<int> stage{0};
  int ran = 0;
  LoopPool pool(2);
  (void)pool.RunMain(PostThenStop(&pool, &stage, &ran));
  CHECK(ran == 1);
}
TEST_CASE("a watch may end on another loop while its events come") {
  LoopPool pool(2);
  CHECK(pool.RunMain(WatchesEndElsewhere(&pool)));
}
TEST_CASE("a loop that looks for events hears posts, timers and its end") {
  for (int i = 0; i < 20; ++i) {
    LoopPool pool(2);
    CHECK(pool.RunMain(LookAndGoOn(&pool)));
  }
}
TEST_CASE("waiting for a regular file ends at once") {
  LoopPool pool(1);
  CHECK(pool.RunMain(WaitForFile()).ok());
}
TEST_CASE("tasks nest, are ready without a frame, and unwind deep chains") {
  LoopPool pool(1);
  CHECK(pool.RunMain(Sum(21)) == 46);
}
TEST_CASE("sleeps end in the order of their times") {
  LoopPool pool(1);
  CHECK(pool.RunMain(SleepsEndInOrder()));
}
TEST_CASE("a sleep ends when stop is requested, here or on another thread") {
  for (bool other : {false, true}) {
    LoopPool pool(1);
    CHECK(ErrnoOf(pool.RunMain(StoppedSleep(other))) == ECANCELED);
  }
}
TEST_CASE("a mutex lets one in at a time over several loops") {
  LoopPool pool(3);
  Counters counters = pool.RunMain(MutexOverLoops(&pool));
  CHECK(counters.done == 1000);
  CHECK(counters.most == 1);
}
TEST_CASE("offloaded work runs elsewhere and resumes here") {
  LoopPool pool(2);
  CHECK(pool.RunMain(OffloadComesBack()));
}
TEST_CASE("three megabytes go through a socket and back unchanged") {
  char dir[] = "/tmp/blk-XXXXXX";
  REQUIRE(mkdtemp(dir) != nullptr);
  LoopPool pool(1);
  CHECK(pool.RunMain(Echo(std::string(dir) + "/s")));
  rmdir(dir);
}
TEST_CASE("a socket path that is too long is an error that says so") {
  auto fd = ListenUnix(std::string(200, 'x'));
  CHECK(ErrnoOf(fd.status()) == ENAMETOOLONG);
}
TEST_CASE("a port beyond 65535 is refused, not taken for another") {
  for (const char* port : {"65536", "99999", "-1", "", "http"})
    CHECK(ListenTcp("127.0.0.1", port).status().code() == absl::StatusCode::kInvalidArgument);
}
