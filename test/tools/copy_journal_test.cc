#include "src/tools/copy_journal.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <random>
#include <thread>
#include <vector>

#include "src/core/loop.h"
#include "test/support/array_device.h"
#include "test/temporary.h"

using namespace blk;

namespace {

constexpr uint64_t kDisk = 1'000'000;
const CopyIdentity kIdentity{"a", "size 1000000", "b", "inode 7"};

Task<absl::Status> WriteDown(CopyJournal* journal, Device* target, uint64_t offset,
                             uint64_t length) {
  journal->Done(offset, length);
  co_return co_await journal->Checkpoint(target);
}
Task<absl::Status> Removed(CopyJournal* journal) { co_return co_await journal->Remove(); }

absl::Status Checkpoint(CopyJournal& journal, Device& target, uint64_t offset, uint64_t length) {
  LoopPool pool(1);
  return pool.RunMain(WriteDown(&journal, &target, offset, length));
}

class FlushFails final : public test::ArrayDevice {
 public:
  using ArrayDevice::ArrayDevice;

 protected:
  Task<absl::Status> DoFlush(const Call&) override { return failure; }
};

// A journal of three checkpoints, and its bytes.
std::string Sample(const std::string& path) {
  test::ArrayDevice target(kDisk);
  auto journal = CopyJournal::Open(path, kIdentity, kDisk);
  REQUIRE(journal.ok());
  CHECK(Checkpoint(**journal, target, 0, 4096).ok());
  CHECK(Checkpoint(**journal, target, 8192, 100).ok());
  CHECK(Checkpoint(**journal, target, 999'999, 1).ok());
  CHECK(target.flushes == 3);
  return ReadWholeFile(path);
}

using Ranges = std::map<uint64_t, uint64_t>;
const Ranges kSampleRanges{{0, 4096}, {8192, 8292}, {999'999, 1'000'000}};

}  // namespace

TEST_CASE("ranges merge, and their gaps are found") {
  std::mt19937_64 random(1);
  for (int round = 0; round < 200; ++round) {
    RangeSet set;
    std::string model(64, '.');
    for (int i = 0; i < 8; ++i) {
      uint64_t from = random() % 64, to = from + random() % (65 - from);
      set.Add(from, to);
      for (uint64_t at = from; at < to; ++at) model[at] = 'x';
      CHECK(set.bytes() == static_cast<uint64_t>(std::count(model.begin(), model.end(), 'x')));
    }
    std::string gaps(64, 'x');
    uint64_t at = 0, from = 0, to = 0;
    for (; set.NextGap(at, 64, &from, &to); at = to) {
      CHECK(from < to);
      for (uint64_t i = from; i < to; ++i) gaps[i] = '.';
    }
    CHECK(gaps == model);
    for (auto next = set.ranges().begin(); next != set.ranges().end(); ++next)
      if (std::next(next) != set.ranges().end()) CHECK(next->second < std::next(next)->first);
  }
}

TEST_CASE("a journal tells the next run what is finished, and goes in the end") {
  TemporaryDirectory folder;
  Sample(folder / "j");
  auto journal = CopyJournal::Open(folder / "j", kIdentity, kDisk);
  REQUIRE(journal.ok());
  CHECK((*journal)->finished().ranges() == kSampleRanges);
  // It goes on where it was.
  test::ArrayDevice target(kDisk);
  CHECK(Checkpoint(**journal, target, 4096, 4096).ok());
  journal->reset();
  auto again = CopyJournal::Open(folder / "j", kIdentity, kDisk);
  REQUIRE(again.ok());
  CHECK((*again)->finished().ranges() == Ranges{{0, 8292}, {999'999, 1'000'000}});
  LoopPool pool(1);
  CHECK(pool.RunMain(Removed(again->get())).ok());
  CHECK(access((folder / "j").c_str(), F_OK) != 0);
}

TEST_CASE("what the target could not flush is not written down") {
  TemporaryDirectory folder;
  {
    auto journal = CopyJournal::Open(folder / "j", kIdentity, kDisk);
    REQUIRE(journal.ok());
    FlushFails target(kDisk);
    target.failure = ErrnoErrorAsIs(EIO, "lost");
    CHECK(ErrnoOf(Checkpoint(**journal, target, 0, 4096)) == EIO);
    // Linux says once that bytes are lost; the next flush succeeds, and says nothing of these.
    target.failure = absl::OkStatus();
    CHECK(ErrnoOf(Checkpoint(**journal, target, 5000, 1)) == EIO);
  }
  auto journal = CopyJournal::Open(folder / "j", kIdentity, kDisk);
  REQUIRE(journal.ok());
  CHECK((*journal)->finished().empty());
  test::ArrayDevice target(kDisk);
  CHECK(Checkpoint(**journal, target, 5000, 1).ok());
}

TEST_CASE("a journal that ends anywhere promises no more than was written") {
  TemporaryDirectory folder;
  const std::string whole = Sample(folder / "j");
  const size_t header = whole.size() - 3 * 24;
  for (size_t size = 0; size <= whole.size(); ++size) {
    CAPTURE(size);
    ParsedJournal parsed = ParseCopyJournal(std::string_view(whole).substr(0, size), kDisk);
    using Kind = ParsedJournal::Kind;
    CHECK(parsed.kind == (size == 0 ? Kind::kFresh : size < header ? Kind::kDamaged : Kind::kGood));
    CHECK(parsed.finished.ranges().size() == (size < header ? 0 : (size - header) / 24));
  }
}

TEST_CASE("a journal with any bit turned over is not believed") {
  TemporaryDirectory folder;
  const std::string whole = Sample(folder / "j");
  for (size_t bit = 0; bit < whole.size() * 8; ++bit) {
    CAPTURE(bit);
    std::string bytes = whole;
    bytes[bit / 8] ^= static_cast<char>(1 << bit % 8);
    ParsedJournal parsed = ParseCopyJournal(bytes, kDisk);
    CHECK(parsed.kind ==
          (bit < 16 * 8 ? ParsedJournal::Kind::kForeign : ParsedJournal::Kind::kDamaged));
    CHECK(parsed.finished.empty());
  }
  std::string changed = whole;
  changed[whole.size() - 30] ^= 1;
  auto journal = CopyJournal::Open(folder.Write("damaged", changed), kIdentity, kDisk);
  REQUIRE(journal.ok());
  CHECK((*journal)->was_damaged());
  CHECK((*journal)->finished().empty());
}

TEST_CASE("records that were left out, doubled or swapped are not believed") {
  TemporaryDirectory folder;
  const std::string whole = Sample(folder / "j");
  const std::string header = whole.substr(0, whole.size() - 72);
  const std::string one = whole.substr(header.size(), 24),
                    two = whole.substr(header.size() + 24, 24),
                    three = whole.substr(header.size() + 48);
  for (const std::string& records : {two, one + three, one + one, two + one, one + three + two})
    CHECK(ParseCopyJournal(header + records, kDisk).kind == ParsedJournal::Kind::kDamaged);
  // Nor is one of a larger disk.
  CHECK(ParseCopyJournal(whole, kDisk - 1).kind == ParsedJournal::Kind::kDamaged);
}

TEST_CASE("another copy's journal is refused, somebody's file is left alone") {
  TemporaryDirectory folder;
  Sample(folder / "j");
  for (int i = 0; i < 4; ++i) {
    CopyIdentity other = kIdentity;
    (i == 0   ? other.source
     : i == 1 ? other.source_state
     : i == 2 ? other.target
              : other.target_state) += "!";
    CHECK(ErrnoOf(CopyJournal::Open(folder / "j", other, kDisk).status()) == ESTALE);
  }
  const std::string precious = folder.Write("precious", "a letter");
  CHECK(ErrnoOf(CopyJournal::Open(precious, kIdentity, kDisk).status()) == EINVAL);
  CHECK(ReadWholeFile(precious) == "a letter");
}

// Copies that start, and end, at once: each opens the journal, holds it for a moment, and removes
// it as a finished copy does, so that a name may stand for another file from one moment to the
// next.
TEST_CASE("of copies that start at once with one journal, one at a time has it") {
  TemporaryDirectory folder;
  const std::string path = folder / "j";
  std::atomic<int> holders{0}, most{0}, had{0}, refused{0}, wrong{0};
  const auto copy = [&] {
    for (int i = 0; i < 60; ++i) {
      auto journal = CopyJournal::Open(path, kIdentity, kDisk);
      if (!journal.ok()) {
        ++(ErrnoOf(journal.status()) == EBUSY ? refused : wrong);
        continue;
      }
      const int now = ++holders;
      for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
      }
      ++had;
      std::this_thread::yield();
      // The file that has the name is the one that is locked: another would be locked by nobody.
      const int fd = open(path.c_str(), O_RDWR | O_CLOEXEC);
      if (fd < 0 || flock(fd, LOCK_EX | LOCK_NB) == 0) ++wrong;
      close(fd);
      --holders;
      if (i % 3 == 0 && !RunApart((*journal)->Remove()).ok()) ++wrong;
    }
  };
  {
    std::vector<std::jthread> copies;
    for (int i = 0; i < 4; ++i) copies.emplace_back(copy);
  }
  CHECK(most == 1);
  CHECK(wrong == 0);
  CHECK(had + refused == 4 * 60);
  CHECK(had > 0);
}

TEST_CASE("two copies cannot use one journal at a time") {
  TemporaryDirectory folder;
  auto first = CopyJournal::Open(folder / "j", kIdentity, kDisk);
  REQUIRE(first.ok());
  CHECK(ErrnoOf(CopyJournal::Open(folder / "j", kIdentity, kDisk).status()) == EBUSY);
  first->reset();
  CHECK(CopyJournal::Open(folder / "j", kIdentity, kDisk).ok());
}
