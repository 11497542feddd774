#include <doctest/doctest.h>

#include "test/backends/try_device.h"
#include "test/temporary.h"

namespace blk {

const Spec& SplitSpec();

namespace {

absl::StatusOr<LayerPtr> MakeSplit(const std::vector<std::string>& paths) {
  Words words;
  for (const std::string& path : paths) words.emplace_back("file", path);
  return MakeReady(SplitSpec(), words);
}

Task<std::string> ReadAll(Device* device) {
  std::string content(device->size(), 'x');
  BLK_CHECK((co_await device->Read({}, 0, content)).ok());
  co_return content;
}

TEST_CASE("parts follow one another, empty ones too") {
  TemporaryDirectory dir;
  auto layer = MakeSplit({dir.Write("a", "one "), dir.Write("b", ""), dir.Write("c", "t"),
                          dir.Write("d", "wo"), dir.Write("e", "")});
  REQUIRE(layer.status().message() == "");
  CHECK(Use(*layer, ReadAll) == "one two");
  auto nothing = MakeSplit({dir / "b"});
  REQUIRE(nothing.ok());
  CHECK(Use(*nothing, ReadAll) == "");
}

TEST_CASE("many parts are what was done to the whole") {
  TemporaryDirectory dir;
  std::vector<std::string> paths;
  for (uint64_t bytes : {1, 4096, 0, 511, 65536, 3, 3, 30000, 100000})
    paths.push_back(dir.WriteSparse("part" + std::to_string(paths.size()), bytes));
  auto layer = MakeSplit(paths);
  REQUIRE(layer.ok());
  CHECK(Use(*layer, RandomOperations, 11).message() == "");
  // And each part holds its share.
  std::string joined;
  for (const std::string& path : paths) joined += ReadWholeFile(path);
  CHECK(Use(*layer, ReadAll) == joined);
  CHECK(joined != std::string(joined.size(), 0));
}

Task<std::vector<Extent>> ExtentsOf(Device* device, uint32_t flags) {
  ExtentList list(10, device->size() - 10);
  BLK_CHECK((co_await device->Extents({.flags = flags}, kBaseAllocation, &list)).ok());
  co_return list.extents();
}

TEST_CASE("holes of the parts are holes of the whole") {
  TemporaryDirectory dir;
  auto layer = MakeSplit({dir.WriteSparse("a", 65536), dir.WriteSparse("b", 4096),
                          dir.Write("c", std::string(8192, 'x'))});
  REQUIRE(layer.ok());
  CHECK(Use(*layer, ExtentsOf, 0) ==
        std::vector<Extent>{{65536 - 10 + 4096, kExtentHoleZero}, {8192, kExtentData}});
  CHECK(Use(*layer, ExtentsOf, kRequestOne) == std::vector<Extent>{{65536 - 10, kExtentHoleZero}});
}

TEST_CASE("a part that cannot be served names itself") {
  TemporaryDirectory dir;
  std::string good = dir.Write("a", "x");
  CHECK(MakeSplit({good, dir / "no"}).status().message().find(dir / "no") != std::string::npos);
  CHECK(ErrnoOf(MakeSplit({good, dir.path()}).status()) == EISDIR);
  CHECK(MakeSplit({}).status().message().find("file") != std::string::npos);
}

Task<absl::Status> WriteOverAll(Device* device) {
  std::string data(device->size(), 'y');
  co_return co_await device->Write({}, 0, data);
}

TEST_CASE("a part that was made shorter: the read fails, the other part is served") {
  TemporaryDirectory dir;
  std::string first = dir.Write("a", std::string(5000, 'x')), second = dir.Write("b", "yy");
  auto layer = MakeSplit({first, second});
  REQUIRE(layer.ok());
  REQUIRE(truncate(first.c_str(), 100) == 0);
  auto read = [](Device* device) -> Task<absl::Status> {  // captures nothing
    std::string got(6, 0);
    co_return co_await device->Read({}, 4996, got);
  };
  auto read_second = [](Device* device) -> Task<std::string> {
    std::string got(2, 0);
    BLK_CHECK((co_await device->Read({}, 5000, got)).ok());
    co_return got;
  };
  CHECK(ErrnoOf(Use<absl::Status>(*layer, +read)) == EIO);
  CHECK(Use<std::string>(*layer, +read_second) == "yy");
  CHECK(Use(*layer, WriteOverAll).ok());
  CHECK(ReadWholeFile(first) == std::string(5000, 'y'));
}

}  // namespace
}  // namespace blk
