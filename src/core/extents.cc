#include "src/core/extents.h"

#include <algorithm>

#include "src/core/error.h"

namespace blk {

void ExtentList::Append(uint64_t length, uint64_t flags) {
  if (length == 0 || capped_) return;
  const uint64_t whole = length;
  length = std::min(length, end_ - std::min(next_, end_));
  if (length == 0) {
    closed_ |= extents_.empty() || extents_.back().flags != flags;
    if (!closed_) beyond_ += whole;
    return;
  }
  if (!extents_.empty() && extents_.back().flags == flags) {
    extents_.back().length += length;
  } else if (extents_.size() == extents_max_) {
    capped_ = true;
    return;
  } else {
    extents_.push_back({length, flags});
  }
  next_ += length;
  beyond_ = whole - length;
}

void ExtentList::Reset(uint64_t start, uint64_t length, size_t extents_max) {
  start_ = next_ = start;
  end_ = start + length;
  extents_max_ = extents_max;
  beyond_ = 0;
  capped_ = closed_ = false;
  extents_.clear();
}

ExtentList Intersect(const ExtentList& a, const ExtentList& b) {
  BLK_CHECK(a.start() == b.start());
  ExtentList result(a.start(), std::min(a.next(), b.next()) - a.start());
  auto x = a.extents().begin(), y = b.extents().begin();
  uint64_t x_left = 0, y_left = 0;
  while (!result.full()) {
    if (x_left == 0) x_left = x->length;
    if (y_left == 0) y_left = y->length;
    uint64_t step = std::min(x_left, y_left);
    result.Append(step, x->flags & y->flags);
    if ((x_left -= step) == 0) ++x;
    if ((y_left -= step) == 0) ++y;
  }
  return result;
}

ExtentList Window(const ExtentList& list, uint64_t offset, uint64_t length, int64_t delta) {
  uint64_t first = std::max(offset, list.start());
  uint64_t last = std::max(first, std::min(offset + length, list.next()));
  ExtentList result(first + delta, last - first);
  uint64_t at = list.start();
  for (const Extent& extent : list.extents()) {
    uint64_t from = std::max(at, first), to = std::min(at + extent.length, last);
    if (from < to) result.Append(to - from, extent.flags);
    at += extent.length;
  }
  return result;
}

}  // namespace blk
