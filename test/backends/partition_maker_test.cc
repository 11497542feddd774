#include "src/backends/partition_maker.h"

#include <doctest/doctest.h>

#include <cerrno>
#include <cstring>

#include "src/backends/filters/partition_table.h"
#include "test/support/layers.h"

namespace blk {
namespace {

// A device of `size` bytes that nobody reads.
class Blank final : public Device {
 public:
  explicit Blank(uint64_t size) : Device(FactsOf(size)) {}

 protected:
  Task<absl::Status> DoRead(const Call&, uint64_t, std::span<char> into) override {
    std::memset(into.data(), 'x', into.size());
    return absl::OkStatus();
  }

 private:
  static Facts FactsOf(uint64_t size) {
    Facts facts;
    facts.size = size;
    return facts;
  }
};

std::vector<NewPartition> Partitions(std::vector<uint64_t> sizes) {
  std::vector<NewPartition> partitions;
  for (uint64_t size : sizes) {
    NewPartition partition;
    partition.device = std::make_shared<Blank>(size);
    partition.name = absl::StrCat("part", partitions.size() + 1);
    partition.type_guid = ParseGuid("0FC63DAF-8483-4772-8E79-3D69D8477DE4").value();
    partitions.push_back(std::move(partition));
  }
  return partitions;
}

// Where the partition filter finds partition `number`.
absl::StatusOr<Partition> Find(const RegionList& list, uint32_t number) {
  KnownBytes known;
  for (;;) {
    PartitionSearch search = FindPartition(list.size(), {.number = number}, known);
    if (!search.wanted) return search.partition;
    std::string bytes(search.wanted->length, '\0');
    for (const Region& region : list.regions()) {
      for (uint64_t i = 0; i < region.bytes.size(); ++i) {
        const uint64_t at = region.start + i;
        if (at >= search.wanted->offset && at < search.wanted->offset + bytes.size())
          bytes[at - search.wanted->offset] = region.bytes[i];
      }
    }
    known[search.wanted->offset] = std::move(bytes);
  }
}

TEST_CASE("partition tables: what is made is found again") {
  const std::vector<uint64_t> sizes = {512, 1, 100000, 4 << 20, 513, 7777777};
  for (bool gpt : {false, true}) {
    CAPTURE(gpt);
    auto list = gpt ? MakeGptDisk(Partitions(sizes)) : MakeMbrDisk(Partitions(sizes));
    REQUIRE(list.ok());
    for (size_t i = 0; i < sizes.size(); ++i) {
      CAPTURE(i);
      // The fourth of an MBR is the extended partition around the others.
      const uint32_t number = static_cast<uint32_t>(gpt || i < 3 ? i + 1 : i + 2);
      auto found = Find(*list, number);
      REQUIRE(found.ok());
      CHECK(found->length == (sizes[i] + 511) / 512 * 512);
      CHECK(found->offset % (1 << 20) == 0);
    }
  }
}

TEST_CASE("partition tables: an empty partition, and a disk beyond an MBR") {
  CHECK_FALSE(MakeMbrDisk(Partitions({0})).ok());
  CHECK_FALSE(MakeGptDisk(Partitions({512, 0})).ok());
  CHECK(ErrnoOf(MakeMbrDisk(Partitions({3ull << 40})).status()) == EFBIG);
  auto large = MakeGptDisk(Partitions({3ull << 40, 1ull << 60}));
  REQUIRE(large.ok());
  CHECK(Find(*large, 2).value().length == 1ull << 60);
}

TEST_CASE("partition tables: more than 128 entries") {
  auto list = MakeGptDisk(Partitions(std::vector<uint64_t>(150, 4096)));
  REQUIRE(list.ok());
  CHECK(Find(*list, 150).value().length == 4096);
}

TEST_CASE("GUIDs as text") {
  CHECK(ParseGuid("0fc63daf-8483-4772-8e79-3d69d8477de4").value()[0] == 0xaf);
  for (const char* text :
       {"", "0FC63DAF", "0FC63DAF-8483-4772-8E79-3D69D8477DE",
        "0FC63DAF-8483-4772-8E79-3D69D8477DE4A", "0FC63DAF8483-4772-8E79-3D69D8477DE4-",
        "GFC63DAF-8483-4772-8E79-3D69D8477DE4"}) {
    CAPTURE(text);
    CHECK_FALSE(ParseGuid(text).ok());
  }
}

}  // namespace
}  // namespace blk
