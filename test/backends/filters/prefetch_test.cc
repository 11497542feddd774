// readahead, scan, count, evil, tls-fallback.
#include <doctest/doctest.h>

#include <bit>

#include "src/core/trace.h"
#include "test/backends/try_device.h"
#include "test/support/array_device.h"
#include "test/support/layers.h"

namespace blk {

const Spec& CountSpec();
const Spec& EvilSpec();
const Spec& ReadAheadSpec();
const Spec& ScanSpec();
const Spec& TlsFallbackSpec();

namespace {

using test::ArrayDevice;
using test::ArrayOf;
using test::MakeFilter;
using test::Noise;
using test::OnLoop;
using test::OpenFilter;
using test::OpenNow;

// Remembers what was prefetched, which takes a while.
class Prefetched final : public ArrayDevice {
 public:
  using ArrayDevice::ArrayDevice;
  std::vector<bool> blocks = std::vector<bool>(facts().size / kBlock + 1);
  uint64_t bytes = 0;
  int running = 0, running_max = 0;
  bool hang = false;  // until it is stopped
  static constexpr uint64_t kBlock = 4096;

  bool All(uint64_t from, uint64_t to) const {
    for (uint64_t at = from; at < to; at += kBlock)
      if (!blocks[at / kBlock]) return false;
    return true;
  }

 protected:
  Task<absl::Status> DoRead(const Call&, uint64_t, std::span<char>) override {
    for (int i = 0; i < 20; ++i) co_await Yield();
    co_return absl::OkStatus();
  }
  Task<absl::Status> DoCache(const Call& call, uint64_t offset, uint64_t length) override {
    running_max = std::max(running_max, ++running);
    if (hang) (void)co_await Loop::Current()->Sleep(INT64_MAX / 4, call.stop);
    co_await Yield();
    for (uint64_t at = offset; at < offset + length; at += kBlock) blocks[at / kBlock] = true;
    bytes += length;
    --running;
    co_return absl::OkStatus();
  }
};

// Opens, reads `length` at each offset, closes.
Task<absl::Status> ReadAt(Layer* layer, std::vector<uint64_t> offsets, uint64_t length) {
  BLK_CO_ASSIGN_OR_RETURN(DevicePtr device, co_await layer->Open({}));
  std::string into(length, '?');
  for (uint64_t offset : offsets) BLK_CO_RETURN_IF_ERROR(co_await device->Read({}, offset, into));
  co_return co_await device->Close();
}

std::vector<uint64_t> OneAfterTheOther(uint64_t from, uint64_t to, uint64_t step) {
  std::vector<uint64_t> offsets;
  for (uint64_t at = from; at < to; at += step) offsets.push_back(at);
  return offsets;
}

// ---- readahead

TEST_CASE("readahead: who reads on finds it prefetched, from anywhere and in any size") {
  for (uint64_t start : {0, 70 << 20}) {
    for (uint64_t step : {4096, 65536, 1 << 20}) {
      auto disk = std::make_shared<Prefetched>(200 << 20);
      auto layer = MakeFilter(ReadAheadSpec(), {}, disk);
      const uint64_t end = start + (20 << 20);
      CHECK(OnLoop(ReadAt, layer->get(), OneAfterTheOther(start, end, step), step).ok());
      INFO(start << " " << step);
      CHECK(disk->All(start + (2 << 20), end + (2 << 20)));
      CHECK_FALSE(disk->All(end + (64 << 20), end + (65 << 20)));
      CHECK(disk->bytes < (80 << 20));  // nothing is asked for twice
      CHECK(disk->running == 0);
    }
  }
}

TEST_CASE("readahead: several readers at a time, and reads here and there") {
  auto disk = std::make_shared<Prefetched>(400 << 20);
  auto layer = MakeFilter(ReadAheadSpec(), {}, disk);
  std::vector<uint64_t> mixed;
  for (uint64_t at = 0; at < 10 << 20; at += 65536)
    for (uint64_t reader = 0; reader < 4; ++reader) mixed.push_back(at + (reader * 100 << 20));
  CHECK(OnLoop(ReadAt, layer->get(), mixed, 65536).ok());
  for (uint64_t reader = 0; reader < 4; ++reader)
    CHECK(disk->All((2 << 20) + (reader * 100 << 20), (10 << 20) + (reader * 100 << 20)));

  auto other = std::make_shared<Prefetched>(uint64_t{1} << 30);
  auto random_layer = MakeFilter(ReadAheadSpec(), {}, other);
  std::vector<uint64_t> random;
  uint64_t number = 7;
  for (int i = 0; i < 300; ++i) {
    number = number * 6364136223846793005 + 1442695040888963407;
    random.push_back((number >> 20) % ((uint64_t{1} << 30) - 4096));
  }
  CHECK(OnLoop(ReadAt, random_layer->get(), random, 4096).ok());
  CHECK(other->bytes < (8 << 20));
}

TEST_CASE("readahead: prefetches are bounded, stop with the device, and need a cache below") {
  auto disk = std::make_shared<Prefetched>(200 << 20);
  disk->hang = true;
  auto layer = MakeFilter(ReadAheadSpec(), {}, disk);
  CHECK(
      OnLoop(ReadAt, layer->get(), OneAfterTheOther(0, 40 << 20, 1 << 20), uint64_t{1 << 20}).ok());
  CHECK(disk->running == 0);
  CHECK(disk->running_max <= 32);
  CHECK(disk->running_max > 4);

  static std::string log;
  SetLogSink([](std::string_view line) { log += line; });
  Facts facts = test::ArrayFacts(1000);
  facts.cache = Support::kNone;
  for (const Spec* spec : {&ReadAheadSpec(), &ScanSpec()}) {
    log.clear();
    auto plain = std::make_shared<ArrayDevice>(facts);
    CHECK(OpenFilter(*spec, {}, plain)->get() == plain.get());
    CHECK(log.find("warning: " + spec->name() + ": the disk below cannot prefetch") != log.npos);
  }
  SetLogSink(nullptr);
}

// ---- scan

Task<absl::Status> Stay(Layer* layer, int turns, uint64_t read_at, std::string export_name) {
  OpenArgs args;
  args.export_name = std::move(export_name);
  BLK_CO_ASSIGN_OR_RETURN(DevicePtr device, co_await layer->Open(args));
  char byte;
  if (read_at != UINT64_MAX)
    BLK_CO_RETURN_IF_ERROR(co_await device->Read({}, read_at, std::span(&byte, 1)));
  for (int i = 0; i < turns; ++i) co_await Yield();
  co_return co_await device->Close();
}

TEST_CASE("scan: the whole disk is prefetched, once") {
  auto disk = std::make_shared<Prefetched>((40 << 20) + 5000);
  auto layer = MakeFilter(ScanSpec(), {}, disk);
  CHECK(OnLoop(Stay, layer->get(), 1000, UINT64_MAX, "").ok());
  CHECK(disk->All(0, disk->size()));
  CHECK(disk->bytes == disk->size());
  CHECK(OnLoop(Stay, layer->get(), 1000, uint64_t{5}, "").ok());
  CHECK(disk->bytes == disk->size());  // it was at the end already
}

TEST_CASE("scan: skips to the reader, goes on where it was left, or begins again") {
  for (bool ahead : {true, false}) {
    auto disk = std::make_shared<Prefetched>(200 << 20);
    auto layer = MakeFilter(ScanSpec(),
                            {{"scan-ahead", ahead ? "true" : "false"}, {"scan-size", "64K"}}, disk);
    CHECK(OnLoop(Stay, layer->get(), 20, uint64_t{150 << 20}, "").ok());
    CHECK(disk->All((150 << 20) + 4096, (150 << 20) + 65536) == ahead);
    CHECK(disk->All(0, 65536) == !ahead);
    CHECK_FALSE(disk->All(100 << 20, 101 << 20));
  }
  for (bool clock : {true, false}) {
    auto disk = std::make_shared<Prefetched>(200 << 20);
    auto layer = MakeFilter(ScanSpec(),
                            {{"scan-clock", clock ? "true" : "false"}, {"scan-size", "64K"}}, disk);
    CHECK(OnLoop(Stay, layer->get(), 20, UINT64_MAX, "").ok());
    const uint64_t bytes = disk->bytes;
    disk->blocks.assign(disk->blocks.size(), false);
    CHECK(OnLoop(Stay, layer->get(), 20, UINT64_MAX, "").ok());
    CHECK(disk->bytes > bytes);
    CHECK(disk->blocks[0] == !clock);
  }
}

TEST_CASE("scan: another export is left alone, sizes are checked, closing stops it") {
  auto disk = std::make_shared<Prefetched>(1 << 20);
  auto layer = MakeFilter(ScanSpec(), {}, disk);
  CHECK(OnLoop(Stay, layer->get(), 100, UINT64_MAX, "other").ok());
  CHECK(disk->bytes == 0);
  for (std::string bad : {"3K", "256", "64M"})
    CHECK_FALSE(MakeFilter(ScanSpec(), {{"scan-size", bad}}, disk).ok());
  disk->hang = true;
  CHECK(OnLoop(Stay, layer->get(), 10, UINT64_MAX, "").ok());
  CHECK(disk->running == 0);
}

// ---- count

Task<absl::Status> UseAll(Layer* layer) {
  BLK_CO_ASSIGN_OR_RETURN(DevicePtr device, co_await layer->Open({}));
  std::string text(1000, 'x');
  for (int i = 0; i < 3; ++i) BLK_CO_RETURN_IF_ERROR(co_await device->Read({}, 10, text));
  BLK_CO_RETURN_IF_ERROR(co_await device->Write({}, 0, text));
  BLK_CO_RETURN_IF_ERROR(co_await device->Zero({}, 5, 200));
  BLK_CO_RETURN_IF_ERROR(co_await device->Trim({}, 5, 30));
  (void)co_await device->Read({}, 9900, text);  // beyond the end: counts nothing
  BLK_CO_RETURN_IF_ERROR(co_await device->Close());
  co_return co_await layer->Stop();
}

TEST_CASE("count tells what was done") {
  static std::string log;
  log.clear();
  SetLogSink([](std::string_view line) { log += line; });
  for (bool suspend : {false, true}) {
    auto array = ArrayOf(std::string(10'000, 'a'));
    array->suspend = suspend;
    auto layer = MakeFilter(CountSpec(), {}, array);
    CHECK(OnLoop(UseAll, layer->get()).ok());
  }
  SetLogSink(nullptr);
  const std::string line = "blk: count: 3000 bytes read, 1000 written, 200 zeroed, 30 trimmed\n";
  CHECK(log == line + line);
}

// ---- evil

Task<absl::Status> ReadAll(Device* device, std::string* text) {
  co_return co_await device->Read({}, 0, *text);
}
Task<absl::Status> ReadFrom(Device* device, uint64_t offset, std::string* text) {
  co_return co_await device->Read({}, offset, *text);
}
std::string Contents(Device* device) {
  std::string text(device->size(), '?');
  CHECK(OnLoop(ReadAll, device, &text).ok());
  return text;
}
int Differences(const std::string& a, const std::string& b) {
  int bits = 0;
  for (size_t i = 0; i < a.size(); ++i) bits += std::popcount(static_cast<uint8_t>(a[i] ^ b[i]));
  return bits;
}
std::string ReadEvil(std::string disk, std::string mode, std::string probability,
                     std::string stuck = "1", std::string seed = "1") {
  auto device = OpenFilter(EvilSpec(),
                           {{"evil", mode},
                            {"evil-probability", probability},
                            {"evil-stuck-probability", stuck},
                            {"evil-seed", seed}},
                           ArrayOf(std::move(disk)));
  REQUIRE(device.ok());
  return Contents(device->get());
}

TEST_CASE("evil: as many bits are bad as shall be, of the right kind") {
  const std::string zeroes(3 << 20, '\0'), ones(3 << 20, '\xff');
  CHECK(ReadEvil(ones, "cosmic-rays", "1") == zeroes);
  CHECK(ReadEvil(ones, "cosmic-rays", "0") == ones);
  const int bits = 8 * (3 << 20), few = bits / 1000;
  for (std::string mode : {"cosmic-rays", "stuck-bits", "stuck-wires"}) {
    INFO(mode);
    const std::string low = ReadEvil(zeroes, mode, "0.001"), high = ReadEvil(ones, mode, "0.001");
    const bool stuck = mode != "cosmic-rays";
    // Half of the stuck ones are stuck at what is there.
    const int expected = stuck ? few / 2 : few, slack = expected / 10;
    CHECK(std::abs(Differences(low, zeroes) - expected) <= slack);
    CHECK(Differences(low, zeroes) > 0);
    CHECK(std::abs(Differences(high, ones) - expected) <= slack);
    CHECK((ReadEvil(zeroes, mode, "0.001") == low) == stuck);
    CHECK(ReadEvil(zeroes, mode, "0.001", "1", "2") != low);
    if (stuck) {
      // A bit that is stuck high is not stuck low.
      for (size_t i = 0; i < low.size(); ++i) REQUIRE((low[i] & ~high[i]) == 0);
      const int rarely = Differences(ReadEvil(zeroes, mode, "0.001", "0.25"), zeroes);
      CHECK(rarely < Differences(low, zeroes) / 2);
      CHECK(rarely > 0);
    }
  }
}

TEST_CASE("evil: bits are stuck unless something else is said, and how many follows from that") {
  auto bad = [](test::Words words, size_t bytes = 16 << 20) {
    words.emplace_back("evil-seed", "1");
    const std::string zeroes(bytes, '\0');
    auto device = OpenFilter(EvilSpec(), words, ArrayOf(zeroes));
    REQUIRE(device.ok());
    const std::string first = Contents(device->get());
    CHECK(first == Contents(device->get()));  // stuck, not cosmic
    return Differences(first, zeroes);
  };
  CHECK(bad({}) <= 8);  // 0.7 expected
  const int wires = bad({{"evil", "stuck-wires"}});
  CHECK(wires > 30);  // 67 expected
  CHECK(wires < 120);
  CHECK(bad({{"evil-probability", "0.9e-12"}}) == 0);
  CHECK(bad({{"evil-probability", "25%"}}, 1 << 17) > (1 << 17) * 3);  // all, half of them high
}

TEST_CASE("evil: wires are stuck at a place in the request, wherever that reads") {
  auto device = OpenFilter(
      EvilSpec(), {{"evil", "stuck-wires"}, {"evil-probability", "1/500"}, {"evil-seed", "3"}},
      ArrayOf(std::string(1 << 20, '\0')));
  REQUIRE(device.ok());
  auto read = [&](uint64_t offset, size_t bytes) {
    std::string text(bytes, '?');
    CHECK(OnLoop(ReadFrom, device->get(), offset, &text).ok());
    return text;
  };
  const std::string packet = read(0, 50'000);
  CHECK(packet != std::string(50'000, '\0'));
  CHECK(read(1024, 50'000) == packet);
  CHECK(read(123'457, 50'000) == packet);
  CHECK(read(7, 1000) == packet.substr(0, 1000));
}

TEST_CASE("evil: what is not stored does not go bad") {
  auto disk = ArrayOf(std::string(3000, '\0'));
  std::fill(disk->holes.begin() + 1000, disk->holes.begin() + 2000, true);
  for (std::string mode : {"cosmic-rays", "stuck-bits", "stuck-wires"}) {
    auto device = OpenFilter(EvilSpec(),
                             {{"evil", mode}, {"evil-probability", "1"}, {"evil-seed", "1"}}, disk);
    REQUIRE(device.ok());
    const std::string text = Contents(device->get());
    CHECK(text.substr(1000, 1000) == std::string(1000, '\0'));
    CHECK(Differences(text.substr(0, 1000), std::string(1000, '\0')) > 3000);
    CHECK(Differences(text.substr(2000), std::string(1000, '\0')) > 3000);
  }
}

Task<absl::Status> ReadInParts(Device* device, std::string* text) {
  for (size_t at = 0; at < text->size();) {
    const size_t length = std::min<size_t>(1 + at % 70'001, text->size() - at);
    BLK_CO_RETURN_IF_ERROR(co_await device->Read({}, at, std::span(*text).subspan(at, length)));
    at += length;
  }
  co_return absl::OkStatus();
}

TEST_CASE("evil: the same bits are stuck however they are read, and the disk stays as it is") {
  auto disk = ArrayOf(Noise(2'500'000));
  const std::string before = disk->bytes;
  auto device = *OpenFilter(
      EvilSpec(), {{"evil", "stuck-bits"}, {"evil-probability", "1:3000"}, {"evil-seed", "9"}},
      disk);
  std::string parts(disk->size(), '?');
  CHECK(OnLoop(ReadInParts, device.get(), &parts).ok());
  CHECK(parts == Contents(device.get()));
  CHECK(parts != before);
  CHECK(disk->bytes == before);
}

// ---- tls-fallback

TEST_CASE("tls-fallback: a message without TLS, the disk with it") {
  auto below = std::make_shared<test::DeviceLayer>(DevicePtr(ArrayOf(std::string(5000, 'd'))));
  auto layer = MakeFilter(TlsFallbackSpec(), {}, below);
  OpenArgs plain, secure;
  plain.export_name = "secret";
  secure.tls = true;
  auto message = *OpenNow(*layer, plain);
  CHECK(below->opened.empty());
  CHECK(message->facts().read_only);
  CHECK(message->size() == 512);
  CHECK(Contents(message.get()).find("requires TLS") != std::string::npos);
  CHECK(Contents(message.get()).back() == '\0');
  CHECK((*OpenNow(*layer, secure))->size() == 5000);
  auto own = MakeFilter(TlsFallbackSpec(), {{"tlsreadme", std::string(600, 'm')}}, below);
  CHECK(Contents(OpenNow(*own, plain)->get()) == std::string(512, 'm'));

  class OneConnection final : public FilterLayer {
    using FilterLayer::FilterLayer;
    ThreadModel thread_model() override { return ThreadModel::kSerializeConnections; }

   public:
    explicit OneConnection(LayerPtr layer) : FilterLayer(std::move(layer)) {}
  };
  CHECK_FALSE(MakeFilter(TlsFallbackSpec(), {}, std::make_shared<OneConnection>(below)).ok());
}

}  // namespace
}  // namespace blk
