#pragma once
// RangeSet: which bytes of a disk are in a set; neighbours are merged. A plain value, one thread.
#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>

namespace blk {

class RangeSet {
 public:
  // Bytes from `from` up to `to`, exclusive.
  void Add(uint64_t from, uint64_t to) {
    if (from >= to) return;
    auto next = ranges_.upper_bound(from);
    if (next != ranges_.begin() && std::prev(next)->second >= from) --next;
    while (next != ranges_.end() && next->first <= to) {
      from = std::min(from, next->first);
      to = std::max(to, next->second);
      bytes_ -= next->second - next->first;
      next = ranges_.erase(next);
    }
    ranges_.emplace_hint(next, from, to);
    bytes_ += to - from;
  }

  // The first range at or after `from` that is not in the set, up to `to`: where it begins, in
  // `*gap_from`, and ends, in `*gap_to`. False: there is none.
  bool NextGap(uint64_t from, uint64_t to, uint64_t* gap_from, uint64_t* gap_to) const {
    auto next = ranges_.upper_bound(from);
    if (next != ranges_.begin()) from = std::max(from, std::prev(next)->second);
    if (from >= to) return false;
    *gap_from = from;
    *gap_to = next == ranges_.end() ? to : std::min(to, next->first);
    return true;
  }

  uint64_t bytes() const { return bytes_; }
  bool empty() const { return ranges_.empty(); }
  const std::map<uint64_t, uint64_t>& ranges() const { return ranges_; }
  void Clear() {
    ranges_.clear();
    bytes_ = 0;
  }

 private:
  std::map<uint64_t, uint64_t> ranges_;  // begin to end, none touching another
  uint64_t bytes_ = 0;
};

}  // namespace blk
