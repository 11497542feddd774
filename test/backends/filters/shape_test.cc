// Filters that change what a disk looks like: truncate, swab, protect, map, extentlist, blocksize,
// blocksize-policy, and the small ones of features.cc.
#include <doctest/doctest.h>

#include "src/core/scope.h"
#include "test/backends/try_device.h"
#include "test/support/array_device.h"
#include "test/support/layers.h"
#include "test/temporary.h"

namespace blk {

const Spec& BlockSizeSpec();
const Spec& BlockSizePolicySpec();
const Spec& ExtentListSpec();
const Spec& FuaSpec();
const Spec& MapSpec();
const Spec& NoCacheSpec();
const Spec& NoExtentsSpec();
const Spec& NoFilterSpec();
const Spec& NoZeroSpec();
const Spec& ProtectSpec();
const Spec& ReadOnlySpec();
const Spec& RotationalSpec();
const Spec& SwabSpec();
const Spec& TruncateSpec();

namespace {

using test::ArrayDevice;
using test::MakeFilter;
using test::OnLoop;
using test::OpenFilter;
using test::OpenNow;

std::shared_ptr<ArrayDevice> Array(uint64_t size, uint32_t block = 1) {
  Facts facts = test::ArrayFacts(size);
  facts.block.minimum = block;
  return std::make_shared<ArrayDevice>(facts);
}

Task<absl::Status> WriteText(Device* device, uint64_t offset, std::string text) {
  co_return co_await device->Write({}, offset, text);
}
Task<absl::Status> ReadText(Device* device, uint64_t offset, std::string* text) {
  co_return co_await device->Read({}, offset, *text);
}
std::string Get(Device* device, uint64_t offset, uint64_t bytes) {
  std::string text(bytes, '?');
  absl::Status status = OnLoop(ReadText, device, offset, &text);
  return status.ok() ? text : std::string(status.message());
}
int Put(Device* device, uint64_t offset, std::string text) {
  return ErrnoOf(OnLoop(WriteText, device, offset, std::move(text)));
}
Task<absl::Status> ZeroOrTrim(Device* device, uint64_t offset, uint64_t length, int flags) {
  if (flags < 0) co_return co_await device->Trim({}, offset, length);
  co_return co_await device->Zero(Call().With(static_cast<uint32_t>(flags)), offset, length);
}
int PutZero(Device* device, uint64_t offset, uint64_t length, int flags = 0) {
  return ErrnoOf(OnLoop(ZeroOrTrim, device, offset, length, flags));
}
constexpr int kTrim = -1;

Task<std::vector<Extent>> AskExtents(Device* device, uint64_t offset, uint64_t length) {
  ExtentList list(offset, length);
  while (!list.full()) BLK_CHECK((co_await device->Extents({}, kBaseAllocation, &list)).ok());
  co_return list.extents();
}
std::vector<Extent> Extents(Device* device) {
  return OnLoop(AskExtents, device, uint64_t{0}, device->size());
}

// ---- truncate

TEST_CASE("truncate cuts, extends and rounds") {
  auto size = [](const test::Words& words) {
    auto device = OpenFilter(TruncateSpec(), words, Array(10'000));
    return device.ok() ? (*device)->size() : 0;
  };
  CHECK(size({}) == 10'000);
  CHECK(size({{"truncate", "5000"}}) == 5'000);
  CHECK(size({{"truncate", "50000"}}) == 50'000);
  CHECK(size({{"round-up", "4096"}}) == 12'288);
  CHECK(size({{"round-down", "4096"}}) == 8'192);
  CHECK(size({{"truncate", "4097"}, {"round-up", "4096"}}) == 8'192);
  CHECK(size({{"round-up", "5000"}}) == 10'000);
  CHECK(size({{"truncate", "9223372036854775807"}, {"round-up", "2"}}) == 0);
  CHECK_FALSE(MakeFilter(TruncateSpec(), {{"round-up", "0"}}, Array(10)).ok());
}

TEST_CASE("after the end of the disk there are zeroes, which can be written") {
  auto array = Array(10'000);
  array->suspend = true;
  auto device = OpenFilter(TruncateSpec(), {{"truncate", "20000"}}, array);
  REQUIRE(device.ok());
  CHECK(Put(device->get(), 9'998, std::string("ab\0\0", 4)) == 0);
  CHECK(Get(device->get(), 9'997, 5) == std::string("\0ab\0\0", 5));
  CHECK(Put(device->get(), 9'998, "cdx") == ENOSPC);
  CHECK(Get(device->get(), 9'998, 2) == "ab");  // nothing of it was written
  CHECK(Put(device->get(), 15'000, "x") == ENOSPC);
  CHECK(PutZero(device->get(), 9'000, 11'000) == 0);
  CHECK(PutZero(device->get(), 19'000, 1'000, kTrim) == 0);
  CHECK(Put(device->get(), 9'999, "z") == 0);
  CHECK(Extents(device->get()) ==
        std::vector<Extent>{{9'999, kExtentHoleZero}, {1, kExtentData}, {10'000, kExtentHoleZero}});
  auto cut = OpenFilter(TruncateSpec(), {{"truncate", "5000"}}, array);
  CHECK(OnLoop(RandomOperations, cut->get(), 9).message() == "");
}

// ---- swab

TEST_CASE("swab swaps words, both ways") {
  auto swapped = [](const std::string& bits) {
    auto array = Array(17);
    array->bytes = "01234567abcdefgh!";
    auto device = OpenFilter(SwabSpec(), {{"swab-bits", bits}}, array);
    std::string text = Get(device->get(), 0, (*device)->size());
    CHECK(Put(device->get(), 8, text.substr(8, 8)) == 0);
    CHECK(array->bytes == "01234567abcdefgh!");
    if (bits != "8") CHECK(Put(device->get(), 1, "ab") == EINVAL);
    return text;
  };
  CHECK(swapped("8") == "01234567abcdefgh!");
  CHECK(swapped("16") == "10325476badcfehg");
  CHECK(swapped("32") == "32107654dcbahgfe");
  CHECK(swapped("64") == "76543210hgfedcba");
}

// ---- extents of whole blocks

// Says one extent at a time: holes are [1024, 9216).
class OneExtentDevice final : public ArrayDevice {
 public:
  explicit OneExtentDevice(uint64_t size) : ArrayDevice(test::ArrayFacts(size)) {}

 protected:
  Task<absl::Status> DoExtents(const Call&, std::string_view, ExtentList* list) override {
    const uint64_t at = list->next();
    const uint64_t end = at < 1024 ? 1024 : at < 9216 ? 9216 : size();
    list->Append(end - at, at >= 1024 && at < 9216 ? kExtentHoleZero : kExtentData);
    return absl::OkStatus();
  }
};

Task<ExtentList> ExtentsAt(Device* device, uint64_t offset, uint64_t length) {
  ExtentList list(offset, length);
  BLK_CHECK((co_await device->Extents({}, kBaseAllocation, &list)).ok());
  co_return list;
}

TEST_CASE("blocksize and swab tell extents of whole blocks, and how far the last goes on") {
  auto array = std::make_shared<OneExtentDevice>(16 << 10);
  auto blocks = OpenFilter(BlockSizeSpec(), {{"minblock", "4K"}}, array);
  CHECK(Extents(blocks->get()) ==
        std::vector<Extent>{{4096, kExtentData}, {4096, kExtentHoleZero}, {8192, kExtentData}});
  ExtentList inside = OnLoop(ExtentsAt, blocks->get(), uint64_t{4097}, uint64_t{10});
  CHECK(inside.extents() == std::vector<Extent>{{10, kExtentHoleZero}});
  CHECK(inside.reach() == 8192);
  ExtentList across = OnLoop(ExtentsAt, blocks->get(), uint64_t{4095}, uint64_t{2});
  CHECK(across.front() == Extent{1, kExtentData});
  auto words =
      OpenFilter(SwabSpec(), {{"swab-bits", "64"}}, std::make_shared<OneExtentDevice>(9217));
  CHECK(Extents(words->get()) == std::vector<Extent>{{1024, kExtentData}, {8192, kExtentHoleZero}});
}

// ---- protect

TEST_CASE("protect refuses changes, and only them") {
  auto array = Array(10'000);
  array->bytes.assign(10'000, 'p');
  array->suspend = true;
  auto device = OpenFilter(ProtectSpec(), {{"protect", "100-199"}, {"protect", "0x1000-"}}, array);
  REQUIRE(device.ok());
  CHECK(Put(device->get(), 0, std::string(100, 'a')) == 0);
  CHECK(Put(device->get(), 0, std::string(101, 'a')) == EPERM);
  CHECK(Put(device->get(), 50, std::string(50, 'b') + std::string(100, 'p') + "c") == 0);
  CHECK(Put(device->get(), 199, "x") == EPERM);
  CHECK(Put(device->get(), 200, "x") == 0);
  CHECK(Put(device->get(), 4095, "x") == 0);
  CHECK(Put(device->get(), 4096, "x") == EPERM);
  CHECK(Put(device->get(), 9'999, "p") == 0);
  CHECK(PutZero(device->get(), 150, 1) == EPERM);
  CHECK(PutZero(device->get(), 150, 1, kTrim) == EPERM);
  CHECK(PutZero(device->get(), 200, 10, kTrim) == 0);
  CHECK(Get(device->get(), 98, 4) == "bbpp");
  auto other = OpenFilter(ProtectSpec(), {{"protect", "~1000-1999"}}, array);
  CHECK(Put(other->get(), 1000, std::string(1000, 'x')) == 0);
  CHECK(Put(other->get(), 999, "x") == EPERM);
  CHECK(Put(other->get(), 2000, "x") == EPERM);
  for (std::string bad : {"5", "a-b", "7-3"})
    CHECK_FALSE(MakeFilter(ProtectSpec(), {{"protect", bad}}, array).ok());
}

// ---- map and extentlist

TEST_CASE("map moves ranges; the first that fits counts") {
  auto array = Array(20);
  array->bytes = "0123456789abcdefghij";
  array->holes.assign(20, false);
  array->holes[15] = true;
  auto map = [&](const test::Words& words) {
    auto device = OpenFilter(MapSpec(), words, array);
    return device.ok() ? Get(device->get(), 0, (*device)->size())
                       : std::string(device.status().message());
  };
  CHECK(map({{"map", "0-4:10"}, {"map", "10-14:0"}}) == "abcde5678901234fghij");
  CHECK(map({{"map", "0-4:10"}, {"map", "0-9:0"}}) == "abcde56789abcdefghij");
  CHECK(map({{"map", "0-3:5"}, {"map-size", "6"}}) == "567845");
  CHECK(map({{"map", "0-30:0"}}) == "0123456789abcdefghij");
  CHECK(map({{"map", "0-4:16"}}).find("beyond the end") != std::string::npos);
  CHECK(map({{"map", "0-4:0"}, {"map-size", "21"}}).find("beyond the end") != std::string::npos);
  auto device = OpenFilter(MapSpec(), {{"map", "0-4:15"}, {"map", "15-19:0"}}, array);
  CHECK(Extents(device->get()) == std::vector<Extent>{{1, kExtentHoleZero}, {19, kExtentData}});
  CHECK(Put(device->get(), 3, "WXYZ") == 0);
  CHECK(array->bytes == "01234YZ789abcdefghWX");
  for (std::string bad : {"0-4", "4:5", "0-4:x"})
    CHECK_FALSE(MakeFilter(MapSpec(), {{"map", bad}}, array).ok());
}

TEST_CASE("map over a large disk is what random operations make of it") {
  auto array = Array(100'000);
  array->suspend = true;
  auto device = OpenFilter(MapSpec(), {{"map", "0-9999:50000"}, {"map", "50000-59999:0"}}, array);
  CHECK(OnLoop(RandomOperations, device->get(), 21).message() == "");
}

TEST_CASE("extentlist tells what the file says; gaps are holes") {
  TemporaryDirectory dir;
  auto extents = [&](const std::string& text) {
    auto device =
        OpenFilter(ExtentListSpec(), {{"extentlist", dir.Write("list", text)}}, Array(1 << 20));
    REQUIRE_MESSAGE(device.ok(), device.status().message());
    return Extents(device->get());
  };
  CHECK(extents("") == std::vector<Extent>{{1 << 20, kExtentHoleZero}});
  CHECK(extents("512K 4K hole\n\n64K 64K\n") == std::vector<Extent>{{64 << 10, kExtentHoleZero},
                                                                    {64 << 10, kExtentData},
                                                                    {384 << 10, kExtentHoleZero},
                                                                    {4 << 10, kExtentHole},
                                                                    {508 << 10, kExtentHoleZero}});
  CHECK(extents("0 1K 2\n1K\n") ==
        std::vector<Extent>{{1024, kExtentZero}, {(1 << 20) - 1024, kExtentData}});
  for (std::string bad : {"0 2K\n1K 1K\n", "x\n", "0 1K hole,x\n", "0 1 2 3\n"})
    CHECK_FALSE(
        OpenFilter(ExtentListSpec(), {{"extentlist", dir.Write("list", bad)}}, Array(10)).ok());
  CHECK_FALSE(OpenFilter(ExtentListSpec(), {{"extentlist", dir / "none"}}, Array(10)).ok());
}

// ---- blocksize

// Only whole blocks, and not too many at once, as a strict server would have it.
class StrictDevice final : public ArrayDevice {
 public:
  StrictDevice(uint64_t size, uint32_t block, uint64_t longest)
      : ArrayDevice(MakeFacts(size, block, longest)), longest_(longest) {
    suspend = true;
  }
  static Facts MakeFacts(uint64_t size, uint32_t block, uint64_t longest) {
    Facts facts = test::ArrayFacts(size);
    facts.block.minimum = block;
    facts.block.maximum = static_cast<uint32_t>(longest);
    return facts;
  }

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    BLK_CHECK(into.size() <= longest_);
    return ArrayDevice::DoRead(call, offset, into);
  }
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override {
    BLK_CHECK(from.size() <= longest_);
    return ArrayDevice::DoWrite(call, offset, from);
  }

 private:
  const uint64_t longest_;
};

TEST_CASE("blocksize makes any request one that the disk can do") {
  for (uint64_t longest : {512, 4096, 1 << 20}) {
    auto strict = std::make_shared<StrictDevice>(100'352, 512, longest);
    auto device = OpenFilter(BlockSizeSpec(), {}, strict);
    REQUIRE(device.ok());
    CHECK((*device)->facts().block.minimum == 1);
    CHECK(OnLoop(RandomOperations, device->get(), 13).message() == "");
  }
  auto array = Array(10'000);
  auto rounded =
      OpenFilter(BlockSizeSpec(), {{"minblock", "4K"}, {"maxdata", "8K"}, {"maxlen", "4K"}}, array);
  CHECK((*rounded)->size() == 8'192);
  CHECK(OnLoop(RandomOperations, rounded->get(), 14).message() == "");
  for (auto [key, value] : std::vector<std::pair<std::string, std::string>>{
           {"minblock", "3K"}, {"minblock", "128K"}, {"minblock", "0"}, {"maxdata", "0"}})
    CHECK_FALSE(MakeFilter(BlockSizeSpec(), {{key, value}}, array).ok());
  CHECK_FALSE(MakeFilter(BlockSizeSpec(), {{"minblock", "4K"}, {"maxdata", "6K"}}, array).ok());
}

Task<void> WriteByte(Device* device, uint64_t offset, absl::Status* status) {
  char byte = static_cast<char>(offset % 251);
  status->Update(co_await device->Write({}, offset, std::span(&byte, 1)));
}
Task<absl::Status> WriteTogether(Device* device, std::string* oracle) {
  TaskScope scope;
  absl::Status status;
  for (uint64_t at = 0; at < oracle->size(); ++at) {
    (*oracle)[at] = static_cast<char>(at % 251);
    scope.Spawn(WriteByte(device, at, &status));
  }
  co_await scope.Join();
  BLK_CO_RETURN_IF_ERROR(status);
  co_return co_await CompareAll(device, *oracle);
}

TEST_CASE("writers of parts of one block lose nothing") {
  auto strict = std::make_shared<StrictDevice>(1024, 512, 512);
  auto device = OpenFilter(BlockSizeSpec(), {}, strict);
  std::string oracle(1024, '\0');
  CHECK(OnLoop(WriteTogether, device->get(), &oracle).message() == "");
}

TEST_CASE("blocksize-policy tells of block sizes, and insists on them or not") {
  auto array = Array(1 << 20);
  test::Words words = {{"blocksize-minimum", "4K"}, {"blocksize-maximum", "64K"}};
  auto advice = OpenFilter(BlockSizePolicySpec(), words, array);
  CHECK((*advice)->facts().block.minimum == 4096);
  CHECK((*advice)->facts().block.maximum == 65536);
  CHECK(Put(advice->get(), 1, "x") == 0);
  words.emplace_back("blocksize-error-policy", "error");
  auto rule = OpenFilter(BlockSizePolicySpec(), words, array);
  CHECK(Put(rule->get(), 1, "x") == EINVAL);
  CHECK(Put(rule->get(), 0, std::string(65536, 'x')) == 0);
  CHECK(Put(rule->get(), 0, std::string(65536 + 4096, 'x')) == EINVAL);
  // What the disk itself insists on stays.
  auto strict = OpenFilter(BlockSizePolicySpec(), {{"blocksize-minimum", "1"}}, Array(4096, 512));
  CHECK(Put(strict->get(), 1, "x") == EINVAL);
  for (auto [key, value] :
       std::vector<std::pair<std::string, std::string>>{{"blocksize-minimum", "3"},
                                                        {"blocksize-minimum", "128K"},
                                                        {"blocksize-preferred", "256"},
                                                        {"blocksize-preferred", "64M"}})
    CHECK_FALSE(MakeFilter(BlockSizePolicySpec(), {{key, value}}, array).ok());
}

class DisconnectCounter final : public Session {
 public:
  void RequestDisconnect(Disconnect how) override { hard += how == Disconnect::kHard; }
  void ShutdownServer() override {}
  int hard = 0;
};

TEST_CASE(
    "blocksize-policy: too long a write ends the connection, whatever else is wrong with it") {
  const test::Words words = {{"blocksize-minimum", "512"},
                             {"blocksize-maximum", "4K"},
                             {"blocksize-error-policy", "error"},
                             {"blocksize-write-disconnect", "8K"}};
  DisconnectCounter session;
  OpenArgs args;
  args.session = &session;
  auto device = OpenFilter(BlockSizePolicySpec(), words, Array(1 << 20), args);
  REQUIRE(device.ok());
  CHECK(Put(device->get(), 0, std::string(4096, 'x')) == 0);
  CHECK(Put(device->get(), 0, std::string(8192, 'x')) == EINVAL);
  CHECK(Put(device->get(), 1, std::string(8191, 'x')) == EINVAL);
  CHECK(session.hard == 0);
  CHECK(Put(device->get(), 0, std::string(8193, 'x')) == EINVAL);  // neither aligned
  CHECK(session.hard == 1);
  CHECK(Put(device->get(), 3, std::string(8704, 'x')) == EINVAL);
  CHECK(session.hard == 2);
}

// ---- features

TEST_CASE("small filters change facts, and pass data") {
  for (const Spec* spec : {&NoFilterSpec(), &NoExtentsSpec(), &NoCacheSpec(), &NoZeroSpec(),
                           &FuaSpec(), &RotationalSpec()}) {
    INFO(spec->name());
    auto array = Array(100'000);
    array->suspend = true;
    auto device = OpenFilter(*spec, {}, array);
    CHECK(OnLoop(RandomOperations, device->get(), 31).message() == "");
  }
  auto facts = [](const Spec& spec, const test::Words& words) {
    auto device = OpenFilter(spec, words, Array(1000));
    REQUIRE(device.ok());
    return (*device)->facts();
  };
  CHECK(facts(RotationalSpec(), {}).rotational);
  CHECK_FALSE(facts(RotationalSpec(), {{"rotational", "false"}}).rotational);
  CHECK_FALSE(facts(NoExtentsSpec(), {}).extents);
  CHECK(facts(NoCacheSpec(), {}).cache == Support::kNone);
  CHECK(facts(NoCacheSpec(), {{"cachemode", "nop"}}).cache == Support::kNative);
  CHECK_FALSE(facts(NoZeroSpec(), {}).offer_zero);
  CHECK(facts(NoZeroSpec(), {{"zeromode", "plugin"}}).offer_zero);
  CHECK_FALSE(facts(NoZeroSpec(), {{"zeromode", "plugin"}, {"fastzeromode", "none"}}).fast_zero);
  CHECK(facts(FuaSpec(), {}).fua == Support::kNone);
  auto array = Array(10);
  array->holes.assign(10, true);
  CHECK(Extents(OpenFilter(NoExtentsSpec(), {}, array)->get()) ==
        std::vector<Extent>{{10, kExtentData}});
}

TEST_CASE("nozero writes, keeps holes away, and answers fast zeroes as told") {
  auto array = Array(10'000);
  auto emulate = OpenFilter(NoZeroSpec(), {{"zeromode", "emulate"}}, array);
  CHECK(PutZero(emulate->get(), 0, 10) == 0);
  CHECK_FALSE(array->holes[0]);
  CHECK(PutZero(emulate->get(), 0, 10, kFastZero) == EOPNOTSUPP);
  auto notrim = OpenFilter(NoZeroSpec(), {{"zeromode", "notrim"}}, array);
  CHECK(PutZero(notrim->get(), 100, 10) == 0);
  CHECK_FALSE(array->holes[100]);
  auto plugin = OpenFilter(NoZeroSpec(), {{"zeromode", "plugin"}}, array);
  CHECK(PutZero(plugin->get(), 0, 10, kFastZero) == 0);
  CHECK(array->holes[0]);
  auto slow = OpenFilter(NoZeroSpec(), {{"zeromode", "plugin"}, {"fastzeromode", "slow"}}, array);
  CHECK(PutZero(slow->get(), 0, 10, kFastZero) == EOPNOTSUPP);
  auto ignore =
      OpenFilter(NoZeroSpec(), {{"zeromode", "emulate"}, {"fastzeromode", "ignore"}}, array);
  CHECK(PutZero(ignore->get(), 0, 10, kFastZero) == 0);
}

Task<absl::Status> WriteFua(Device* device) {
  BLK_CO_RETURN_IF_ERROR(co_await device->Write(Call().With(kFua), 0, std::string_view("x")));
  BLK_CO_RETURN_IF_ERROR(co_await device->Write(Call(), 0, std::string_view("y")));
  co_return co_await device->Flush(Call());
}

TEST_CASE("fua: how many FUA writes and flushes arrive") {
  auto arrive = [](const std::string& mode) {
    auto array = Array(100);
    auto device = OpenFilter(FuaSpec(), {{"fuamode", mode}}, array);
    REQUIRE(OnLoop(WriteFua, device->get()).ok());
    return std::pair(array->fua, array->flushes);
  };
  CHECK(arrive("native") == std::pair(1, 1));
  CHECK(arrive("pass") == std::pair(1, 1));
  CHECK(arrive("emulate") == std::pair(0, 2));
  CHECK(arrive("force") == std::pair(2, 0));
  CHECK(arrive("discard") == std::pair(0, 0));
}

TEST_CASE("readonly, always or while a file exists") {
  auto below = std::make_shared<test::DeviceLayer>(Array(100));
  auto layer = MakeFilter(ReadOnlySpec(), {}, below);
  auto device = OpenNow(*layer);
  CHECK((*device)->facts().read_only);
  CHECK(below->opened[0].read_only);
  CHECK(Put(device->get(), 0, "x") == EPERM);
  TemporaryDirectory dir;
  auto switched = OpenFilter(ReadOnlySpec(), {{"readonly-file", dir / "lock"}}, Array(100));
  CHECK(Put(switched->get(), 0, "x") == 0);
  dir.Write("lock", "");
  CHECK(Put(switched->get(), 0, "x") == EPERM);
  CHECK(PutZero(switched->get(), 0, 1, kTrim) == EPERM);
}

}  // namespace
}  // namespace blk
