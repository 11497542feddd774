// offset, and what partition and others share with it.
#include <doctest/doctest.h>

#include "test/backends/try_device.h"
#include "test/support/array_device.h"
#include "test/support/layers.h"

namespace blk {

const Spec& OffsetSpec();

namespace {

using test::ArrayDevice;
using test::MakeFilter;
using test::OnLoop;
using test::OpenNow;

// An array that lends its bytes.
class LendingArray final : public ArrayDevice {
 public:
  using ArrayDevice::ArrayDevice;

 protected:
  bool DoBorrow(const Call&, uint64_t offset, uint64_t length, Loan* loan) override {
    loan->Add(bytes.data() + offset, length);
    return true;
  }
};

absl::StatusOr<DevicePtr> OpenOffset(DevicePtr below, const test::Words& words) {
  auto layer = MakeFilter(OffsetSpec(), words, std::move(below));
  if (!layer.ok()) return layer.status();
  return OpenNow(*layer);
}

TEST_CASE("offset is a window that keeps the rest of the disk as it is") {
  for (bool suspend : {false, true}) {
    auto array = std::make_shared<ArrayDevice>(100'000);
    array->bytes.assign(100'000, 'x');
    array->holes.assign(100'000, false);
    array->suspend = suspend;
    auto device = OpenOffset(array, {{"offset", "1000"}, {"range", "70000"}});
    REQUIRE(device.ok());
    CHECK((*device)->size() == 70'000);
    CHECK(OnLoop(RandomOperations, device->get(), 7).message() == "");
    CHECK(array->bytes.substr(0, 1000) == std::string(1000, 'x'));
    CHECK(array->bytes.substr(71'000) == std::string(29'000, 'x'));
    CHECK(array->bytes.substr(1000, 70'000) != std::string(70'000, 'x'));
  }
}

Task<absl::Status> ReadAt(Device* device, uint64_t offset, std::span<char> into) {
  co_return co_await device->Read({}, offset, into);
}

TEST_CASE("without a range offset goes to the end; nothing lies behind it") {
  auto array = std::make_shared<ArrayDevice>(5000);
  array->bytes.back() = 'z';
  auto device = OpenOffset(array, {{"offset", "4000"}});
  REQUIRE(device.ok());
  CHECK((*device)->size() == 1000);
  char byte = 0;
  CHECK(OnLoop(ReadAt, device->get(), 999, std::span(&byte, 1)).ok());
  CHECK(byte == 'z');
  CHECK(ErrnoOf(OnLoop(ReadAt, device->get(), 1000, std::span(&byte, 1))) == EINVAL);
}

TEST_CASE("offset refuses what is not there") {
  auto array = std::make_shared<ArrayDevice>(5000);
  CHECK(OpenOffset(array, {{"offset", "5000"}})->get()->size() == 0);
  auto beyond = OpenOffset(array, {{"offset", "5001"}});
  CHECK(beyond.status().message().find("(5001)") != std::string::npos);
  auto too_long = OpenOffset(array, {{"offset", "1000"}, {"range", "4001"}});
  CHECK(too_long.status().message().find("(1000+4001)") != std::string::npos);
  Facts facts = test::ArrayFacts(8192);
  facts.block.minimum = 512;
  auto unaligned = OpenOffset(std::make_shared<ArrayDevice>(facts), {{"offset", "100"}});
  CHECK(unaligned.status().message().find("512") != std::string::npos);
}

TEST_CASE("offset lends bytes from the right place, and passes shared buffers on") {
  Facts facts = test::ArrayFacts(5000);
  facts.shared_buffers_ok = true;
  auto array = std::make_shared<LendingArray>(facts);
  array->bytes[1010] = 'b';
  auto device = OpenOffset(array, {{"offset", "1000"}});
  REQUIRE(device.ok());
  CHECK((*device)->facts().shared_buffers_ok);
  Loan loan;
  REQUIRE((*device)->Borrow({}, 10, 20, &loan));
  REQUIRE(loan.spans().size() == 1);
  CHECK(loan.spans()[0].iov_base == array->bytes.data() + 1010);
  CHECK_FALSE((*device)->Borrow({}, 3990, 20, &loan));
}

Task<std::vector<Extent>> ExtentsAt(Device* device, uint64_t offset, uint64_t length, size_t max) {
  ExtentList list(offset, length, max);
  BLK_CHECK((co_await device->Extents({}, kBaseAllocation, &list)).ok());
  co_return list.extents();
}

TEST_CASE("offset moves extents, and asks for no more than are wanted") {
  auto array = std::make_shared<ArrayDevice>(5000);
  for (int at = 1500; at < 1700; ++at) array->holes[at] = false;
  auto device = OpenOffset(array, {{"offset", "1000"}, {"range", "2000"}});
  REQUIRE(device.ok());
  CHECK(OnLoop(ExtentsAt, device->get(), 100, 1900, 9) ==
        std::vector<Extent>{{400, kExtentHoleZero}, {200, kExtentData}, {1300, kExtentHoleZero}});
  CHECK(OnLoop(ExtentsAt, device->get(), 100, 1900, 1) ==
        std::vector<Extent>{{400, kExtentHoleZero}});
}

}  // namespace
}  // namespace blk
