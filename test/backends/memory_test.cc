#include <doctest/doctest.h>

#include <string>

#include "src/core/trace.h"
#include "test/backends/try_device.h"

namespace blk {

const Spec& MemorySpec();

namespace {

constexpr uint64_t kMiB = 1 << 20;

absl::StatusOr<LayerPtr> MakeMemory(const Words& words) { return MakeReady(MemorySpec(), words); }

TEST_CASE("a memory disk is what was done to it, whatever its allocator") {
  for (std::string allocator : {"sparse", "malloc", "zstd", "zstd,level=9", "dedup"}) {
    CAPTURE(allocator);
    auto layer = MakeMemory({{"size", "300001"}, {"allocator", allocator}});
    REQUIRE(layer.status().message() == "");
    CHECK(Use(*layer, RandomOperations, 7).message() == "");
    CHECK(Use(*layer, RandomOperations, 8).message() == "");  // another client, the same disk
  }
}

// Requests so large that they leave the loop.
Task<absl::Status> LargeRequests(Device* device) {
  std::string content(4 * kMiB, '\0');
  for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i / 4096 * 31 + i % 7);
  BLK_CO_RETURN_IF_ERROR(co_await device->Write({}, 12345, content));
  BLK_CO_RETURN_IF_ERROR(co_await device->Zero({}, 12345 + kMiB, 2 * kMiB));
  content.replace(kMiB, 2 * kMiB, 2 * kMiB, '\0');
  std::string found(content.size(), 'x');
  BLK_CO_RETURN_IF_ERROR(co_await device->Read({}, 12345, found));
  if (found != content) co_return absl::DataLossError("read differs");
  BLK_CO_RETURN_IF_ERROR(co_await device->Trim({}, 0, device->size()));
  ExtentList list(0, device->size());
  BLK_CO_RETURN_IF_ERROR(co_await device->Extents({}, kBaseAllocation, &list));
  if (list.extents() != std::vector<Extent>{{device->size(), kExtentHoleZero}})
    co_return absl::DataLossError("the trim left something");
  co_return absl::OkStatus();
}

TEST_CASE("large requests on the largest disk") {
  for (std::string allocator : {"sparse", "zstd", "dedup"}) {
    CAPTURE(allocator);
    auto layer = MakeMemory({{"size", "9223372036854775807"}, {"allocator", allocator}});
    REQUIRE(layer.status().message() == "");
    CHECK(Use(*layer, LargeRequests).message() == "");
  }
}

Task<std::string> Lent(Device* device) {
  BLK_CHECK((co_await device->Write({}, 2 * kMiB - 3, std::string_view("abcdef"))).ok());
  Loan loan;
  std::string text;
  if (!device->Borrow({}, 2 * kMiB - 5, 10, &loan)) co_return "nothing";
  for (const iovec& part : loan.spans())
    text.append(static_cast<const char*>(part.iov_base), part.iov_len);
  co_return text;
}

TEST_CASE("bytes in place are lent, packed ones are not") {
  const std::string wanted("\0\0abcdef\0\0", 10);
  CHECK(Use(*MakeMemory({{"size", "64M"}}), Lent) == wanted);
  CHECK(Use(*MakeMemory({{"size", "64M"}, {"allocator", "malloc"}}), Lent) == wanted);
  CHECK(Use(*MakeMemory({{"size", "64M"}, {"allocator", "zstd"}}), Lent) == "nothing");
  CHECK(Use(*MakeMemory({{"size", "64M"}, {"allocator", "dedup"}}), Lent) == "nothing");
}

Task<absl::Status> EqualPages(Device* device) {
  co_return co_await device->Write({}, 8192, std::string(8192, 'x'));
}
Task<absl::Status> Stop(LayerPtr layer) { co_return co_await layer->Stop(); }

TEST_CASE("a line at the end tells what it took") {
  auto layer = MakeMemory({{"size", "1M"}, {"allocator", "dedup"}});
  REQUIRE(layer.ok());
  CHECK(Use(*layer, EqualPages).ok());
  std::string log;
  SetVerbose(true);
  SetLogSink([&log](std::string_view line) { log += line; });
  CHECK(LoopPool(1).RunMain(Stop(*layer)).ok());
  SetLogSink(nullptr);
  SetVerbose(false);
  CHECK(log.find("memory: 8192 bytes allocated, 4096 bytes stored, ratio 2.00") !=
        std::string::npos);
}

TEST_CASE("memory disks that cannot be made say why") {
  CHECK(MakeMemory({}).status().message().find("size") != std::string::npos);
  CHECK(MakeMemory({{"size", "1M"}, {"allocator", "sparce"}})
            .status()
            .message()
            .find("allocator=sparce: unknown allocator; use sparse") != std::string::npos);
  CHECK(MakeMemory({{"size", "7E"}, {"allocator", "malloc"}})
            .status()
            .message()
            .find("use allocator=sparse") != std::string::npos);
}

}  // namespace
}  // namespace blk
