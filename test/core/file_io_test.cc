#include "src/core/file_io.h"

#include <doctest/doctest.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/statfs.h>

#include <fstream>
#include <iterator>
#include <memory>
#include <numeric>
#include <vector>

#include "src/core/loop.h"
#include "src/core/scope.h"
#include "test/support/full_disk.h"
#include "test/temporary.h"

namespace blk {
namespace {

int OpenForTest(const std::string& path, int flags) {
  int fd = open(path.c_str(), flags | O_CREAT | O_CLOEXEC, 0600);
  REQUIRE(fd != -1);
  return fd;
}

std::string Bytes(size_t count, uint32_t seed) {
  std::string bytes(count, 0);
  for (char& byte : bytes) {
    seed = seed * 1664525 + 1013904223;
    byte = static_cast<char>(seed >> 24);
  }
  return bytes;
}

// Writes and reads back pieces of many sizes, in line and offloaded, some with odd addresses.
Task<absl::Status> RoundTrips(FileIo* io, uint64_t step) {
  uint64_t offset = 0;
  for (uint64_t size : {1 * step, 3 * step, 64 * step, 4096 * step}) {
    std::string data = Bytes(size + 1, static_cast<uint32_t>(size));
    std::string_view from = std::string_view(data).substr(1);
    BLK_CO_RETURN_IF_ERROR(co_await io->WriteAt(offset, from));
    std::string got(size + 1, 'x');
    BLK_CO_RETURN_IF_ERROR(co_await io->ReadAt(offset, std::span(got).subspan(1)));
    if (got.substr(1) != from) co_return absl::DataLossError(absl::StrCat("size ", size));
    offset += size;
  }
  BLK_CO_RETURN_IF_ERROR(co_await io->WriteZeroesAt(step, offset - 2 * step));
  std::string got(offset, 'x');
  BLK_CO_RETURN_IF_ERROR(co_await io->ReadAt(0, got));
  uint64_t zeroes = std::count(got.begin() + step, got.end() - step, 0);
  if (zeroes != offset - 2 * step || got[0] != Bytes(step + 1, step)[1])
    co_return absl::DataLossError("zeroes");
  co_return co_await io->Sync();
}

absl::Status RunRoundTrips(FileIo* io, uint64_t step) {
  LoopPool pool(1);
  return pool.RunMain(RoundTrips(io, step));
}

TEST_CASE("what was written is read back: disk, memory, O_DIRECT, cold") {
  TemporaryDirectory dir;
  FileIo disk(OpenForTest(dir / "disk", O_RDWR), "disk");
  CHECK(RunRoundTrips(&disk, 1).message() == "");
  FileIo memory(memfd_create("test", MFD_CLOEXEC), "memory");
  CHECK(RunRoundTrips(&memory, 1).message() == "");
  int fd = open((dir / "direct").c_str(), O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600);
  if (fd == -1) {
    MESSAGE("skipped O_DIRECT: the file system of /tmp has none");
    return;
  }
  FileIo direct(fd, "direct");
  CHECK(direct.alignment_bytes() == 4096);
  CHECK(RunRoundTrips(&direct, direct.alignment_bytes()).message() == "");
}

Task<absl::Status> ReadOne(FileIo* io, uint64_t offset, size_t bytes, std::string* got) {
  got->assign(bytes, 'x');
  co_return co_await io->ReadAt(offset, *got);
}

Task<absl::Status> WriteOne(FileIo* io, uint64_t offset, std::string_view bytes) {
  co_return co_await io->WriteAt(offset, bytes);
}

TEST_CASE("pages that are not in memory come from the disk") {
  TemporaryDirectory dir;
  std::string content = Bytes(3 << 20, 5);
  std::string path = dir.Write("file", content);
  FileIo io(OpenForTest(path, O_RDWR), "file");
  REQUIRE(fsync(io.fd()) == 0);
  for (uint64_t offset : {uint64_t{0}, uint64_t{1 << 20}, uint64_t{12345}}) {
    REQUIRE(posix_fadvise(io.fd(), 0, 0, POSIX_FADV_DONTNEED) == 0);
    std::string got;
    LoopPool pool(1);
    REQUIRE(pool.RunMain(ReadOne(&io, offset, 1 << 20, &got)).ok());
    CHECK(got == content.substr(offset, 1 << 20));
  }
}

TEST_CASE("what is cached is known, once reads have worked, and what is not is not claimed") {
  TemporaryDirectory dir;
  std::string path = dir.Write("file", Bytes(100'000, 6));
  FileIo io(OpenForTest(path, O_RDWR), path);
  REQUIRE(fsync(io.fd()) == 0);
  CHECK(!io.IsCached(0, 1));  // nobody knows yet
  std::string got;
  LoopPool pool(1), again(1);
  REQUIRE(pool.RunMain(ReadOne(&io, 0, 100'000, &got)).ok());
  CHECK(io.IsCached(0, 100'000));
  CHECK(io.IsCached(99'999, 1));
  CHECK(!io.IsCached(99'999, 2));  // the page is there, the byte is not
  CHECK(!io.IsCached(uint64_t{1} << 62, 1));
  CHECK(!io.IsCached(UINT64_MAX - 5, 10));
  struct statfs system;
  if (fstatfs(io.fd(), &system) == 0 && system.f_type == TMPFS_MAGIC) return;  // keeps its pages
  REQUIRE(posix_fadvise(io.fd(), 0, 0, POSIX_FADV_DONTNEED) == 0);
  CHECK(!io.IsCached(0, 100'000));
  CHECK(!io.IsCached(50'000, 1));
  REQUIRE(again.RunMain(ReadOne(&io, 50'000, 1, &got)).ok());
  CHECK(io.IsCached(50'000, 1));
}

TEST_CASE("a write that is made in steps is one write") {
  for (size_t step : {size_t{0}, size_t{4096}, size_t{16} << 10, SIZE_MAX}) {
    TemporaryDirectory dir;
    FileIo io(OpenForTest(dir / "file", O_RDWR), "file");
    if (step) io.SetWriteStep(step);
    std::string content = Bytes(400'000, 7);
    for (auto [offset, bytes] :
         {std::pair<size_t, size_t>{0, 400'000}, {65'000, 300'001}, {65'536, 65'536}, {1, 4095}}) {
      std::string data = Bytes(bytes, static_cast<uint32_t>(bytes));
      content.replace(offset, bytes, data);
      LoopPool pool(1);
      REQUIRE(pool.RunMain(WriteOne(&io, offset, data)).ok());
    }
    std::string got;
    LoopPool pool(1);
    REQUIRE(pool.RunMain(ReadOne(&io, 0, content.size(), &got)).ok());
    CHECK(got == content);
  }
}

TEST_CASE("a file that became shorter gives EIO, never made-up bytes") {
  TemporaryDirectory dir;
  std::string path = dir.Write("file", Bytes(10000, 1));
  FileIo io(OpenForTest(path, O_RDWR), path);
  REQUIRE(truncate(path.c_str(), 5000) == 0);
  std::string got;
  for (auto [offset, bytes] : {std::pair{4096, 4096}, {5000, 1}, {8192, 512}}) {
    LoopPool pool(1);
    absl::Status status = pool.RunMain(ReadOne(&io, offset, bytes, &got));
    CHECK(ErrnoOf(status) == EIO);
    CHECK(status.message() == path + " ends at or before " +
                                  std::to_string(std::max(5000, offset)) +
                                  ": it was made shorter while in use");
  }
  LoopPool pool(1);
  CHECK(pool.RunMain(ReadOne(&io, 4999, 1, &got)).ok());
}

TEST_CASE("writing where there is no room is ENOSPC") {
  int fd = open("/dev/full", O_RDWR | O_CLOEXEC);  // not a file, but it answers like a full disk
  REQUIRE(fd != -1);
  FileIo io(fd, "/dev/full");
  LoopPool pool(1);
  absl::Status status = pool.RunMain(WriteOne(&io, 0, "some bytes"));
  CHECK(ErrnoOf(status) == ENOSPC);
  CHECK(status.message() == "cannot write /dev/full at 0: No space left on device");
}

// Writes its own blocks of a file, in a stride; every tenth beyond what the file may grow to.
Task<void> WriteStride(FileIo* io, int writer, int writers, int* failures) {
  constexpr int kBlocks = 200, kBytes = 1000;
  for (int i = 0; i < kBlocks; ++i) {
    const bool too_far = i % 10 == 9;
    std::string block(kBytes, static_cast<char>('a' + writer));
    const uint64_t offset = (i * writers + writer) * kBytes + (too_far ? 100'000'000 : 0);
    absl::Status status = co_await io->WriteAt(offset, block);
    CHECK(ErrnoOf(status) == (too_far ? EFBIG : 0));
    if (too_far) CHECK(status.message().find(std::to_string(offset)) != std::string::npos);
    *failures += !status.ok();
  }
}
Task<int> WriteStrides(FileIo* io, LoopPool* pool) {
  constexpr int kWriters = 16;
  int failures[kWriters] = {};
  TaskScope scope;
  for (int i = 0; i < kWriters; ++i)
    scope.Spawn(RunOn(pool->Next(), WriteStride(io, i, kWriters, &failures[i])));
  co_await scope.Join();
  co_return std::accumulate(std::begin(failures), std::end(failures), 0);
}

TEST_CASE("writers on many loops take turns, and each gets its own result") {
  TemporaryDirectory dir;
  std::string path = dir.Write("file", "");
  {
    test::FullDisk full(50'000'000);
    FileIo io(OpenForTest(path, O_RDWR), path);
    LoopPool pool(4);
    CHECK(pool.RunMain(WriteStrides(&io, &pool)) == 16 * 20);
  }
  std::ifstream file(path);
  std::string text((std::istreambuf_iterator<char>(file)), {});
  REQUIRE(text.size() >= 16 * 190 * 1000);
  for (size_t at = 0; at < text.size(); ++at) {
    const size_t block = at / 1000;
    if (text[at] == (block / 16 % 10 == 9 ? '\0' : static_cast<char>('a' + block % 16))) continue;
    FAIL("a wrong byte at ", at);
  }
}

Task<void> SyncOne(FileIo* io, int* failures) {
  if (!(co_await io->Sync()).ok()) ++*failures;
}
Task<int> SyncMany(FileIo* io, int count) {
  int failures = 0;
  TaskScope scope;
  for (int i = 0; i < count; ++i) scope.Spawn(SyncOne(io, &failures));
  co_await scope.Join();
  co_return failures;
}

TEST_CASE("a failed sync is remembered: for all callers, for ever, also by the next who opens it") {
  TemporaryDirectory dir;
  std::string path = dir.Write("file", "content"), other = dir.Write("other", "content");
  {
    FileIo io(OpenForTest(path, O_RDWR), path);
    LoopPool first(1), second(1), third(1);
    CHECK(first.RunMain(SyncMany(&io, 5)) == 0);
    io.FailNextSyncForTest(ENOSPC);
    CHECK(second.RunMain(SyncMany(&io, 5)) == 5);
    CHECK(third.RunMain(SyncMany(&io, 1)) == 1);
  }
  LoopPool pool(1), other_pool(1);
  FileIo again(OpenForTest(path, O_RDWR), path);
  CHECK(pool.RunMain(SyncMany(&again, 1)) == 1);
  FileIo unharmed(OpenForTest(other, O_RDWR), other);
  CHECK(other_pool.RunMain(SyncMany(&unharmed, 1)) == 0);
}

Task<absl::StatusOr<std::vector<Extent>>> ExtentsOf(FileIo* io, uint64_t offset, uint64_t length,
                                                    bool only_first) {
  ExtentList list(offset, length);
  BLK_CO_RETURN_IF_ERROR(co_await io->FindExtents(&list, only_first));
  co_return list.extents();
}

using ExtentVector = std::vector<Extent>;
ExtentVector FindExtents(FileIo* io, uint64_t offset, uint64_t length, bool only_first = false) {
  LoopPool pool(1);
  auto extents = pool.RunMain(ExtentsOf(io, offset, length, only_first));
  REQUIRE(extents.ok());
  return *extents;
}

TEST_CASE("extents: holes, data, what lies beyond the end, and what was remembered") {
  constexpr uint64_t kMiB = 1 << 20;
  TemporaryDirectory dir;
  FileIo io(OpenForTest(dir.WriteSparse("file", 10 * kMiB), O_RDWR), "file");
  std::string data = Bytes(kMiB, 9);
  for (uint64_t at : {2, 3, 6})
    REQUIRE(pwrite(io.fd(), data.data(), kMiB, static_cast<off_t>(at * kMiB)) == ssize_t{1 << 20});
  const Extent hole{2 * kMiB, kExtentHoleZero}, run{2 * kMiB, kExtentData};
  CHECK(FindExtents(&io, 0, 10 * kMiB) ==
        ExtentVector{hole, run, hole, {kMiB, kExtentData}, {3 * kMiB, kExtentHoleZero}});
  CHECK(FindExtents(&io, 0, 10 * kMiB, true) == ExtentVector{hole});
  CHECK(FindExtents(&io, 3 * kMiB, 7 * kMiB, true) == ExtentVector{{kMiB, kExtentData}});
  // From what is remembered of 6 MiB, and past the end of the file.
  CHECK(FindExtents(&io, 6 * kMiB + 1, 100) == ExtentVector{{100, kExtentData}});
  CHECK(FindExtents(&io, 9 * kMiB, 2 * kMiB) ==
        ExtentVector{{kMiB, kExtentHoleZero}, {kMiB, kExtentData}});
  CHECK(FindExtents(&io, 10 * kMiB, 5, true) == ExtentVector{{5, kExtentData}});
}

Task<int> Punch(FileIo* io, uint64_t offset, uint64_t length) {
  co_return co_await io->Allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length);
}

TEST_CASE("a hole that is made where data was remembered is seen") {
  TemporaryDirectory dir;
  FileIo io(OpenForTest(dir.Write("file", Bytes(1 << 20, 2)), O_RDWR), "file");
  CHECK(FindExtents(&io, 0, 1 << 20) == ExtentVector{{1 << 20, kExtentData}});
  LoopPool pool(1);
  REQUIRE(pool.RunMain(Punch(&io, 0, 1 << 19)) == 0);
  CHECK(FindExtents(&io, 0, 1 << 20) ==
        ExtentVector{{1 << 19, kExtentHoleZero}, {1 << 19, kExtentData}});
}

}  // namespace
}  // namespace blk
