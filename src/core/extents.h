#pragma once
// Extent lists and their algebra. An extent says how many bytes carry which status flags; a list is
// contiguous from its start offset. Plain values, no threads.
// Flags of base:allocation: NBD protocol, section "Metadata querying", context base:allocation.
#include <cstddef>
#include <cstdint>
#include <vector>

namespace blk {

// Flags of "base:allocation". Other contexts carry their own 64-bit flags.
inline constexpr uint64_t kExtentHole = 1;  // not allocated
inline constexpr uint64_t kExtentZero = 2;  // reads as zeroes
inline constexpr uint64_t kExtentHoleZero = kExtentHole | kExtentZero;
inline constexpr uint64_t kExtentData = 0;

struct Extent {
  uint64_t length;  // bytes, never 0 in a list
  uint64_t flags;
  bool operator==(const Extent&) const = default;
};

// The answer to "what lies at [offset, offset + length)": consecutive extents from start().
// Adjacent extents with equal flags are merged. Appending past the wanted end is cut there; how far
// the last extent went on is kept, since a client may be told (beyond()).
class ExtentList {
 public:
  // No more than `extents_max` extents are kept; further appends are dropped (full() is then true).
  ExtentList(uint64_t start, uint64_t length, size_t extents_max = SIZE_MAX)
      : start_(start), end_(start + length), next_(start), extents_max_(extents_max) {}

  void Append(uint64_t length, uint64_t flags);

  uint64_t start() const { return start_; }
  uint64_t next() const { return next_; }  // offset after the last extent
  uint64_t end() const { return end_; }    // wanted end
  // How far the last extent goes on after end(), as far as somebody has said; 0 before that.
  uint64_t beyond() const { return beyond_; }
  uint64_t reach() const { return next_ + beyond_; }  // offset after all that is known
  // Nothing more is taken: the range is covered, or the list is as long as was allowed.
  bool full() const { return next_ >= end_ || capped_; }
  // How many more extents fit: what a list for a part of the same question need not exceed.
  size_t room() const { return extents_max_ - extents_.size(); }
  bool empty() const { return extents_.empty(); }
  size_t size() const { return extents_.size(); }
  const std::vector<Extent>& extents() const { return extents_; }
  const Extent& front() const { return extents_.front(); }

  // Start again for another range, keeping the memory.
  void Reset(uint64_t start, uint64_t length, size_t extents_max = SIZE_MAX);

 private:
  uint64_t start_, end_, next_;
  uint64_t beyond_ = 0;
  size_t extents_max_;
  bool capped_ = false;
  bool closed_ = false;  // the extent that goes on after end_ has ended
  std::vector<Extent> extents_;
};

// A flag is set in the result where it is set in both (overlays of "reads as zero" knowledge).
// Both lists must start at the same offset; the result covers what both cover.
ExtentList Intersect(const ExtentList& a, const ExtentList& b);

// The part of `list` in [offset, offset + length), with offsets moved by `delta` (added).
ExtentList Window(const ExtentList& list, uint64_t offset, uint64_t length, int64_t delta);

}  // namespace blk
