#pragma once
// SimDevice: a disk with a volatile write cache. It completes late and out of order, fails with the
// errnos it was told, may tear what it failed to write, and forgets at Crash() what was not
// flushed, sector by sector. One loop.
#include <string>
#include <vector>

#include "src/core/device.h"
#include "test/sim/sim_loop.h"

namespace blk::sim {

inline constexpr uint64_t kSectorBytes = 512;

struct DeviceFaults {
  int64_t delay_ns_max = 3'000'000;
  uint64_t read_fails_one_in = 0;  // 0: never
  uint64_t write_fails_one_in = 0;
  uint64_t flush_fails_one_in = 0;
  // A failed flush throws away what it should have written, and every later one fails too.
  bool flush_failure_forgets = false;
  // The same, but later ones succeed: as files under Linux do.
  bool flush_forgets_once = false;
  // Bugs, to try the model with.
  bool flush_lies = false;   // says OK and flushes nothing
  bool flush_early = false;  // covers only what was durable already when one write is under way
  bool write_lies = false;   // says OK to a failed write
};

class SimDevice final : public Device {
 public:
  SimDevice(SimLoop* loop, Facts facts, DeviceFaults faults);

  // What a power failure leaves: all that was flushed, and any part of the rest. From now on
  // everything fails with EIO.
  std::string Crash();
  const std::string& now() const { return current_; }
  // Sets the content, flushed and all.
  void Fill(std::string bytes);

  int failures() const { return failures_; }  // operations that were failed on purpose
  // The same for questions about extents, which may be done without.
  int extents_failures() const { return extents_failures_; }
  bool crashed() const { return crashed_; }

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override;
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override;
  Task<absl::Status> DoFlush(const Call& call) override;
  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override;
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override;
  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override;

 private:
  // A sector as it was after one of the writes since the last flush.
  struct Dirty {
    uint64_t offset;
    std::string bytes;
  };

  // Writes bytes (or zeroes, when `from` is null) to the cache; with FUA to the disk too.
  Task<absl::Status> Change(const Call* call, uint64_t offset, const char* from, uint64_t length);
  void Apply(uint64_t offset, const char* from, uint64_t length);
  void MakeDurable(uint64_t offset, uint64_t length);
  bool Fails(uint64_t one_in);
  absl::Status Failure();

  SimLoop* const loop_;
  const DeviceFaults faults_;
  std::string durable_, current_;
  std::vector<Dirty> dirty_;  // oldest first
  int failures_ = 0, extents_failures_ = 0;
  bool crashed_ = false, flush_broken_ = false;
  uint64_t under_way_ = 0;
};

}  // namespace blk::sim
