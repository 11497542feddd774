#include <doctest/doctest.h>

#include "src/backends/filters/block_store.h"
#include "src/core/scope.h"
#include "test/backends/try_device.h"
#include "test/support/array_device.h"
#include "test/support/full_disk.h"
#include "test/support/layers.h"

namespace blk {

const Spec& CowSpec();

namespace {

using test::ArrayDevice;
using test::MakeFilter;
using test::Noise;
using test::OnLoop;
using test::OpenNow;

std::shared_ptr<ArrayDevice> NoisyArray(size_t bytes, uint32_t block = 1) {
  Facts facts = test::ArrayFacts(bytes);
  facts.block.minimum = block;
  auto array = std::make_shared<ArrayDevice>(facts);
  array->bytes = Noise(bytes);
  array->holes.assign(bytes, false);
  return array;
}

TEST_CASE("cow is what was written over what is below, and leaves that alone") {
  for (std::string block : {"4K", "64K", "4M"}) {
    for (std::string on_read : {"false", "true"}) {
      for (bool suspend : {false, true}) {
        auto array = NoisyArray(300'001);
        array->suspend = suspend;
        const std::string before = array->bytes;
        auto layer =
            MakeFilter(CowSpec(), {{"cow-block-size", block}, {"cow-on-read", on_read}}, array);
        REQUIRE(layer.ok());
        auto device = OpenNow(*layer);
        REQUIRE(device.ok());
        INFO("block " << block << " on-read " << on_read << " suspend " << suspend);
        CHECK(OnLoop(RandomOperations, device->get(), 3).message() == "");
        CHECK(array->bytes == before);
        CHECK(array->fua == 0);
      }
    }
  }
}

Task<void> WriteByte(Device* device, uint64_t offset, char byte, absl::Status* status) {
  status->Update(co_await device->Write({}, offset, std::span(&byte, 1)));
}

// Every byte of a few blocks by a writer of its own, all at the same time.
Task<absl::Status> WriteBytesTogether(Device* device, std::string* oracle) {
  TaskScope scope;
  absl::Status status;
  for (uint64_t at = 0; at < oracle->size(); at += 3) {
    (*oracle)[at] = static_cast<char>(at % 251);
    scope.Spawn(WriteByte(device, at, (*oracle)[at], &status));
  }
  co_await scope.Join();
  BLK_CO_RETURN_IF_ERROR(status);
  co_return co_await CompareAll(device, *oracle);
}

TEST_CASE("writers of one block lose no bytes") {
  auto array = NoisyArray(5000);
  array->suspend = true;
  auto layer = MakeFilter(CowSpec(), {{"cow-block-size", "4K"}}, array);
  auto device = OpenNow(*layer);
  std::string oracle = array->bytes;
  CHECK(OnLoop(WriteBytesTogether, device->get(), &oracle).message() == "");
}

Task<std::vector<Extent>> AllExtents(Device* device, uint32_t flags) {
  ExtentList list(0, device->size());
  do BLK_CHECK((co_await device->Extents({.flags = flags}, kBaseAllocation, &list)).ok());
  while (!list.full() && !(flags & kRequestOne));
  co_return list.extents();
}

Task<absl::Status> WriteAndTrim(Device* device) {
  std::string data(4096, 'd');
  BLK_CO_RETURN_IF_ERROR(co_await device->Write({}, 8192, data));
  BLK_CO_RETURN_IF_ERROR(co_await device->Write({}, 16384, data));
  co_return co_await device->Trim({}, 12288, 8192);
}

TEST_CASE("extents are those of the overlay over those below") {
  auto array = std::make_shared<ArrayDevice>(40'000);
  for (int i = 30'000; i < 40'000; ++i) array->holes[i] = false;
  array->suspend = true;
  auto layer = MakeFilter(CowSpec(), {{"cow-block-size", "4K"}}, array);
  auto device = OpenNow(*layer);
  CHECK(OnLoop(WriteAndTrim, device->get()).ok());
  CHECK(OnLoop(AllExtents, device->get(), 0u) ==
        std::vector<Extent>{{8192, kExtentHoleZero},
                            {4096, kExtentData},
                            {30'000 - 12288, kExtentHoleZero},
                            {10'000, kExtentData}});
  CHECK(OnLoop(AllExtents, device->get(), kRequestOne) ==
        std::vector<Extent>{{8192, kExtentHoleZero}});
}

Task<absl::Status> UseFarEnds(Device* device) {
  for (uint64_t offset = 0; offset < device->size(); offset += device->size() / 8)
    BLK_CO_RETURN_IF_ERROR(co_await device->Write({}, offset, std::string_view("far")));
  BLK_CO_RETURN_IF_ERROR(co_await device->Write({}, device->size() - 3, std::string_view("end")));
  BLK_CO_RETURN_IF_ERROR(co_await device->Trim({}, 5, device->size() - 9));
  char end[4] = {};
  BLK_CO_RETURN_IF_ERROR(co_await device->Read({}, device->size() - 4, end));
  if (std::string_view(end, 4) != std::string_view("\0end", 4))
    co_return absl::DataLossError("end");
  ExtentList list(0, device->size());
  while (!list.full()) BLK_CO_RETURN_IF_ERROR(co_await device->Extents({}, kBaseAllocation, &list));
  // The trim made all but the first and last block a hole.
  if (list.size() != 3) co_return absl::DataLossError("extents");
  co_return absl::OkStatus();
}

// As large as disks get; reads as zeroes.
class HugeDevice final : public Device {
 public:
  HugeDevice() : Device(MakeFacts()) {}

 protected:
  static Facts MakeFacts() {
    Facts facts;
    facts.size = INT64_MAX;
    return facts;
  }
  Task<absl::Status> DoRead(const Call&, uint64_t, std::span<char> into) override {
    std::fill(into.begin(), into.end(), '\0');
    return absl::OkStatus();
  }
};

TEST_CASE("the largest disk: any offset works, and memory is for what was written") {
  auto layer = MakeFilter(CowSpec(), {}, std::make_shared<HugeDevice>());
  auto device = OpenNow(*layer);
  CHECK(OnLoop(UseFarEnds, device->get()).message() == "");
}

Task<absl::Status> WriteUntilFull(Device* device, std::string* oracle) {
  std::string data(8192, 'n');
  absl::Status last;
  for (uint64_t at = 0; at + 8192 <= oracle->size(); at += 8192) {
    last = co_await device->Write({}, at, data);
    if (!last.ok()) break;
    oracle->replace(at, 8192, data);
  }
  BLK_CO_RETURN_IF_ERROR(co_await CompareAll(device, *oracle));
  // What is there can be written again.
  BLK_CO_RETURN_IF_ERROR(co_await device->Write({}, 100, std::string_view("again")));
  oracle->replace(100, 5, "again");
  BLK_CO_RETURN_IF_ERROR(co_await CompareAll(device, *oracle));
  co_return last;
}

TEST_CASE("no room in the overlay fails the writer, and nothing else") {
  auto array = NoisyArray(1 << 20);
  for (std::string on_read : {"false", "true"}) {
    auto layer = MakeFilter(CowSpec(), {{"cow-block-size", "4K"}, {"cow-on-read", on_read}}, array);
    auto device = OpenNow(*layer);
    std::string oracle = array->bytes;
    absl::Status status;
    {
      test::FullDisk full(200'000);
      status = OnLoop(WriteUntilFull, device->get(), &oracle);
    }
    CHECK(ErrnoOf(status) == EFBIG);
    CHECK(oracle != array->bytes);
  }
}

OpenArgs ReadOnly() {
  OpenArgs args;
  args.read_only = true;
  return args;
}

TEST_CASE("cow opens the disk below for reading only, the same disk for all") {
  auto below = std::make_shared<test::DeviceLayer>(NoisyArray(10'000));
  auto layer = MakeFilter(CowSpec(), {}, below);
  REQUIRE(OpenNow(*layer).ok());
  CHECK(below->opened[0].read_only);
  CHECK_FALSE((*OpenNow(*layer))->facts().read_only);
  CHECK((*OpenNow(*layer, ReadOnly()))->facts().read_only);
  below->open = [](const OpenArgs&) { return NoisyArray(10'001); };
  CHECK(ErrnoOf(OpenNow(*layer).status()) == EINVAL);
  below->open = [](const OpenArgs&) { return NoisyArray(1 << 20, 1 << 17); };
  CHECK(OpenNow(*layer).status().message().find("131072") != std::string::npos);
  for (std::string bad : {"2K", "4G", "5000"})
    CHECK_FALSE(MakeFilter(CowSpec(), {{"cow-block-size", bad}}, below).ok());
}

// ---- The store itself

Task<absl::Status> TryStore(BlockStore* store) {
  using State = BlockStore::State;
  auto is = [store](uint64_t block, State state, uint64_t blocks) {
    BlockStore::Run run = store->RunAt(block, 1'000'000);
    return run.state == state && run.blocks == blocks;
  };
  const uint64_t far = uint64_t{1} << 46;
  if (!is(far, State::kAbsent, 1'000'000)) co_return absl::InternalError("empty");
  BLK_CO_RETURN_IF_ERROR(co_await store->SetZero(10, far));
  BLK_CO_RETURN_IF_ERROR(co_await store->SetZero(5, 5));  // side by side: one range
  if (!is(5, State::kZero, 1'000'000)) co_return absl::InternalError("zero");
  if (!is(0, State::kAbsent, 5)) co_return absl::InternalError("before");
  BLK_CO_RETURN_IF_ERROR(store->Place(100).status());
  if (!is(5, State::kZero, 1'000'000)) co_return absl::InternalError("placed");
  store->SetPresent(100);
  if (!is(5, State::kZero, 95)) co_return absl::InternalError("before present");
  if (!is(100, State::kPresent, 1)) co_return absl::InternalError("present");
  BLK_CO_RETURN_IF_ERROR(co_await store->SetZero(90, 20));
  if (!is(5, State::kZero, 1'000'000)) co_return absl::InternalError("zero again");
  if (!is(far + 9, State::kZero, 1)) co_return absl::InternalError("end");
  if (store->memory_bytes() > 10'000) co_return absl::InternalError("memory");
  co_return absl::OkStatus();
}

TEST_CASE("states of blocks, also of very many at once") {
  auto store = BlockStore::Create(4096);
  REQUIRE(store.ok());
  CHECK(OnLoop(TryStore, store->get()).message() == "");
}

Task<absl::Status> TryManyZeroes(BlockStore* store) {
  for (uint64_t i = 0; i < 4; ++i) BLK_CO_RETURN_IF_ERROR(co_await store->SetZero(10 * i, 5));
  BLK_CO_RETURN_IF_ERROR(store->Place(60).status());
  store->SetPresent(60);
  absl::Status status = co_await store->SetZero(60, 1);
  if (ErrnoOf(status) != ENOSPC || store->RunAt(60, 1).state != BlockStore::State::kPresent)
    co_return absl::InternalError("a fifth range");
  BLK_CO_RETURN_IF_ERROR(co_await store->SetZero(35, 5));  // longer, but none more
  BLK_CO_RETURN_IF_ERROR(co_await store->SetZero(15, 5));  // now there is one less
  co_return co_await store->SetZero(60, 1);
}

TEST_CASE("ranges of zeroes are no more than the store may remember") {
  auto store = BlockStore::Create(4096, 4);
  REQUIRE(store.ok());
  CHECK(OnLoop(TryManyZeroes, store->get()).message() == "");
}

Task<void> HoldShortly(RangeLock* lock, uint64_t first, uint64_t count, std::vector<int>* held,
                       int* overlaps) {
  RangeLock::Guard guard = co_await lock->Lock(first, count);
  for (uint64_t i = first; i < first + count; ++i) *overlaps += (*held)[i]++;
  co_await Yield();
  co_await Yield();
  for (uint64_t i = first; i < first + count; ++i) --(*held)[i];
}

Task<int> HoldMany(RangeLock* lock) {
  std::vector<int> held(40, 0);
  int overlaps = 0;
  TaskScope scope;
  uint64_t random = 1;
  for (int i = 0; i < 300; ++i) {
    random = random * 6364136223846793005 + 1442695040888963407;
    uint64_t first = (random >> 33) % 40;
    uint64_t count = 1 + (random >> 50) % (40 - first);
    scope.Spawn(HoldShortly(lock, first, count, &held, &overlaps));
  }
  co_await scope.Join();
  co_return overlaps;
}

TEST_CASE("ranges that overlap are held one after the other, and everyone comes") {
  RangeLock lock;
  CHECK(OnLoop(HoldMany, &lock) == 0);
}

Task<void> HoldShared(RangeLock* lock, int* together, int* most) {
  RangeLock::Guard guard = co_await lock->LockShared(1, 5);
  *most = std::max(*most, ++*together);
  co_await Yield();
  --*together;
}
Task<void> HoldAlone(RangeLock* lock, const int* together, int* others) {
  RangeLock::Guard guard = co_await lock->Lock(3, 1);
  co_await Yield();
  *others += *together;
}

Task<std::pair<int, int>> HoldBoth(RangeLock* lock) {
  int together = 0, most = 0, others = 0;
  TaskScope scope;
  for (int i = 0; i < 12; ++i) {
    scope.Spawn(HoldShared(lock, &together, &most));
    if (i % 4 == 3) scope.Spawn(HoldAlone(lock, &together, &others));
  }
  co_await scope.Join();
  co_return std::pair(most, others);
}

TEST_CASE("who shares a range holds it together, and apart from who does not") {
  RangeLock lock;
  CHECK(OnLoop(HoldBoth, &lock) == std::pair(4, 0));
}

}  // namespace
}  // namespace blk
