// delay, error, rate, log and stats: what sees every request and passes it on.
#include <doctest/doctest.h>

#include <set>

#include "src/core/scope.h"
#include "test/backends/try_device.h"
#include "test/support/array_device.h"
#include "test/support/layers.h"
#include "test/temporary.h"

namespace blk {

const Spec& DelaySpec();
const Spec& ErrorSpec();
const Spec& RateSpec();
const Spec& LogSpec();
const Spec& StatsSpec();

namespace {

using test::ArrayDevice;
using test::MakeFilter;
using test::OnLoop;
using test::OpenNow;

constexpr uint64_t kDiskBytes = 100'000;

std::shared_ptr<ArrayDevice> Array(bool suspend = false) {
  auto array = std::make_shared<ArrayDevice>(kDiskBytes);
  array->suspend = suspend;
  return array;
}

// The filter over `below`; there must be no error.
DevicePtr Over(const Spec& spec, const test::Words& words, DevicePtr below) {
  auto device = test::OpenFilter(spec, words, std::move(below));
  REQUIRE_MESSAGE(device.ok(), device.status().message());
  return *device;
}

TEST_CASE("each passes data through") {
  TemporaryDirectory dir;
  std::string log = dir / "log", stats = dir / "stats";
  std::pair<const Spec&, test::Words> filters[] = {
      {DelaySpec(), {{"rdelay", "1us"}, {"wdelay", "1us"}, {"delay-extents", "1us"}}},
      {ErrorSpec(), {{"error-rate", "0"}}},
      {RateSpec(), {{"rate", "1T"}, {"connection-rate", "1T"}}},
      {LogSpec(), {{"logfile", log}}},
      {StatsSpec(), {{"statsfile", stats}}}};
  for (const auto& [spec, words] : filters) {
    for (bool suspend : {false, true}) {
      INFO(spec.name());
      DevicePtr device = Over(spec, words, Array(suspend));
      CHECK(OnLoop(RandomOperations, device.get(), 5).message() == "");
      Loan loan;
      CHECK_FALSE(device->Borrow({}, 0, 100, &loan));
    }
  }
}

// ---- delay and error

enum Step { kRead, kWrite, kTrim, kZero, kExtents, kCache, kFlush };

Task<absl::Status> Do(Device* device, int step) {
  static char data[512] = {};
  Call call;
  ExtentList list(0, 512);
  switch (step) {
    case kRead:
      co_return co_await device->Read(call, 0, data);
    case kWrite:
      co_return co_await device->Write(call, 0, data);
    case kTrim:
      co_return co_await device->Trim(call, 0, 512);
    case kZero:
      co_return co_await device->Zero(call, 0, 512);
    case kExtents:
      co_return co_await device->Extents(call, kBaseAllocation, &list);
    case kCache:
      co_return co_await device->Cache(call, 0, 512);
    default:
      co_return co_await device->Flush(call);
  }
}

Task<int64_t> TimeOf(Device* device, int step) {
  const int64_t start_ns = Loop::Current()->NowNs();
  BLK_CHECK((co_await Do(device, step)).ok());
  co_return (Loop::Current()->NowNs() - start_ns) / 1'000'000;
}

// Which of the steps take as long as 20 ms.
std::set<int> SlowSteps(const test::Words& words) {
  DevicePtr device = Over(DelaySpec(), words, Array());
  std::set<int> slow;
  for (int step = kRead; step <= kFlush; ++step)
    if (OnLoop(TimeOf, device.get(), step) >= 20) slow.insert(step);
  return slow;
}

TEST_CASE("delay makes slow what it names") {
  CHECK(SlowSteps({{"rdelay", "20ms"}}) == std::set<int>{kRead});
  CHECK(SlowSteps({{"delay-read", "0.02"}}) == std::set<int>{kRead});
  CHECK(SlowSteps({{"wdelay", "20ms"}}) == std::set<int>{kWrite, kTrim, kZero});
  CHECK(SlowSteps({{"wdelay", "20ms"}, {"delay-zero", "0"}}) == std::set<int>{kWrite, kTrim});
  CHECK(SlowSteps({{"delay-extents", "20ms"}, {"delay-cache", "20ms"}}) ==
        std::set<int>{kExtents, kCache});
  TemporaryDirectory dir;
  CHECK(SlowSteps({{"rdelay", "20ms"}, {"delay-trigger", dir / "no"}}).empty());
  CHECK(SlowSteps({{"rdelay", "20ms"}, {"delay-trigger", dir.path()}}) == std::set<int>{kRead});
}

Task<void> ReadInto(Device* device, int* done) {
  BLK_CHECK((co_await Do(device, kRead)).ok());
  ++*done;
}
Task<int64_t> TimeOfManyReads(Device* device, int count) {
  const int64_t start_ns = Loop::Current()->NowNs();
  TaskScope scope;
  int done = 0;
  for (int i = 0; i < count; ++i) scope.Spawn(ReadInto(device, &done));
  co_await scope.Join();
  BLK_CHECK(done == count);
  co_return (Loop::Current()->NowNs() - start_ns) / 1'000'000;
}

TEST_CASE("delayed requests wait together") {
  DevicePtr device = Over(DelaySpec(), {{"rdelay", "30ms"}}, Array());
  int64_t took_ms = OnLoop(TimeOfManyReads, device.get(), 100);
  CHECK(took_ms >= 30);
  CHECK(took_ms < 1500);
}

Task<absl::Status> ReadWith(Device* device, Call call) {
  char data[16];
  co_return co_await device->Read(call, 0, data);
}
Task<absl::Status> ReadLate(Device* device) {
  Call call;
  call.deadline_ns = Loop::Current()->NowNs() + 10'000'000;
  co_return co_await ReadWith(device, call);
}

Task<absl::Status> ZeroFast(Device* device) {
  co_return co_await device->Zero(Call().With(kFastZero), 0, 512);
}

TEST_CASE("a delay ends with the call's deadline; fast zeroes may be refused at once") {
  DevicePtr device = Over(DelaySpec(), {{"rdelay", "1000s"}}, Array());
  CHECK(ErrnoOf(OnLoop(ReadLate, device.get())) == ETIMEDOUT);
  device = Over(DelaySpec(), {{"delay-zero", "1000s"}, {"delay-fast-zero", "false"}}, Array());
  CHECK(ErrnoOf(OnLoop(ZeroFast, device.get())) == EOPNOTSUPP);
}

std::map<int, int> ErrnoOfSteps(const test::Words& words) {
  DevicePtr device = Over(ErrorSpec(), words, Array());
  std::map<int, int> errors;
  for (int step = kRead; step <= kFlush; ++step)
    if (int error = ErrnoOf(OnLoop(Do, device.get(), step))) errors[step] = error;
  return errors;
}

TEST_CASE("error fails what it names, as it names it") {
  using Errors = std::map<int, int>;
  CHECK(ErrnoOfSteps({}) == Errors{});
  CHECK(ErrnoOfSteps({{"error", "ENOSPC"}}) == Errors{});
  CHECK(
      ErrnoOfSteps({{"error-rate", "100%"}}) ==
      Errors{
          {kRead, EIO}, {kWrite, EIO}, {kTrim, EIO}, {kZero, EIO}, {kExtents, EIO}, {kCache, EIO}});
  CHECK(
      ErrnoOfSteps({{"error", "ENOSPC"}, {"error-pwrite-rate", "1"}, {"error-zero-rate", "1:1"}}) ==
      Errors{{kWrite, ENOSPC}, {kZero, ENOSPC}});
  CHECK(ErrnoOfSteps({{"error-pread", "EPERM"},
                      {"error-pread-rate", "1"},
                      {"error-trim-rate", "1"},
                      {"error-extents-rate", "0"}}) == Errors{{kRead, EPERM}, {kTrim, EIO}});
  TemporaryDirectory dir;
  CHECK(ErrnoOfSteps({{"error-rate", "1"}, {"error-file", dir / "no"}}) == Errors{});
  CHECK(ErrnoOfSteps(
            {{"error-rate", "1"}, {"error-file", dir / "no"}, {"error-cache-file", dir.path()}}) ==
        Errors{{kCache, EIO}});
  CHECK_FALSE(MakeFilter(ErrorSpec(), {{"error", "EFOO"}}, Array()).ok());
  CHECK_FALSE(MakeFilter(ErrorSpec(), {{"error-rate", "1.5"}}, Array()).ok());
  CHECK_FALSE(MakeFilter(ErrorSpec(), {{"error-rate", "101%"}}, Array()).ok());
}

Task<int> CountFailures(Device* device) {
  int failures = 0;
  for (int i = 0; i < 4000; ++i) failures += !(co_await Do(device, kRead)).ok();
  co_return failures;
}

TEST_CASE("the share of errors is about the rate") {
  DevicePtr device = Over(ErrorSpec(), {{"error-rate", "25%"}}, Array());
  int failures = OnLoop(CountFailures, device.get());
  CHECK(failures > 800);  // 7 standard deviations around 1000
  CHECK(failures < 1200);
}

// ---- rate

// Milliseconds for so many reads of 512 bytes, 4096 bits, at the same time.
int64_t TimeAtRate(const test::Words& words, int reads) {
  DevicePtr device = Over(RateSpec(), words, Array());
  return OnLoop(TimeOfManyReads, device.get(), reads);
}

TEST_CASE("rate lets a burst through and then so many bits a second") {
  // 40960 bits a second, 10 reads; a burst of half a second is 5 reads.
  for (std::string key : {"rate", "connection-rate"}) {
    int64_t took_ms = TimeAtRate({{key, "40960"}, {"burstiness", "0.5"}}, 10);
    CHECK(took_ms >= 480);
    CHECK(took_ms < 1200);
    CHECK(TimeAtRate({{key, "40960"}, {"burstiness", "0.5"}}, 5) < 300);
  }
}

TEST_CASE("the rate file is followed, and without one the last rate stays") {
  TemporaryDirectory dir;
  std::string file = dir.Write("rate", "1T\n");
  // A read at 1 bit a second would take an hour.
  CHECK(TimeAtRate({{"rate", "1"}, {"rate-file", file}}, 5) < 1000);
  CHECK(TimeAtRate({{"rate", "1T"}, {"rate-file", dir / "none"}}, 5) < 1000);
  CHECK(TimeAtRate({{"rate", "1T"}, {"rate-file", dir.Write("bad", "fast")}}, 5) < 1000);
  CHECK_FALSE(MakeFilter(RateSpec(), {{"rate", "0"}}, Array()).ok());
  CHECK_FALSE(MakeFilter(RateSpec(), {{"burstiness", "-1"}}, Array()).ok());
  // With neither, nothing is there.
  auto array = Array();
  CHECK(OpenNow(*MakeFilter(RateSpec(), {}, array)).value() == array);
}

// ---- log and stats

Task<absl::Status> DoAll(Device* device) {
  for (int step = kRead; step <= kFlush; ++step) BLK_CO_RETURN_IF_ERROR(co_await Do(device, step));
  std::string data(1000, 'x');
  BLK_CO_RETURN_IF_ERROR(co_await device->Write(Call().With(kFua), 4096, data));
  BLK_CO_RETURN_IF_ERROR(co_await device->Zero(Call().With(kNoHole), 0, 512));
  ExtentList list(4000, 2000);
  BLK_CO_RETURN_IF_ERROR(co_await device->Extents(Call(), kBaseAllocation, &list));
  co_return co_await device->Close();
}

// Lines without their times.
std::string WithoutTimes(const std::string& text) {
  std::string result;
  for (size_t at = 0; at < text.size();) {
    size_t end = text.find('\n', at) + 1;
    if (end == 0) end = text.size();
    result += text.substr(at + 27, end - at - 27);
    at = end;
  }
  return result;
}

TEST_CASE("the log has the lines of nbdkit") {
  TemporaryDirectory dir;
  std::string file = dir.Write("log", "gone\n");
  auto array = Array(true);
  DevicePtr device = Over(LogSpec(), {{"logfile", file}}, array);
  REQUIRE(OnLoop(DoAll, device.get()).ok());
  array->failure = ErrnoErrorAsIs(ENOSPC, "full");
  CHECK_FALSE(OnLoop(Do, device.get(), int{kRead}).ok());
  std::string text = ReadWholeFile(file);
  CHECK(text[4] == '-');
  CHECK(text[19] == '.');
  CHECK(WithoutTimes(text) ==
        "Ready thread_model=3\n"
        "connection=1 Connect export=\"\" tls=0 size=0x186a0 minsize=0x0 prefsize=0x0 "
        "maxsize=0x0 write=1 flush=1 rotational=0 trim=1 zero=2 fua=2 extents=1 cache=2 "
        "fast_zero=1\n"
        "connection=1 Read id=1 offset=0x0 count=0x200 ...\n"
        "connection=1 ...Read id=1 return=0\n"
        "connection=1 Write id=2 offset=0x0 count=0x200 fua=0 ...\n"
        "connection=1 ...Write id=2 return=0\n"
        "connection=1 Trim id=3 offset=0x0 count=0x200 fua=0 ...\n"
        "connection=1 ...Trim id=3 return=0\n"
        "connection=1 Zero id=4 offset=0x0 count=0x200 trim=1 fua=0 fast=0 ...\n"
        "connection=1 ...Zero id=4 return=0\n"
        "connection=1 Extents id=5 offset=0x0 count=0x200 req_one=0 ...\n"
        "connection=1 ...Extents id=5 extents=(0x0 0x200 \"hole,zero\") return=0\n"
        "connection=1 Cache id=6 offset=0x0 count=0x200 ...\n"
        "connection=1 ...Cache id=6 return=0\n"
        "connection=1 Flush id=7 ...\n"
        "connection=1 ...Flush id=7 return=0\n"
        "connection=1 Write id=8 offset=0x1000 count=0x3e8 fua=1 ...\n"
        "connection=1 ...Write id=8 return=0\n"
        "connection=1 Zero id=9 offset=0x0 count=0x200 trim=0 fua=0 fast=0 ...\n"
        "connection=1 ...Zero id=9 return=0\n"
        "connection=1 Extents id=10 offset=0xfa0 count=0x7d0 req_one=0 ...\n"
        "connection=1 ...Extents id=10 extents=(0xfa0 0x60 \"hole,zero\" 0x1000 0x3e8 \"\" 0x13e8 "
        "0x388 \"hole,zero\") return=0\n"
        "connection=1 Disconnect transactions=10\n"
        "connection=1 Read id=11 offset=0x0 count=0x200 ...\n"
        "connection=1 ...Read id=11 return=-1 error=ENOSPC\n");
}

TEST_CASE("the log is appended to when asked, and inactive without a file or script") {
  TemporaryDirectory dir;
  std::string file = dir.Write("log", "kept\n");
  Over(LogSpec(), {{"logfile", file}, {"logappend", "true"}}, Array());
  CHECK(ReadWholeFile(file).substr(0, 5) == "kept\n");
  auto array = Array();
  CHECK(OpenNow(*MakeFilter(LogSpec(), {}, array)).value() == array);
  CHECK(ErrnoOf(MakeFilter(LogSpec(), {{"logfile", dir / "no/log"}}, array).status()) == ENOENT);
}

TEST_CASE("the script sees each line's fields, in order") {
  TemporaryDirectory dir;
  std::string out = dir / "out";
  std::string script = "echo \"$act $type $id $connection $offset $count $return $error\" >>" + out;
  auto array = Array();
  DevicePtr device = Over(LogSpec(), {{"logscript", script}}, array);
  array->failure = ErrnoErrorAsIs(ENOSPC, "full");
  CHECK_FALSE(OnLoop(Do, device.get(), int{kRead}).ok());
  CHECK(ReadWholeFile(out) ==
        "Ready PRINT      \n"
        "Connect PRINT  1    \n"
        "Read ENTER 1 1 0x0 0x200  \n"
        "Read LEAVE 1 1   -1 ENOSPC\n");
}

Task<absl::Status> StopLayer(Layer* layer) { co_return co_await layer->Stop(); }

TEST_CASE("stats counts what succeeds, and writes it down at the end") {
  TemporaryDirectory dir;
  std::string file = dir.Write("stats", "gone\n");
  auto array = Array(true);
  auto layer = MakeFilter(StatsSpec(), {{"statsfile", file}}, array);
  REQUIRE(layer.ok());
  auto device = OpenNow(*layer);
  REQUIRE(OnLoop(DoAll, device->get()).ok());
  array->failure = ErrnoErrorAsIs(EIO, "no");
  CHECK_FALSE(OnLoop(Do, device->get(), int{kRead}).ok());
  REQUIRE(OnLoop(StopLayer, layer->get()).ok());
  std::string text = ReadWholeFile(file);
  CHECK(text.find("total: 9 ops, ") == 0);
  CHECK(text.find(" s, 3.48 KiB, ") != std::string::npos);
  CHECK(text.find("\nread: 1 ops, ") != std::string::npos);
  CHECK(text.find("\nwrite: 2 ops, ") != std::string::npos);
  CHECK(text.find("\nflush: 1 ops, ") != std::string::npos);
  CHECK(text.find("     9 bits: 100.0% (2 reqs, 1.48 KiB total)\n"
                  "         12 bit aligned: 100.0% (2)\n") != std::string::npos);
  CHECK_FALSE(
      MakeFilter(StatsSpec(), {{"statsfile", file}, {"statsthreshold", "101"}}, array).ok());
  CHECK_FALSE(MakeFilter(StatsSpec(), {}, array).ok());
}

}  // namespace
}  // namespace blk
