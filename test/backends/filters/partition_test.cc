#include <doctest/doctest.h>

#include <cstring>

#include "src/backends/filters/partition_table.h"
#include "test/support/array_device.h"
#include "test/support/layers.h"

namespace blk {

const Spec& PartitionSpec();

namespace {

template <typename T>
void Put(std::string* disk, size_t at, T value) {
  std::memcpy(disk->data() + at, &value, sizeof value);
}

struct Entry {
  uint8_t type;
  uint32_t start, sectors;
};

void PutMbr(std::string* disk, uint64_t sector, std::vector<Entry> entries) {
  for (size_t i = 0; i < entries.size(); ++i) {
    size_t at = sector * 512 + 446 + 16 * i;
    Put<uint8_t>(disk, at + 4, entries[i].type);
    Put<uint32_t>(disk, at + 8, entries[i].start);
    Put<uint32_t>(disk, at + 12, entries[i].sectors);
  }
  Put<uint16_t>(disk, sector * 512 + 510, 0xaa55);
}

void PutGptHeader(std::string* disk, uint64_t sector, uint64_t lba, uint64_t entries_lba) {
  size_t at = lba * sector;
  disk->replace(at, 8, "EFI PART");
  Put<uint32_t>(disk, at + 8, 0x10000);
  Put<uint32_t>(disk, at + 12, 92);
  Put<uint64_t>(disk, at + 24, lba);
  Put<uint64_t>(disk, at + 72, entries_lba);
  Put<uint32_t>(disk, at + 80, 4);
  Put<uint32_t>(disk, at + 84, 128);
  Put<uint32_t>(disk, at + 88, Crc32(disk->data() + entries_lba * sector, 512));
  Put<uint32_t>(disk, at + 16, 0);
  Put<uint32_t>(disk, at + 16, Crc32(disk->data() + at, 92));
}

// Partitions 1 ("boot", sectors 6 and 7) and 3 ("rööt", sector 8) of 40 sectors.
std::string GptDisk(uint64_t sector) {
  std::string disk(40 * sector, '\0');
  PutMbr(&disk, 0, {{0xee, 1, 39}});
  for (uint64_t lba : {uint64_t{2}, uint64_t{38}}) {
    size_t at = lba * sector;
    disk[at] = disk[at + 256] = 'T';
    Put<uint64_t>(&disk, at + 32, 6);
    Put<uint64_t>(&disk, at + 40, 7);
    disk.replace(at + 56, 8, std::string("b\0o\0o\0t\0", 8));
    Put<uint64_t>(&disk, at + 256 + 32, 8);
    Put<uint64_t>(&disk, at + 256 + 40, 8);
    disk.replace(at + 256 + 56, 8, std::string("r\0\xf6\0\xf6\0t\0", 8));
  }
  PutGptHeader(&disk, sector, 1, 2);
  PutGptHeader(&disk, sector, 39, 38);
  return disk;
}

absl::StatusOr<Partition> Find(const std::string& disk, const PartitionRequest& request) {
  KnownBytes known;
  for (int pieces = 0; pieces < kTablePiecesMax; ++pieces) {
    PartitionSearch search = FindPartition(disk.size(), request, known);
    if (!search.wanted) return search.partition;
    known[search.wanted->offset] = disk.substr(search.wanted->offset, search.wanted->length);
    REQUIRE(known[search.wanted->offset].size() == search.wanted->length);
  }
  return absl::InternalError("too many pieces");
}

// "OFFSET+LENGTH" in units of `unit`, or the errno.
std::string Found(const std::string& disk, const PartitionRequest& request, uint64_t unit = 512) {
  auto partition = Find(disk, request);
  if (!partition.ok()) return absl::StrCat("errno ", ErrnoOf(partition.status()));
  return absl::StrCat(partition->offset / unit, "+", partition->length / unit);
}
const std::string kNone = absl::StrCat("errno ", ENOENT);
const std::string kBroken = absl::StrCat("errno ", EINVAL);

TEST_CASE("the checksum is that of the standard") { CHECK(Crc32("123456789", 9) == 0xcbf43926); }

TEST_CASE("MBR: primary and logical partitions") {
  std::string disk(100 * 512, '\0');
  PutMbr(&disk, 0, {{0x83, 1, 4}, {}, {0x05, 10, 60}, {0x82, 80, 20}});
  PutMbr(&disk, 10, {{0x83, 1, 3}, {0x05, 20, 10}});
  PutMbr(&disk, 30, {{0x83, 2, 5}, {0x05, 40, 10}});  // links count from the first record
  PutMbr(&disk, 50, {{0x83, 1, 1}});
  CHECK(Found(disk, {.number = 1}) == "1+4");
  CHECK(Found(disk, {.number = 2}) == kNone);
  CHECK(Found(disk, {.number = 3}) == kNone);  // the extended partition itself
  CHECK(Found(disk, {.number = 4}) == "80+20");
  CHECK(Found(disk, {.number = 5}) == "11+3");
  CHECK(Found(disk, {.number = 6}) == "32+5");
  CHECK(Found(disk, {.number = 7}) == "51+1");
  CHECK(Found(disk, {.number = 8}) == kNone);
  CHECK(Found(disk, {.name = "boot"}) == kNone);
  disk.resize(99 * 512);
  CHECK(Found(disk, {.number = 4}) == kBroken);  // one sector too short
}

TEST_CASE("MBR of a disk with large sectors, when told so") {
  std::string disk(20 * 4096, '\0');
  PutMbr(&disk, 0, {{0x83, 1, 4}, {0x05, 6, 10}});
  PutMbr(&disk, 6 * 8, {{0x83, 1, 3}});
  CHECK(Found(disk, {.number = 1, .sector_bytes = 4096}, 4096) == "1+4");
  CHECK(Found(disk, {.number = 5, .sector_bytes = 4096}, 4096) == "7+3");
}

TEST_CASE("a chain of logical partitions that is a loop ends, as one that leads outside") {
  std::string disk(100 * 512, '\0');
  PutMbr(&disk, 0, {{0x05, 10, 60}});
  PutMbr(&disk, 10, {{}, {0x05, 20, 10}});
  PutMbr(&disk, 30, {{}, {0x05, 20, 10}});
  CHECK(Found(disk, {.number = 5}) == kBroken);
  PutMbr(&disk, 30, {{}, {0x05, 90, 10}});
  CHECK(Found(disk, {.number = 5}) == kBroken);
  PutMbr(&disk, 30, {{}, {0x05, UINT32_MAX, 10}});
  CHECK(Found(disk, {.number = 5}) == kBroken);
}

TEST_CASE("GPT: by number and by name, with small and large sectors") {
  for (uint64_t sector : {512, 4096}) {
    std::string disk = GptDisk(sector);
    CHECK(Found(disk, {.number = 1}, sector) == "6+2");
    CHECK(Found(disk, {.number = 2}, sector) == kNone);
    CHECK(Found(disk, {.number = 3}, sector) == "8+1");
    CHECK(Found(disk, {.number = 5}, sector) == kNone);
    CHECK(Found(disk, {.name = "boot"}, sector) == "6+2");
    CHECK(Found(disk, {.name = "r\xc3\xb6\xc3\xb6t"}, sector) == "8+1");
    CHECK(Found(disk, {.name = "boo"}, sector) == kNone);
  }
}

TEST_CASE("GPT: the backup serves when the primary is damaged, and only then") {
  for (uint64_t sector : {512, 4096}) {
    std::string good = GptDisk(sector);
    for (size_t damaged : {sector, sector + 24, sector + 60, 2 * sector, 2 * sector + 300}) {
      std::string disk = good;
      disk[damaged] ^= 1;
      INFO("damaged at " << damaged);
      CHECK(Found(disk, {.number = 3}, sector) == "8+1");
      disk[39 * sector + 40] ^= 1;

      CHECK(Found(disk, {.number = 3}, sector) == kBroken);
    }
    std::string other = good;  // a backup that says something else
    Put<uint64_t>(&other, 38 * sector + 256 + 40, 9);
    PutGptHeader(&other, sector, 39, 38);
    CHECK(Found(other, {.number = 3}, sector) == "8+1");
    other[sector + 70] ^= 1;
    CHECK(Found(other, {.number = 3}, sector) == "8+2");
    other.replace(0, sector, sector, '\0');  // the MBR is gone too
    CHECK(Found(other, {.number = 3}, sector) == "8+2");
  }
}

TEST_CASE("an MBR that was written over a GPT is believed, whatever is left at the end") {
  std::string disk = GptDisk(512);
  disk.replace(0, 6 * 512, 6 * 512, '\0');
  PutMbr(&disk, 0, {{0x83, 20, 3}});
  CHECK(Found(disk, {.number = 1}) == "20+3");
}

TEST_CASE("GPT entries that lie") {
  std::string disk = GptDisk(512);
  for (uint64_t last : {uint64_t{5}, uint64_t{40}, UINT64_MAX}) {
    Put<uint64_t>(&disk, 2 * 512 + 40, last);
    PutGptHeader(&disk, 512, 1, 2);
    CHECK(Found(disk, {.number = 1}) == kBroken);
  }
  std::string twice = GptDisk(512);
  twice.replace(2 * 512 + 256 + 56, 8, std::string("b\0o\0o\0t\0", 8));
  PutGptHeader(&twice, 512, 1, 2);
  CHECK(Found(twice, {.name = "boot"}) == kBroken);
}

TEST_CASE("disks without a table") {
  CHECK(Found(std::string(511, '\0'), {.number = 1}) == kBroken);
  CHECK(Found(std::string(512, '\0'), {.number = 1}) == kBroken);
  CHECK(Found(std::string(1 << 20, '\0'), {.number = 1}) == kBroken);
}

Task<absl::Status> ReadAll(Device* device, std::string* into) {
  co_return co_await device->Read({}, 0, *into);
}

TEST_CASE("the filter serves the partition, on a disk with large blocks too") {
  for (uint32_t block : {1, 4096}) {
    Facts facts = test::ArrayFacts(40 * 4096);
    facts.block.minimum = block;
    auto array = std::make_shared<test::ArrayDevice>(facts);
    array->bytes = GptDisk(4096);
    array->bytes[8 * 4096] = '!';
    array->suspend = true;
    auto layer = test::MakeFilter(PartitionSpec(), {{"partition", "3"}}, array);
    REQUIRE(layer.ok());
    auto device = test::OpenNow(*layer);
    REQUIRE(device.ok());
    CHECK((*device)->size() == 4096);
    std::string content(4096, 'x');
    CHECK(test::OnLoop(ReadAll, device->get(), &content).ok());
    CHECK(content == array->bytes.substr(8 * 4096, 4096));
    auto missing = test::MakeFilter(PartitionSpec(), {{"partition", "nothing"}}, array);
    CHECK(ErrnoOf(test::OpenNow(*missing).status()) == ENOENT);
  }
  auto array = std::make_shared<test::ArrayDevice>(512);
  CHECK_FALSE(test::MakeFilter(PartitionSpec(), {{"partition", "0"}}, array).ok());
  CHECK_FALSE(test::MakeFilter(PartitionSpec(), {}, array).ok());
}

}  // namespace
}  // namespace blk
