#pragma once
// The contract of src/core/device.h as checks that any device must pass, against an oracle of plain
// bytes. A check writes what it finds into a Report and goes on.
//
// Threads: checks run on one loop of the trial's pool; CheckConcurrentWrites uses all its loops.
#include <atomic>
#include <mutex>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "src/core/device.h"
#include "src/core/loop.h"

namespace blk::test {

// What a write does, where it may do anything at all.
enum class Writes {
  kKeep,     // what was written is read back
  kForget,   // succeeds and changes nothing
  kCompare,  // succeeds if it would change nothing, else EIO
  kNoSpace,  // ENOSPC
};

struct Traits {
  Writes writes = Writes::kKeep;
  bool lossy = false;  // fails on purpose now and then: only what succeeds is compared
  bool slow = false;   // waits on purpose: few operations
  // What NO_HOLE keeps allocated is shown as a hole all the same: files have blocks that are
  // reserved but not written, and SEEK_HOLE finds those.
  bool hides_reserved = false;
};

// Collects what was wrong. Any thread.
class Report {
 public:
  void Fail(std::string what);
  int failures() const { return failures_.load(); }
  std::string text() const;  // the first few failures, a line each

 private:
  std::atomic<int> failures_{0};
  mutable std::mutex mutex_;
  std::vector<std::string> first_;  // guarded by mutex_
};

// [begin, end) of a device, and what it should hold.
struct Window {
  uint64_t begin = 0, end = 0;
  std::string bytes;
  uint64_t size() const { return end - begin; }
};

struct Trial {
  LoopPool* pool;
  Device* device;
  Traits traits;
  uint64_t seed;
  Report* report;

  bool writable() const { return !device->facts().read_only; }
  uint64_t granule() const { return device->facts().block.minimum; }
  // How often a loop should go round.
  int rounds(int wanted) const { return traits.slow ? 1 + wanted / 20 : wanted; }

  void Expect(bool good, std::string_view what, uint64_t offset = 0, uint64_t length = 0);
  void ExpectOk(const absl::Status& status, std::string_view what, uint64_t offset = 0,
                uint64_t length = 0);
  void ExpectErrno(const absl::Status& status, int errno_value, std::string_view what,
                   uint64_t offset = 0, uint64_t length = 0);
};

// The parts of the disk that are looked at: all of it if it is small, else the beginning, a piece
// in the middle and the end. They are read first, in one go, which makes the oracle.
Task<std::vector<Window>> ReadWindows(Trial* trial);
// Reads the window again, in requests as large as they may be.
Task<absl::Status> ReadWindow(Device* device, Window* window);
// The device still holds what the window says, and its extents agree.
Task<void> CompareWindow(Trial* trial, const Window* window, std::string_view after);

void CheckFacts(Trial* trial);
Task<void> CheckReads(Trial* trial, const Window* window);
Task<void> CheckExtents(Trial* trial, const Window* window);
// Beyond the end, not aligned, cancelled, late, read-only, and of length 0.
Task<void> CheckRefusals(Trial* trial);

// What the traits say of writes. The windows follow what is written.
Task<void> CheckWrites(Trial* trial, std::vector<Window>* windows);
// Random requests from every loop at once, on ranges that do not overlap. For Writes::kKeep.
Task<void> CheckConcurrentWrites(Trial* trial, Window* window);
// `other` is a second open of the same export.
Task<void> CheckTwoOpens(Trial* trial, Device* other, Window* window);

}  // namespace blk::test
