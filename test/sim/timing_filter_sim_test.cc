// Filters whose purpose is time, on a simulated clock.
#include <doctest/doctest.h>

#include "src/core/scope.h"
#include "test/sim/sim_loop.h"
#include "test/support/array_device.h"
#include "test/support/layers.h"

namespace blk {

const Spec& ScanSpec();
const Spec& SpinningSpec();

namespace {

using test::ArrayDevice;
using test::ArrayOf;
using test::MakeFilter;
using test::OpenFilter;

// ---- scan

class Prefetched final : public ArrayDevice {
 public:
  using ArrayDevice::ArrayDevice;
  uint64_t bytes = 0;

 protected:
  Task<absl::Status> DoCache(const Call&, uint64_t, uint64_t length) override {
    bytes += length;
    return absl::OkStatus();
  }
};

TEST_CASE("scan-forever begins again at the end") {
  sim::SimLoop loop(1);
  auto disk = std::make_shared<Prefetched>(1 << 20);
  auto layer = MakeFilter(ScanSpec(), {{"scan-forever", "true"}}, disk);
  struct Use {
    static Task<absl::Status> ForAWhile(Layer* layer) {
      BLK_CO_ASSIGN_OR_RETURN(DevicePtr device, co_await layer->Open({}));
      (void)co_await Loop::Current()->Sleep(5'500'000'000);
      co_return co_await device->Close();
    }
  };
  auto status = loop.Run(Use::ForAWhile(layer->get()));
  REQUIRE(status);
  CHECK(status->ok());
  CHECK(disk->bytes == 6 * disk->size());  // a second apart
}

// ---- spinning

Task<void> ReadOne(Device* device, uint64_t offset) {
  char bytes[1000];
  BLK_CHECK((co_await device->Read({}, offset, bytes)).ok());
}
Task<int64_t> TimeOfReads(Layer* layer, std::vector<uint64_t> offsets, bool together) {
  auto device = co_await layer->Open({});
  const int64_t start_ns = Loop::Current()->NowNs();
  TaskScope scope;
  for (uint64_t offset : offsets) {
    scope.Spawn(ReadOne(device->get(), offset));
    if (!together) co_await scope.Join();
  }
  co_await scope.Join();
  const int64_t end_ns = Loop::Current()->NowNs();
  BLK_CHECK((co_await (*device)->Close()).ok());
  co_return (end_ns - start_ns) / 1000;
}
int64_t MicrosecondsOf(const test::Words& words, std::vector<uint64_t> offsets, bool together) {
  test::Words all = {
      {"min-seek-time", "100us"}, {"half-seek-time", "1ms"}, {"max-seek-time", "3ms"}};
  all.insert(all.end(), words.begin(), words.end());
  auto layer = MakeFilter(SpinningSpec(), all, ArrayOf(std::string(1'000'000, 'd')));
  REQUIRE(layer.ok());
  sim::SimLoop loop(1);
  auto time = loop.Run(TimeOfReads(layer->get(), std::move(offsets), together));
  REQUIRE(time);
  return *time;
}

TEST_CASE("spinning: seeks take their time, and one after the other") {
  auto about = [](int64_t value, int64_t expected) { return std::abs(value - expected) <= 10; };
  CHECK(about(MicrosecondsOf({}, {0}, false), 0));
  CHECK(about(MicrosecondsOf({}, {0, 1000, 2000, 3000}, false), 0));  // it goes on
  CHECK(about(MicrosecondsOf({}, {500'000}, false), 1000));
  CHECK(about(MicrosecondsOf({}, {999'000}, false), 2996));
  CHECK(about(MicrosecondsOf({}, {0, 900'000, 0}, false), 2598 + 2604));
  // Two that come together wait for the one arm.
  const int64_t apart = MicrosecondsOf({}, {0, 900'000, 0}, false);
  CHECK(about(MicrosecondsOf({}, {0, 900'000, 0}, true), apart));
  // Four heads that move together: the same place of each quarter is under its head.
  CHECK(about(MicrosecondsOf({{"heads", "4"}}, {1000, 251'000}, false), 2 * 107));
  // And for themselves: they do not wait for each other.
  const test::Words separate = {{"heads", "2"}, {"separate-heads", "true"}};
  CHECK(MicrosecondsOf(separate, {400'000, 900'000}, true) <
        MicrosecondsOf({{"heads", "2"}}, {400'000, 900'000}, true));
  CHECK((*OpenFilter(SpinningSpec(), {}, ArrayOf("x")))->facts().rotational);
  CHECK_FALSE(MakeFilter(SpinningSpec(), {{"min-seek-time", "9ms"}}, ArrayOf("x")).ok());
}

}  // namespace
}  // namespace blk
