// The backends that hold no data: what they serve, accept and refuse, each through its Spec as a
// command line would make it.
#include <doctest/doctest.h>

#include <cerrno>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/backends/stack.h"
#include "src/core/loop.h"

namespace blk {
namespace {

constexpr uint64_t kSizeMax = (uint64_t{1} << 63) - 1;

absl::StatusOr<LayerPtr> TryMakeLayer(const std::string& spec) {
  return MakeStack(AllSpecs(), spec);
}

// These backends never wait: every task is done when it is made.
template <typename T>
T Now(Task<T> task) {
  REQUIRE(task.ready());
  return std::move(task).Take();
}

DevicePtr Open(const std::string& spec, OpenArgs args = {}) {
  absl::StatusOr<LayerPtr> layer = TryMakeLayer(spec);
  REQUIRE_MESSAGE(layer.ok(), layer.status().ToString());
  absl::StatusOr<DevicePtr> device = Now((*layer)->Open(std::move(args)));
  REQUIRE_MESSAGE(device.ok(), device.status().ToString());
  return *device;
}

std::string ReadBytes(Device& device, uint64_t offset, size_t length) {
  std::string bytes(length, '?');
  const absl::Status status = Now(device.Read({}, offset, {bytes.data(), bytes.size()}));
  REQUIRE_MESSAGE(status.ok(), status.ToString());
  return bytes;
}

int WriteErrno(Device& device, uint64_t offset, const std::string& bytes) {
  return ErrnoOf(Now(device.Write({}, offset, {bytes.data(), bytes.size()})));
}
int ZeroErrno(Device& device, uint64_t offset, uint64_t length, uint32_t flags = 0) {
  return ErrnoOf(Now(device.Zero({.flags = flags}, offset, length)));
}
int TrimErrno(Device& device, uint64_t offset, uint64_t length) {
  return ErrnoOf(Now(device.Trim({}, offset, length)));
}

ExtentList ExtentsOf(Device& device, uint64_t offset, uint64_t length, uint32_t flags = 0,
                     size_t extents_max = SIZE_MAX) {
  ExtentList list(offset, length, extents_max);
  const absl::Status status = Now(device.Extents({.flags = flags}, kBaseAllocation, &list));
  REQUIRE_MESSAGE(status.ok(), status.ToString());
  REQUIRE_FALSE(list.empty());
  return list;
}

TEST_CASE("sparse-random accepts its own content and refuses every other") {
  for (const char* more : {"", ",random-content=true"}) {
    const std::string parameters = absl::StrCat("percent=40,runlength=64K", more, ")");
    const std::string spec = absl::StrCat("sparse-random:8M(seed=7,", parameters);
    const DevicePtr disk = Open(spec);
    const std::string all = ReadBytes(*disk, 0, disk->size());
    CHECK(ReadBytes(*Open(spec), 0, disk->size()) == all);
    CHECK(WriteErrno(*disk, 0, all) == 0);
    CHECK(WriteErrno(*disk, 4097, all.substr(4097, 100000)) == 0);

    // Extents tell the truth, and zero and trim work exactly in the holes.
    uint64_t at = 0, holes = 0;
    const ExtentList extents = ExtentsOf(*disk, 0, disk->size());
    for (const Extent& extent : extents.extents()) {
      const bool zero = all.find_first_not_of('\0', at) >= at + extent.length;
      REQUIRE(zero == (extent.flags == kExtentHoleZero));
      REQUIRE((zero || extent.flags == kExtentData));
      for (uint32_t flags : {uint32_t{0}, kFastZero, kNoHole, kFua}) {
        REQUIRE(ZeroErrno(*disk, at, extent.length, flags) == (zero ? 0 : EIO));
      }
      REQUIRE(TrimErrno(*disk, at, extent.length) == (zero ? 0 : EIO));
      holes += zero;
      at += extent.length;
    }
    CHECK(at == disk->size());
    CHECK(holes > 20);

    std::string changed = all;
    changed[5'000'000] ^= 0x10;
    const absl::Status refused =
        Now(disk->Write({}, 4'999'999, std::string_view(changed).substr(4'999'999, 10)));
    CHECK(ErrnoOf(refused) == EIO);
    CHECK(refused.message().find("offset 5000000 ") != std::string::npos);
    const std::string other_seed = absl::StrCat("sparse-random:8M(seed=8,", parameters);
    CHECK(WriteErrno(*Open(other_seed), 0, all) == EIO);
  }
}

TEST_CASE("sparse-random tells extents in pieces, and one when one is enough") {
  const DevicePtr disk = Open("sparse-random:9223372036854775807(seed=7,percent=50,runlength=8K)");
  CHECK(ExtentsOf(*disk, 0, kSizeMax, kRequestOne).size() == 1);
  CHECK(ExtentsOf(*disk, 0, kSizeMax, 0, 77).size() == 77);
  const ExtentList piece = ExtentsOf(*disk, 0, kSizeMax);
  CHECK(piece.size() > 1000);
  CHECK(piece.size() < 1'000'000);
  // The next piece begins with the other kind, or runs would have been torn.
  const ExtentList next = ExtentsOf(*disk, piece.next(), kSizeMax - piece.next(), kRequestOne);
  CHECK(next.front().flags != piece.extents().back().flags);
  const ExtentList end = ExtentsOf(*disk, kSizeMax - 1, 1);
  CHECK(end.front().length == 1);
}

TEST_CASE("the parameters of sparse-random and random") {
  for (const char* wrong :
       {"sparse-random", "random", "sparse-random:1M(percent=101)", "sparse-random:1M(percent=-1)",
        "sparse-random:1M(runlength=0)", "sparse-random:1M(seed=-1)", "random:1M(seed=x)",
        "random:1M(percent=5)", "pattern", "full", "ones", "zero:1M"}) {
    CHECK_MESSAGE(!TryMakeLayer(wrong).ok(), wrong);
  }
  CHECK(TryMakeLayer("sparse-random:1M(percent=12.5)").ok());

  // Without a seed all disks of this process share one, so that a copy onto itself in one process
  // is right.
  const auto read = [](const char* spec) { return ReadBytes(*Open(spec), 0, 65536); };
  CHECK(read("random:64K") == read("random:64K"));
  CHECK(read("random:64K(seed=3)") == read("random:64K(seed=3)"));
  const char* full = "sparse-random:64K(percent=100)";
  CHECK(read(full) == read(full));
  const char* full_of_seed = "sparse-random:64K(percent=100,seed=3)";
  CHECK(read(full_of_seed) == read(full_of_seed));
}

TEST_CASE("random accepts its own content and refuses zeroes") {
  const DevicePtr disk = Open("random:1M(seed=9)");
  const std::string all = ReadBytes(*disk, 0, disk->size());
  CHECK(WriteErrno(*disk, 0, all) == 0);
  CHECK(WriteErrno(*disk, 1, all) == ENOSPC);  // past the end: the door
  for (uint64_t offset : {0, 1, 100'000}) {
    CHECK(WriteErrno(*disk, offset, all.substr(offset + 1, 1000)) == EIO);
    CHECK(ZeroErrno(*disk, offset, 4096) == EIO);
    CHECK(TrimErrno(*disk, offset, 4096) == EIO);
  }
  const size_t zero = all.find('\0');
  CHECK(ZeroErrno(*disk, zero, 1) == 0);
  CHECK(ExtentsOf(*disk, 0, disk->size()).extents() ==
        std::vector<Extent>{{disk->size(), kExtentData}});
  CHECK(ReadBytes(*Open("random:9223372036854775807(seed=9)"), 0, 4096) == all.substr(0, 4096));
}

TEST_CASE("pattern holds offsets, up to the last byte there can be") {
  const DevicePtr disk = Open("pattern:9223372036854775807");
  CHECK(ReadBytes(*disk, 0, 16) == std::string("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x08", 16));
  CHECK(ReadBytes(*disk, kSizeMax - 9, 9) == "\xff\xf0\x7f\xff\xff\xff\xff\xff\xff");
  CHECK(WriteErrno(*disk, 3, ReadBytes(*disk, 3, 5000)) == 0);
  CHECK(WriteErrno(*disk, 3, ReadBytes(*disk, 4, 5000)) == EIO);
  const std::string all = ReadBytes(*disk, 0, 64);
  for (uint64_t offset = 0; offset < 40; ++offset) {
    for (uint64_t length = 1; length < 24; ++length) {
      const bool zero = all.find_first_not_of('\0', offset) >= offset + length;
      REQUIRE(ZeroErrno(*disk, offset, length) == (zero ? 0 : EIO));
      REQUIRE(TrimErrno(*disk, offset, length) == (zero ? 0 : EIO));
    }
  }
  CHECK(ZeroErrno(*disk, 0, kSizeMax) == EIO);
}

TEST_CASE("null reads as zeroes, takes everything and lends zeroes") {
  const DevicePtr disk = Open("null:9223372036854775807");
  CHECK(WriteErrno(*disk, 77, "data") == 0);
  CHECK(ReadBytes(*disk, 70, 100) == std::string(100, '\0'));
  CHECK(ZeroErrno(*disk, 0, kSizeMax, kFastZero) == 0);
  CHECK(TrimErrno(*disk, 0, kSizeMax) == 0);
  CHECK(ExtentsOf(*disk, 5, kSizeMax - 5).extents() ==
        std::vector<Extent>{{kSizeMax - 5, kExtentHoleZero}});
  for (uint64_t length : {uint64_t{1}, uint64_t{4096}, uint64_t{5'000'000}}) {
    Loan loan;
    REQUIRE(disk->Borrow({}, 3, length, &loan));
    uint64_t lent = 0;
    for (const iovec& part : loan.spans()) {
      const auto* bytes = static_cast<const char*>(part.iov_base);
      REQUIRE(std::string_view(bytes, part.iov_len).find_first_not_of('\0') == std::string::npos);
      lent += part.iov_len;
    }
    CHECK(lent == length);
  }
  CHECK(Open("null")->size() == 0);
}

TEST_CASE("zero has no bytes, full no space, ones no zeroes") {
  const DevicePtr zero = Open("zero");
  CHECK(zero->size() == 0);
  CHECK(ReadBytes(*zero, 0, 0) == "");
  CHECK(WriteErrno(*zero, 0, "") == EPERM);
  char byte;
  CHECK(ErrnoOf(Now(zero->Read({}, 0, {&byte, 1}))) == EINVAL);

  const DevicePtr full = Open("full:1M");
  CHECK(ReadBytes(*full, 5, 5000) == std::string(5000, '\0'));
  CHECK(WriteErrno(*full, 0, "x") == ENOSPC);
  CHECK(ZeroErrno(*full, 0, 512) == ENOSPC);
  CHECK(TrimErrno(*full, 0, 512) == ENOSPC);
  CHECK(ExtentsOf(*full, 0, 1 << 20).front().flags == kExtentHoleZero);

  const DevicePtr ones = Open("ones:1M");
  CHECK(ReadBytes(*ones, 5, 5000) == std::string(5000, '\xff'));
  CHECK(WriteErrno(*ones, 0, "x") == 0);
  CHECK(ZeroErrno(*ones, 0, 512) == 0);
  CHECK(ReadBytes(*ones, 0, 2) == "\xff\xff");
  CHECK(ExtentsOf(*ones, 0, 1 << 20).front().flags == kExtentData);
  CHECK(ReadBytes(*Open("ones:1M(byte=0x55)"), 9, 2) == "UU");
  CHECK(ExtentsOf(*Open("ones:1M(byte=0)"), 0, 99).front().flags == kExtentZero);
  CHECK_FALSE(TryMakeLayer("ones:1M(byte=256)").ok());
}

TEST_CASE("info reflects the export name and the client's address") {
  CHECK(ReadBytes(*Open("info", {.export_name = "hello"}), 0, 5) == "hello");
  CHECK(Open("info")->size() == 0);
  const DevicePtr decoded = Open("info:base64exportname", {.export_name = "AAH/aGk="});
  CHECK(ReadBytes(*decoded, 0, decoded->size()) == std::string("\0\1\xffhi", 5));
  Peer peer;
  peer.text = "127.0.0.1:5";
  const DevicePtr address = Open("info:address", {.export_name = "", .peer = &peer});
  CHECK(ReadBytes(*address, 0, address->size()) == peer.text);
  CHECK(WriteErrno(*address, 0, "x") == EPERM);

  const auto open_errno = [](const char* spec, const char* name) {
    absl::StatusOr<LayerPtr> layer = TryMakeLayer(spec);
    return ErrnoOf(Now((*layer)->Open({.export_name = name})).status());
  };
  CHECK(open_errno("info:base64exportname", "bad*") == ENOENT);
  CHECK(open_errno("info:address", "") == ENOTSUP);
  CHECK_FALSE(TryMakeLayer("info:tiem").ok());
}

// The microseconds that a clock device tells.
uint64_t ReadClock(Device& device) {
  REQUIRE(device.size() == 12);
  const std::string bytes = ReadBytes(device, 0, 12);
  uint64_t seconds;
  uint32_t rest;
  std::memcpy(&seconds, bytes.data(), 8);
  std::memcpy(&rest, bytes.data() + 8, 4);
  REQUIRE(__builtin_bswap32(rest) < 1'000'000);
  return __builtin_bswap64(seconds) * 1'000'000 + __builtin_bswap32(rest);
}

Task<absl::Status> CheckClocks() {
  const uint64_t now_us = static_cast<uint64_t>(time(nullptr)) * 1'000'000;
  const uint64_t told_us = ReadClock(*Open("info:time"));
  CHECK(told_us >= now_us);
  CHECK(told_us < now_us + 60'000'000);

  absl::StatusOr<LayerPtr> uptime = TryMakeLayer("info:uptime");
  BLK_CO_RETURN_IF_ERROR(co_await (*uptime)->Start());
  absl::StatusOr<LayerPtr> connected = TryMakeLayer("info:conntime");
  const DevicePtr first = *Now((*connected)->Open({}));
  BLK_CO_RETURN_IF_ERROR(co_await Loop::Current()->Sleep(20'000'000));
  const DevicePtr second = *Now((*connected)->Open({}));
  const uint64_t first_us = ReadClock(*first);
  const uint64_t second_us = ReadClock(*second);
  CHECK(first_us >= second_us + 19'000);
  CHECK(ReadClock(*(*Now((*uptime)->Open({})))) >= first_us);
  CHECK(first_us < 60'000'000);
  co_return absl::OkStatus();
}

TEST_CASE("info tells the time of day, since the start and since the connection") {
  LoopPool pool(1);
  CHECK(pool.RunMain(CheckClocks()).ok());
}

TEST_CASE("what the synthetic disks say of themselves") {
  struct Row {
    const char* spec;
    bool read_only, flush, trim, fast_zero, extents, multi_conn;
    Support fua;
  };
  // As nbdkit's plugins of these names say it (nbdinfo --json), but for what blk does better:
  // sparse-random has fast zeroes, pattern can be written.
  const Row rows[] = {
      {"sparse-random:1M", false, true, true, true, true, true, Support::kNative},
      {"random:1M", false, false, true, false, false, true, Support::kNone},
      {"pattern:1M", false, false, true, false, false, true, Support::kNone},
      {"null:1M", false, true, true, true, true, true, Support::kNative},
      {"zero", true, false, false, false, false, true, Support::kNone},
      {"ones:1M", false, true, true, true, true, true, Support::kNative},
      {"full:1M", false, false, true, true, true, true, Support::kNone},
      {"info", true, false, false, false, false, true, Support::kNone},
      {"info:time", true, false, false, false, false, false, Support::kNone},
  };
  for (const Row& row : rows) {
    CAPTURE(row.spec);
    const DevicePtr device = Open(row.spec);
    const Facts& facts = device->facts();
    if (std::string_view(row.spec).ends_with(":1M")) CHECK(device->size() == 1 << 20);
    CHECK(facts.read_only == row.read_only);
    CHECK(facts.flush == row.flush);
    CHECK(facts.trim == row.trim);
    CHECK(facts.fast_zero == row.fast_zero);
    CHECK(facts.extents == row.extents);
    CHECK(facts.multi_conn == row.multi_conn);
    CHECK(facts.fua == row.fua);
    CHECK(facts.cache == Support::kNative);
    CHECK_FALSE(facts.rotational);
  }
}

}  // namespace
}  // namespace blk
