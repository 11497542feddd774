#include <doctest/doctest.h>

#include <mutex>

#include "src/backends/filters/block_store.h"
#include "src/core/scope.h"
#include "src/core/trace.h"
#include "test/backends/try_device.h"
#include "test/support/array_device.h"
#include "test/support/full_disk.h"
#include "test/support/layers.h"

namespace blk {

const Spec& CacheSpec();
const Spec& MemorySpec();

namespace {

using test::ArrayDevice;
using test::ArrayOf;
using test::MakeFilter;
using test::Noise;
using test::OnLoop;
using test::OpenNow;

// Counts, and may refuse writes.
class Disk final : public ArrayDevice {
 public:
  explicit Disk(std::string text) : ArrayDevice(text.size()) {
    bytes = std::move(text);
    holes.assign(bytes.size(), false);
    suspend = true;
  }
  int reads = 0, writes = 0;
  uint64_t bytes_read = 0;
  int refused = 0;  // errno of writes and zeroes

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    ++reads;
    bytes_read += into.size();
    return ArrayDevice::DoRead(call, offset, into);
  }
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override {
    if (refused) return ErrnoError(refused, "the disk below");
    ++writes;
    return ArrayDevice::DoWrite(call, offset, from);
  }
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override {
    if (refused) return ErrnoError(refused, "the disk below");
    return ArrayDevice::DoZero(call, offset, length);
  }
};

Task<absl::Status> ReadAll(Device* device, std::string* text) {
  co_return co_await device->Read({}, 0, *text);
}
Task<absl::Status> WriteText(Device* device, uint64_t offset, std::string text, uint32_t flags) {
  co_return co_await device->Write(Call().With(flags), offset, text);
}
Task<absl::Status> ZeroWith(Device* device, uint64_t offset, uint64_t length, uint32_t flags) {
  co_return co_await device->Zero(Call().With(flags), offset, length);
}
Task<absl::Status> ZeroRange(Device* device, uint64_t offset, uint64_t length) {
  co_return co_await device->Zero({}, offset, length);
}
Task<absl::Status> TrimRange(Device* device, uint64_t offset, uint64_t length) {
  co_return co_await device->Trim({}, offset, length);
}
Task<absl::Status> Prefetch(Device* device, uint64_t offset, uint64_t length) {
  co_return co_await device->Cache({}, offset, length);
}
Task<absl::Status> Flush(Device* device) { co_return co_await device->Flush({}); }
Task<absl::Status> Close(Device* device) { co_return co_await device->Close(); }

std::string Contents(Device* device) {
  std::string text(device->size(), '?');
  absl::Status status = OnLoop(ReadAll, device, &text);
  return status.ok() ? text : std::string(status.message());
}

TEST_CASE("cache: what was written is read back, and after a flush it is below") {
  for (std::string mode : {"writeback", "writethrough", "unsafe"}) {
    for (std::string block : {"4K", "64K", "1M"}) {
      for (std::string on_read : {"false", "true"}) {
        for (std::string max_size : {"1M", "1G"}) {
          auto disk = std::make_shared<Disk>(Noise(2'300'001));
          const std::string before = disk->bytes;
          auto layer = MakeFilter(CacheSpec(),
                                  {{"cache", mode},
                                   {"cache-min-block-size", block},
                                   {"cache-on-read", on_read},
                                   {"cache-max-size", max_size},
                                   {"cache-high-threshold", "50"},
                                   {"cache-low-threshold", "20"}},
                                  disk);
          REQUIRE(layer.ok());
          auto device = OpenNow(*layer);
          REQUIRE(device.ok());
          INFO(mode << " " << block << " " << on_read << " " << max_size);
          CHECK(OnLoop(RandomOperations, device->get(), 5).message() == "");
          const std::string contents = Contents(device->get());
          if (mode == "writethrough") CHECK((disk->bytes == contents));
          CHECK(OnLoop(Flush, device->get()).message() == "");
          if (mode == "unsafe") {
            CHECK(disk->flushes == 0);
            if (max_size == "1G") CHECK((disk->bytes == before));
          } else {
            CHECK((disk->bytes == contents));
            CHECK(disk->flushes > 0);
          }
        }
      }
    }
  }
}

TEST_CASE("cache: when writes reach the disk below") {
  struct Case {
    std::string mode;
    uint32_t flags;
    bool at_once, after_flush, after_close;
  };
  for (const Case& each :
       {Case{"writeback", 0, false, true, true}, Case{"writeback", kFua, true, true, true},
        Case{"writethrough", 0, true, true, true}, Case{"unsafe", 0, false, false, false},
        Case{"unsafe", kFua, false, false, false}}) {
    for (bool close : {false, true}) {
      auto disk = std::make_shared<Disk>(std::string(200'000, 'd'));
      auto layer = MakeFilter(CacheSpec(), {{"cache", each.mode}}, disk);
      auto device = *OpenNow(*layer);
      INFO(each.mode << " " << each.flags);
      auto is_below = [&disk] { return disk->bytes.substr(70'000, 3) == "new"; };
      CHECK(OnLoop(WriteText, device.get(), 70'000, "new", each.flags).ok());
      CHECK(is_below() == each.at_once);
      CHECK(disk->fua == (each.at_once && each.flags));
      CHECK(Contents(device.get()).substr(70'000, 4) == "newd");
      if (close) {
        CHECK(OnLoop(Close, device.get()).ok());
        CHECK(is_below() == each.after_close);
      } else {
        CHECK(OnLoop(Flush, device.get()).ok());
        CHECK(is_below() == each.after_flush);
        const int writes = disk->writes;
        CHECK(OnLoop(Flush, device.get()).ok());
        CHECK(disk->writes == writes);  // nothing is dirty any more
      }
    }
  }
}

TEST_CASE("cache: what the disk below refuses fails each flush until it is there") {
  auto disk = std::make_shared<Disk>(std::string(300'000, 'd'));
  auto layer = MakeFilter(CacheSpec(), {{"cache-min-block-size", "4K"}}, disk);
  auto device = *OpenNow(*layer), other = *OpenNow(*layer);
  CHECK(OnLoop(WriteText, device.get(), 5000, "new", 0u).ok());
  CHECK(OnLoop(ZeroRange, device.get(), 8192, 8192).ok());
  CHECK(OnLoop(WriteText, device.get(), 200'000, "end", 0u).ok());
  disk->refused = ENOSPC;
  for (int i = 0; i < 3; ++i) {
    CHECK(ErrnoOf(OnLoop(Flush, device.get())) == ENOSPC);
    CHECK(ErrnoOf(OnLoop(Flush, other.get())) == ENOSPC);
  }
  CHECK(disk->flushes == 0);
  // A write that must be there at once fails at once, and what was there stays.
  CHECK(ErrnoOf(OnLoop(WriteText, device.get(), 5000, "xyz", kFua)) == ENOSPC);
  CHECK(Contents(device.get()).substr(5000, 4) == "newd");
  disk->refused = 0;
  CHECK(OnLoop(Flush, other.get()).ok());
  CHECK((disk->bytes == Contents(device.get())));
  CHECK(disk->bytes.substr(200'000, 3) == "end");
  CHECK(disk->bytes.substr(8192, 8192) == std::string(8192, '\0'));
  CHECK(disk->holes[8192]);
  disk->refused = EIO;
  CHECK(OnLoop(WriteText, device.get(), 0, "lost", 0u).ok());
  CHECK(ErrnoOf(OnLoop(Close, device.get())) == EIO);
  disk->refused = 0;
  CHECK(OnLoop(Close, other.get()).ok());
  CHECK(disk->bytes.substr(0, 4) == "lost");
}

TEST_CASE("cache: what could not be written through is read from below again") {
  for (const auto& [mode, flags] : {std::pair("writethrough", 0u), std::pair("writeback", kFua)}) {
    INFO(mode);
    auto disk = std::make_shared<Disk>(std::string(100'000, 'd'));
    auto layer = MakeFilter(CacheSpec(), {{"cache", mode}, {"cache-on-read", "true"}}, disk);
    auto device = *OpenNow(*layer);
    CHECK((Contents(device.get()) == disk->bytes));
    disk->refused = EIO;
    CHECK(ErrnoOf(OnLoop(WriteText, device.get(), 10, "xyz", flags)) == EIO);
    CHECK(ErrnoOf(OnLoop(ZeroWith, device.get(), 65536, 100'000 - 65536, flags)) == EIO);
    disk->bytes.replace(10, 3, "xyz");  // all the same it may be there
    disk->bytes.replace(70'000, 3, "xyz");
    CHECK((Contents(device.get()) == disk->bytes));
  }
}

// ---- Connections whose flushes do not cover each other

struct Connection final : ArrayDevice {
  static Facts ConnectionFacts() {
    Facts facts = test::ArrayFacts(100'000);
    facts.multi_conn = false;
    return facts;
  }
  Connection() : ArrayDevice(ConnectionFacts()) {}
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override {
    unflushed = true;
    return ArrayDevice::DoWrite(call, offset, from);
  }
  Task<absl::Status> DoFlush(const Call& call) override {
    if (refused) return ErrnoError(refused, "the connection");
    unflushed = false;
    return ArrayDevice::DoFlush(call);
  }
  bool unflushed = false;
  int refused = 0;
};

TEST_CASE("cache: a flush covers what went down through another client's connection") {
  for (std::string mode : {"writeback", "writethrough"}) {
    INFO(mode);
    std::vector<std::shared_ptr<Connection>> disks;
    auto below = std::make_shared<test::DeviceLayer>([&](const OpenArgs&) {
      disks.push_back(std::make_shared<Connection>());
      return absl::StatusOr<DevicePtr>(disks.back());
    });
    auto layer = MakeFilter(CacheSpec(), {{"cache", mode}}, below);
    auto one = *OpenNow(*layer), two = *OpenNow(*layer), three = *OpenNow(*layer);
    CHECK(one->facts().multi_conn);
    CHECK(OnLoop(WriteText, one.get(), 0, "one", 0u).ok());
    CHECK(OnLoop(Flush, two.get()).ok());  // brings it down in write-back, through its own
    CHECK_FALSE((disks[0]->unflushed || disks[1]->unflushed));
    // Who leaves takes nothing along that others count on.
    CHECK(OnLoop(WriteText, one.get(), 0, "three", 0u).ok());
    CHECK(OnLoop(Close, one.get()).ok());
    CHECK_FALSE(disks[0]->unflushed);
    CHECK(OnLoop(WriteText, two.get(), 0, "four", 0u).ok());
    disks[1]->refused = EIO;
    CHECK(ErrnoOf(OnLoop(Close, two.get())) == EIO);
    for (int i = 0; i < 2; ++i) CHECK(ErrnoOf(OnLoop(Flush, three.get())) == EIO);
    CHECK(ErrnoOf(OnLoop(Close, three.get())) == 0);
  }
}

TEST_CASE("cache: what one client was told to be lost, each is told") {
  std::vector<std::shared_ptr<Connection>> disks;
  auto below = std::make_shared<test::DeviceLayer>([&](const OpenArgs&) {
    disks.push_back(std::make_shared<Connection>());
    return absl::StatusOr<DevicePtr>(disks.back());
  });
  auto layer = MakeFilter(CacheSpec(), {{"cache", "writethrough"}}, below);
  auto one = *OpenNow(*layer), two = *OpenNow(*layer);
  CHECK(OnLoop(WriteText, one.get(), 0, "one", 0u).ok());
  disks[0]->refused = EIO;
  CHECK(ErrnoOf(OnLoop(Flush, two.get())) == EIO);
  disks[0]->refused = 0;  // a file of Linux says it once
  CHECK(ErrnoOf(OnLoop(Flush, one.get())) == EIO);
  CHECK(ErrnoOf(OnLoop(Flush, two.get())) == EIO);
}

// ---- Misses

Task<void> ReadByte(Device* device, uint64_t offset, absl::Status* status) {
  char byte = 0;
  status->Update(co_await device->Read({}, offset, std::span(&byte, 1)));
}
Task<absl::Status> ReadTogether(Device* device, uint64_t step) {
  TaskScope scope;
  absl::Status status;
  for (uint64_t at = 0; at < device->size(); at += step) scope.Spawn(ReadByte(device, at, &status));
  co_await scope.Join();
  co_return status;
}

TEST_CASE("cache: misses of one block at the same time fetch it once") {
  auto disk = std::make_shared<Disk>(Noise(10 * 4096));
  auto layer =
      MakeFilter(CacheSpec(), {{"cache-min-block-size", "4K"}, {"cache-on-read", "true"}}, disk);
  auto device = *OpenNow(*layer);
  CHECK(OnLoop(ReadTogether, device.get(), 64).ok());
  CHECK(disk->reads == 10);
  CHECK(disk->bytes_read == 10 * 4096);
  CHECK((Contents(device.get()) == disk->bytes));
  CHECK(disk->reads == 10);
}

TEST_CASE("cache: what is prefetched is there, and what is read only if it shall be") {
  for (std::string on_read : {"false", "true"}) {
    auto disk = std::make_shared<Disk>(Noise(1 << 20));
    auto layer = MakeFilter(CacheSpec(), {{"cache-on-read", on_read}}, disk);
    auto device = *OpenNow(*layer);
    CHECK(OnLoop(Prefetch, device.get(), 100'000, 1).ok());
    CHECK(disk->bytes_read == 65536);
    CHECK((Contents(device.get()) == disk->bytes));
    CHECK(disk->bytes_read == 1 << 20);
    CHECK((Contents(device.get()) == disk->bytes));
    CHECK(disk->bytes_read == (on_read == "true" ? 1 << 20 : (2 << 20) - 65536));
  }
}

TEST_CASE("cache: the limit holds, and what is used stays") {
  auto disk = std::make_shared<Disk>(Noise(4 << 20));
  auto layer = MakeFilter(
      CacheSpec(),
      {{"cache-min-block-size", "4K"}, {"cache-on-read", "true"}, {"cache-max-size", "1M"}}, disk);
  auto device = *OpenNow(*layer);
  absl::Status status;
  for (uint64_t at = 0; at < disk->size(); at += 4096) {
    CHECK(OnLoop(Prefetch, device.get(), at, 1).ok());
    CHECK(OnLoop(Prefetch, device.get(), 4096, 1).ok());  // again and again
  }
  // Only what was dropped was fetched twice, and the block in use was not.
  CHECK(disk->bytes_read <= (4 << 20) + 10 * 4096);
  disk->bytes_read = 0;
  CHECK((Contents(device.get()) == disk->bytes));
  CHECK(disk->bytes_read > (3 << 20));
}

// ---- Readers, writers and the limit, on several loops at a time

constexpr uint64_t kPart = 400'000;

Task<absl::Status> WorkOnPart(Device* device, uint64_t start, uint64_t seed) {
  std::string oracle(kPart, '\0');
  BLK_CO_RETURN_IF_ERROR(co_await device->Read({}, start, oracle));
  uint64_t random = seed;
  for (int i = 0; i < 150; ++i) {
    random = random * 6364136223846793005 + 1442695040888963407;
    const uint64_t offset = (random >> 20) % kPart;
    const uint64_t length = std::min((random >> 44) % 50'000, kPart - offset);
    if (random >> 62 == 0) {
      std::string data(length, static_cast<char>(random >> 30));
      BLK_CO_RETURN_IF_ERROR(co_await device->Write({}, start + offset, data));
      oracle.replace(offset, length, data);
      if (i % 16 == 0) BLK_CO_RETURN_IF_ERROR(co_await device->Flush({}));
    } else {
      std::string got(length, '?');
      BLK_CO_RETURN_IF_ERROR(co_await device->Read({}, start + offset, got));
      if (got != oracle.substr(offset, length))
        co_return absl::DataLossError(absl::StrCat("at ", start + offset));
    }
  }
  co_return absl::OkStatus();
}

Task<void> WorkOn(Loop* loop, Device* device, uint64_t part, absl::Status* status,
                  std::mutex* mutex) {
  absl::Status result = co_await RunOn(loop, WorkOnPart(device, part * (kPart + 7), part + 1));
  std::lock_guard lock(*mutex);
  status->Update(result);
}
Task<absl::Status> WorkOnAll(LoopPool* pool, Layer* layer) {
  BLK_CO_ASSIGN_OR_RETURN(DevicePtr device, co_await layer->Open({}));
  TaskScope scope;
  absl::Status status;
  std::mutex mutex;
  for (uint64_t part = 0; part < 9; ++part)
    scope.Spawn(WorkOn(pool->loop(part % pool->size()), device.get(), part, &status, &mutex));
  co_await scope.Join();
  status.Update(co_await device->Close());
  co_return status;
}

TEST_CASE("cache: reading while blocks are dropped gives their bytes") {
  for (std::string mode : {"writeback", "writethrough", "unsafe"}) {
    for (std::string max_size : {"1M", "3M"}) {
      auto disk = MakeReady(MemorySpec(), {{"size", "4M"}});
      REQUIRE(disk.ok());
      auto layer = MakeFilter(CacheSpec(),
                              {{"cache", mode},
                               {"cache-min-block-size", "4K"},
                               {"cache-on-read", "true"},
                               {"cache-max-size", max_size},
                               {"cache-high-threshold", "60"},
                               {"cache-low-threshold", "10"}},
                              *disk);
      REQUIRE(layer.ok());
      LoopPool pool(3);
      INFO(mode << " " << max_size);
      CHECK(pool.RunMain(WorkOnAll(&pool, layer->get())).message() == "");
    }
  }
}

// ---- No room

Task<absl::Status> WriteMuch(Device* device, std::string* oracle) {
  std::string data(8192, 'n');
  for (uint64_t at = 0; at + 8192 <= oracle->size(); at += 12'288) {
    BLK_CO_RETURN_IF_ERROR(co_await device->Write({}, at + 100, std::span(data).first(8000)));
    oracle->replace(at + 100, 8000, data, 0, 8000);
    if (at % 5 == 0) {
      BLK_CO_RETURN_IF_ERROR(co_await device->Zero({}, at + 50, 9000));
      std::fill_n(oracle->begin() + static_cast<int64_t>(at) + 50, 9000, '\0');
    }
  }
  co_return co_await CompareAll(device, *oracle);
}

TEST_CASE("cache: when its disk is full, requests go to the disk below, with a warning") {
  static int warnings;
  for (std::string mode : {"writeback", "writethrough", "unsafe"}) {
    auto disk = std::make_shared<Disk>(Noise(1 << 20));
    auto layer = MakeFilter(
        CacheSpec(), {{"cache", mode}, {"cache-min-block-size", "4K"}, {"cache-on-read", "true"}},
        disk);
    auto device = OpenNow(*layer);
    std::string oracle = disk->bytes;
    warnings = 0;
    SetLogSink(
        [](std::string_view line) { warnings += line.find("warning: cache: ") != line.npos; });
    absl::Status status, flushed;
    {
      test::FullDisk full(200'000);
      status = OnLoop(WriteMuch, device->get(), &oracle);
      flushed = OnLoop(Flush, device->get());
    }
    SetLogSink(nullptr);
    INFO(mode);
    CHECK(status.message() == "");
    CHECK(flushed.message() == "");
    CHECK((Contents(device->get()) == oracle));
    if (mode != "unsafe") CHECK((disk->bytes == oracle));
    CHECK(warnings == 1);
  }
}

// ---- Extents, trims, what is refused

Task<std::vector<Extent>> AllExtents(Device* device) {
  ExtentList list(0, device->size());
  while (!list.full()) BLK_CHECK((co_await device->Extents({}, kBaseAllocation, &list)).ok());
  co_return list.extents();
}

TEST_CASE("cache: extents are those of what a reader gets") {
  auto array = std::make_shared<ArrayDevice>(40'000);
  array->bytes.replace(30'000, 10'000, 10'000, 'd');
  std::fill(array->holes.begin() + 30'000, array->holes.end(), false);
  array->suspend = true;
  auto layer = MakeFilter(CacheSpec(), {{"cache-min-block-size", "4K"}}, array);
  auto device = *OpenNow(*layer);
  CHECK(OnLoop(Prefetch, device.get(), 0, 20'000).ok());
  CHECK(OnLoop(AllExtents, device.get()) ==
        std::vector<Extent>{{30'000, kExtentHoleZero}, {10'000, kExtentData}});
  CHECK(OnLoop(WriteText, device.get(), 4096, "x", 0u).ok());
  CHECK(OnLoop(ZeroRange, device.get(), 36'864, 40'000 - 36'864).ok());
  const std::vector<Extent> wanted = {{4096, kExtentHoleZero},
                                      {4096, kExtentData},
                                      {30'000 - 8192, kExtentHoleZero},
                                      {6864, kExtentData},
                                      {40'000 - 36'864, kExtentHoleZero}};
  CHECK(OnLoop(AllExtents, device.get()) == wanted);
  CHECK(OnLoop(Flush, device.get()).ok());
  CHECK(OnLoop(AllExtents, device.get()) == wanted);
}

TEST_CASE("cache: a trim goes down, and nothing comes back over it") {
  auto disk = std::make_shared<Disk>(Noise(100'000));
  auto layer = MakeFilter(CacheSpec(), {{"cache-min-block-size", "4K"}}, disk);
  auto device = *OpenNow(*layer);
  CHECK(OnLoop(WriteText, device.get(), 0, std::string(100'000, 'n'), 0u).ok());
  CHECK(OnLoop(TrimRange, device.get(), 5000, 50'000).ok());
  CHECK(OnLoop(Flush, device.get()).ok());
  CHECK((disk->bytes == Contents(device.get())));
  CHECK(disk->bytes.substr(0, 5000) == std::string(5000, 'n'));
  CHECK(disk->bytes.substr(8192, 40'000) == std::string(40'000, '\0'));
  CHECK(disk->bytes.substr(55'000) == std::string(45'000, 'n'));
}

TEST_CASE("cache: parameters, and disks that it is not for") {
  auto disk = ArrayOf("x");
  for (std::string bad : {"2K", "4G", "5000"})
    CHECK_FALSE(MakeFilter(CacheSpec(), {{"cache-min-block-size", bad}}, disk).ok());
  CHECK_FALSE(MakeFilter(CacheSpec(), {{"cache", "foo"}}, disk).ok());
  CHECK_FALSE(MakeFilter(CacheSpec(), {{"cache-max-size", "640K"}}, disk).ok());
  CHECK_FALSE(MakeFilter(CacheSpec(), {{"cache-high-threshold", "0"}}, disk).ok());
  CHECK(MakeFilter(CacheSpec(), {{"cache-low-threshold", "95"}}, disk).ok());
  CHECK_FALSE(
      MakeFilter(CacheSpec(), {{"cache-low-threshold", "95"}, {"cache-max-size", "1M"}}, disk)
          .ok());
  auto below = std::make_shared<test::DeviceLayer>(DevicePtr(ArrayOf(std::string(5000, 'x'))));
  auto layer = MakeFilter(CacheSpec(), {}, below);
  REQUIRE(OpenNow(*layer).ok());
  below->open = [](const OpenArgs&) { return ArrayOf(std::string(5001, 'x')); };
  CHECK(ErrnoOf(OpenNow(*layer).status()) == EINVAL);
}

// ---- The states of the store that only caches use

Task<absl::Status> TryDirty(BlockStore* store) {
  if (store->NextDirty(0) != UINT64_MAX) co_return absl::InternalError("nothing is dirty yet");
  for (uint64_t block : {3, 4, 5000}) {
    BLK_CO_RETURN_IF_ERROR(store->Place(block).status());
    store->SetPresent(block, block != 4);
  }
  BLK_CO_RETURN_IF_ERROR(co_await store->SetZero(10, 5));
  if (store->NextDirty(0) != 3 || store->NextDirty(4) != 10 || store->NextDirty(12) != 12 ||
      store->NextDirty(15) != 5000 || store->NextDirty(5001) != UINT64_MAX)
    co_return absl::InternalError("dirty");
  // What was written over zeroes and is clean hides them.
  BLK_CO_RETURN_IF_ERROR(store->Place(10).status());
  store->SetPresent(10, false);
  if (store->NextDirty(4) != 11) co_return absl::InternalError("clean over zero");
  const uint64_t drops = store->drops();
  co_await store->Drop(10, 3);
  if (store->drops() == drops || store->NextDirty(4) != 13) co_return absl::InternalError("drop");
  if (store->RunAt(9, 4).state != BlockStore::State::kAbsent || store->RunAt(9, 9).blocks != 4)
    co_return absl::InternalError("dropped");
  store->SetDirty(3, 1, false);
  if (store->NextDirty(0) != 13) co_return absl::InternalError("clean");
  co_return absl::OkStatus();
}

Task<absl::Status> TryUnused(BlockStore* store) {
  if (store->FindUnused()) co_return absl::InternalError("nothing is there");
  for (uint64_t block : {1, 2, 9000, 9001}) {
    BLK_CO_RETURN_IF_ERROR(store->Place(block).status());
    store->SetPresent(block);
  }
  if (store->FindUnused() != 1u) co_return absl::InternalError("all are used: the first");
  (void)store->RunAt(2, 1);
  if (store->FindUnused() != 9000u && store->FindUnused() != 9001u)
    co_return absl::InternalError("2 was used");
  if (store->present_blocks() != 4) co_return absl::InternalError("how many");
  co_return absl::OkStatus();
}

TEST_CASE("block store: dirty blocks are found, and those that nobody uses") {
  auto store = BlockStore::Create(4096);
  CHECK(OnLoop(TryDirty, store->get()).message() == "");
  auto other = BlockStore::Create(4096);
  CHECK(OnLoop(TryUnused, other->get()).message() == "");
}

}  // namespace
}  // namespace blk
