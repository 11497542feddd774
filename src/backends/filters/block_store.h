#pragma once
// BlockStore: blocks of a disk kept aside, for cow and cache. Their bytes are in a sparse, unlinked
// temporary file in $TMPDIR (else /var/tmp); which blocks there are is known in memory, 4 bytes and
// two bits for each block that was ever stored and nothing for those that were not, whatever the
// size of the disk.
//
// A block, once stored, keeps its place in the file for ever: a reader that lost a race with a trim
// may see older bytes or zeroes, never those of another block. Where blocks are dropped, a reader
// must not take such zeroes for the block's bytes: it compares drops() before and after.
//
// Owner: a filter's layer; shared by its devices. Threads: any loop. Reading needs no lock. Whoever
// changes the state of blocks holds locks() of them, from looking at the state until it has been
// set; where blocks are never dropped, writing into those that are present needs none either.
#include <array>
#include <atomic>
#include <bitset>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>

#include "absl/container/btree_map.h"
#include "src/backends/filters/range_lock.h"
#include "src/core/file_io.h"

namespace blk {

class BlockStore {
 public:
  enum class State : uint8_t { kAbsent, kPresent, kZero };

  // A run of blocks in one state. If present, they lie side by side in the file from `position`,
  // and all of them are dirty or none.
  struct Run {
    State state;
    uint64_t blocks;
    uint64_t position;
    bool dirty = false;
  };

  // So many separate ranges of zeroes are remembered: about 100 MB.
  static constexpr size_t kZeroRangesMax = 4u << 20;

  // Makes the temporary file. Before loops run or on them (it blocks shortly).
  static absl::StatusOr<std::unique_ptr<BlockStore>> Create(
      uint64_t block_bytes, size_t zero_ranges_max = kZeroRangesMax);

  uint64_t block_bytes() const { return block_bytes_; }
  RangeLock& locks() { return locks_; }  // of block numbers

  // The run that begins with block `first`: at least 1 and at most `blocks_max` long, and maybe
  // shorter than it could be said to be.
  Run RunAt(uint64_t first, uint64_t blocks_max) const;

  // Bytes at `position` of the file, inside one run of present blocks (or of Place()).
  Task<absl::Status> ReadAt(uint64_t position, std::span<char> into) {
    return file_.ReadAt(position, into);
  }
  Task<absl::Status> WriteAt(uint64_t position, std::span<const char> from) {
    return file_.WriteAt(position, from);
  }

  // Where the bytes of a block go that is about to be stored; it is not present yet. ENOSPC when
  // there are more blocks than can be counted.
  absl::StatusOr<uint64_t> Place(uint64_t block);
  // All bytes of the block were written to its place. Dirty: they must go down some day.
  void SetPresent(uint64_t block, bool dirty = false);
  // For blocks that are present.
  void SetDirty(uint64_t first, uint64_t blocks, bool dirty);
  // From now on they are kZero; the room of those that were present is given back. Any range.
  // ENOSPC, and nothing has changed, when there are too many ranges of zeroes.
  Task<absl::Status> SetZero(uint64_t first, uint64_t blocks);
  // From now on they are kAbsent; their room is given back. Any range.
  Task<void> Drop(uint64_t first, uint64_t blocks);

  // ---- For caches
  // The first block at or after `first` that is not the same below: dirty, or zero. UINT64_MAX if
  // there is none.
  uint64_t NextDirty(uint64_t first) const;
  // A present block that was not used for long (since this went round last); none if nothing is
  // present. It may change before the caller has locked it.
  std::optional<uint64_t> FindUnused();
  uint64_t present_blocks() const { return present_blocks_.load(std::memory_order_relaxed); }
  // Grows with each Drop(), before the room is given back.
  uint64_t drops() const { return drops_.load(); }

  // What the map costs, for tests and statistics.
  uint64_t memory_bytes() const;

 private:
  static constexpr uint64_t kPageBlocks = 1024;
  static constexpr size_t kPagesSearched = 64;  // by FindUnused, which holds everybody up
  static constexpr uint32_t kPresentBit = 1u << 31;
  struct Page {
    uint64_t present = 0;                           // how many
    std::array<uint32_t, kPageBlocks> blocks = {};  // place + 1 or 0 for none; kPresentBit
    std::bitset<kPageBlocks> dirty, used;           // used: read or written since FindUnused passed
    bool has(uint64_t index) const { return (blocks[index] & kPresentBit) != 0; }
  };

  BlockStore(int fd, uint64_t block_bytes, size_t zero_ranges_max);
  uint64_t NextPresent(uint64_t first, uint64_t end) const;
  Run RunLocked(uint64_t first, uint64_t blocks_max) const;
  Run PresentRun(Page& page, uint64_t first, uint64_t end) const;
  uint64_t NextDirtyPresent(uint64_t first) const;
  void EraseZeroes(uint64_t first, uint64_t end);
  Task<void> Forget(uint64_t first, uint64_t end);
  uint64_t PositionOf(uint32_t entry) const {
    return uint64_t{(entry & ~kPresentBit) - 1} * block_bytes_;
  }

  const uint64_t block_bytes_;
  const size_t zero_ranges_max_;
  FileIo file_;
  RangeLock locks_;
  std::atomic<uint64_t> present_blocks_{0}, drops_{0};
  mutable std::mutex mutex_;  // guards what follows; held for moments
  absl::btree_map<uint64_t, std::unique_ptr<Page>> pages_;
  absl::btree_map<uint64_t, uint64_t>
      zeroes_;  // first -> end; apart; present blocks may lie inside
  uint32_t places_ = 0;
  uint64_t hand_ = 0;  // where FindUnused goes on
};

}  // namespace blk
