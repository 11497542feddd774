#pragma once
// CopyJournal: what of a copy is finished, in a file beside the target, so that a copy that was
// killed goes on where it was (`blk copy --resume FILE`).
//
// A range is written down only when the target has flushed it, so neither a kill nor a power
// failure makes the journal promise more than the target holds. The file is a header that says
// which copy it belongs to, and then one record after the other, each with a checksum over itself
// and all before:
//   16 bytes "blk copy log 1.\n", then four strings (32-bit length, bytes): source, what is known
//   of its content, target, what is known of it; then 64 bits XXH3 of all that. Each record: 64-bit
//   offset, 64-bit length, XXH3 of the two seeded with the checksum before.
// All numbers are little-endian. A last record that is not whole was being written: it is dropped.
// Any other damage makes the whole journal worthless: nothing of it is believed.
//
// Owner: the copy. Threads: Done() on any; the rest where the owner is.
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

#include "src/core/device.h"
#include "src/tools/range_set.h"

namespace blk {

// Which copy a journal belongs to.
struct CopyIdentity {
  std::string source, source_state;  // as it was named; size and what else tells one content
  std::string target, target_state;  // from another
  bool operator==(const CopyIdentity&) const = default;
};

// A journal's bytes, understood.
struct ParsedJournal {
  enum class Kind {
    kFresh,    // empty: nothing was written yet
    kForeign,  // not a journal at all, but somebody's file
    kDamaged,  // not to be believed
    kGood,
  };
  Kind kind = Kind::kFresh;
  CopyIdentity identity;
  RangeSet finished;
  uint64_t good_bytes = 0;  // how much of the file is whole
  uint64_t checksum = 0;    // the last one
};
ParsedJournal ParseCopyJournal(std::string_view bytes, uint64_t disk_bytes);

class CopyJournal {
 public:
  // Opens the journal at `path`, or begins one, for a disk of `disk_bytes`. Blocks. Errors: ESTALE
  // (it belongs to another copy, or one of the disks has changed), EINVAL (no journal), EBUSY
  // (another copy uses it), and what the system says.
  static absl::StatusOr<std::unique_ptr<CopyJournal>> Open(const std::string& path,
                                                           const CopyIdentity& identity,
                                                           uint64_t disk_bytes);
  ~CopyJournal();
  CopyJournal(const CopyJournal&) = delete;

  // What earlier runs have finished.
  const RangeSet& finished() const { return finished_; }
  // There was a journal, but it was damaged: the copy begins anew.
  bool was_damaged() const { return was_damaged_; }

  // The target holds this range; it need not be on stable storage. Any thread.
  void Done(uint64_t offset, uint64_t length);
  uint64_t pending_bytes();  // done, and not yet written down. Any thread.
  // Flushes `target`, then writes down what was done before. One at a time. After one has failed
  // each fails: what that flush has lost, the next would not tell of.
  Task<absl::Status> Checkpoint(Device* target);
  // The copy is finished, and flushed: the journal goes.
  Task<absl::Status> Remove();

 private:
  Task<absl::Status> WriteDown(Device* target, RangeSet done);
  CopyJournal(std::string path, int fd) : path_(std::move(path)), fd_(fd) {}
  absl::Status Load(const CopyIdentity& identity, uint64_t disk_bytes);
  absl::Status Begin(const CopyIdentity& identity);
  absl::Status Append(std::string_view bytes);

  const std::string path_;
  const int fd_;
  RangeSet finished_;
  bool was_damaged_ = false;
  uint64_t bytes_ = 0;     // of the file
  uint64_t checksum_ = 0;  // the last one in it
  absl::Status failure_;   // of the first checkpoint that failed
  std::mutex mutex_;
  RangeSet done_;  // since the last checkpoint; guarded by mutex_
};

}  // namespace blk
