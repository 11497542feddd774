#include "src/backends/script/parse.h"

#include <doctest/doctest.h>

#include <cerrno>

#include "src/backends/script/method.h"

namespace blk::script {
namespace {

ExtentList ListFor(uint64_t start, uint64_t length) { return ExtentList(start, length); }

TEST_CASE("script parse: sizes, and what is none") {
  CHECK(ReadSize("1M\n").value() == 1 << 20);
  CHECK(ReadSize(" 512 \n").value() == 512);
  for (const char* text : {"", "\n", "junk", "1M 2M", "-1"}) {
    CAPTURE(text);
    CHECK(ErrnoOf(ReadSize(text).status()) == EINVAL);
  }
}

TEST_CASE("script parse: block sizes are three, and make sense") {
  auto sizes = ReadBlockSizes("512 4K 1M\n");
  REQUIRE(sizes.ok());
  REQUIRE(sizes->has_value());
  CHECK((*sizes)->minimum == 512);
  CHECK((*sizes)->preferred == 4096);
  CHECK((*sizes)->maximum == 1 << 20);
  CHECK_FALSE(ReadBlockSizes("0 0 0").value().has_value());
  CHECK((*ReadBlockSizes("1 4096 4294967295").value()).maximum == limits::kRequestBytesMax);
  for (const char* text : {"", "1 2", "3 4096 8192", "1 100 4096", "1 4096 512", "512 4096 5000",
                           "1 4K 5G", "128K 128K 128K", "a b c"}) {
    CAPTURE(text);
    CHECK(ErrnoOf(ReadBlockSizes(text).status()) == EINVAL);
  }
}

TEST_CASE("script parse: exports in each of the ways to print them") {
  auto names = ReadExports("a\nb c\n").value();
  REQUIRE(names.size() == 2);
  CHECK(names[1].name == "b c");
  CHECK(ReadExports("NAMES\na\n").value().size() == 1);
  CHECK(ReadExports("").value().empty());
  CHECK(ReadExports("NAMES\n").value().empty());
  CHECK(ReadExports("\n").value()[0].name.empty());
  auto pairs = ReadExports("INTERLEAVED\na\nfirst\nb\nsecond\n").value();
  REQUIRE(pairs.size() == 2);
  CHECK(pairs[1].name == "b");
  CHECK(pairs[1].description == "second");
  auto halves = ReadExports("NAMES+DESCRIPTIONS\na\nb\nfirst\nsecond").value();
  REQUIRE(halves.size() == 2);
  CHECK(halves[0].description == "first");
  CHECK(halves[1].name == "b");
  CHECK(ReadExports("INTERLEAVED\na\n").value()[0].description.empty());
  CHECK(ReadExports("NAMES+DESCRIPTIONS\na\nb\nfirst\n").value()[0].description == "first");
}

TEST_CASE("script parse: extents from before the offset to beyond the end") {
  ExtentList list = ListFor(1000, 3000);
  REQUIRE(ReadExtents("0 2K hole,zero\n2K 1M\n", &list).ok());
  REQUIRE(list.size() == 2);
  CHECK(list.extents()[0] == Extent{1048, kExtentHoleZero});
  CHECK(list.extents()[1] == Extent{1952, kExtentData});
  CHECK(list.reach() == (1 << 20) + 2048);
  ExtentList numbers = ListFor(0, 10);
  REQUIRE(ReadExtents("0 5 3\n5 5 0\n", &numbers).ok());
  CHECK(numbers.extents()[0].flags == kExtentHoleZero);
}

TEST_CASE("script parse: extents that are none, with a gap, or that begin too late") {
  for (const char* text : {"", "0 10\n", "0 5\n6 5\n", "5 5 what\n", "50 100\n", "0 x\n",
                           "0 1 2 3\n", "0\n", "0 100 4\n", "0 20\n30 100\n"}) {
    CAPTURE(text);
    ExtentList list = ListFor(10, 90);
    CHECK(ErrnoOf(ReadExtents(text, &list)) == EINVAL);
  }
}

TEST_CASE("script parse: thread models and kinds of support") {
  CHECK(ReadThreadModel("parallel\n").value() == ThreadModel::kParallel);
  CHECK(ReadThreadModel("serialize_connections").value() == ThreadModel::kSerializeConnections);
  CHECK_FALSE(ReadThreadModel("PARALLEL").ok());
  CHECK(ReadSupport("emulate\n").value() == Support::kEmulate);
  CHECK_FALSE(ReadSupport("yes").ok());
}

TEST_CASE("script errors: a name that is known, one that only looks so, none") {
  absl::Status status = ReportedError("s", "pread", "ENOSPC no room\n");
  CHECK(ErrnoOf(status) == ENOSPC);
  CHECK(status.message() == "s: pread: no room");
  CHECK(ErrnoOf(ReportedError("s", "pread", "eperm")) == EPERM);
  status = ReportedError("s", "pread", "EINVALID thing");
  CHECK(ErrnoOf(status) == EIO);
  CHECK(status.message() == "s: pread: EINVALID thing");
  CHECK(ErrnoOf(ReportedError("s", "pread", "")) == EIO);
}

}  // namespace
}  // namespace blk::script
