#include "src/core/budget.h"

#include <algorithm>

#include "src/core/error.h"

namespace blk {

MemoryBudget& MemoryBudget::Process() {
  static MemoryBudget& budget = *new MemoryBudget(limits::kMemoryBytesDefault);
  return budget;
}

void MemoryBudget::SetProcessBytes(uint64_t bytes) { Process().bytes_max_ = bytes; }

MemoryBudget::~MemoryBudget() { BLK_CHECK(used_.load() == 0); }

// What lies over the reserve is drawn from the parent.
bool MemoryBudget::TryTakeFromParent(uint64_t used_before, uint64_t used_after) {
  uint64_t over_before = used_before - std::min(used_before, reserve_bytes_);
  uint64_t over_after = used_after - std::min(used_after, reserve_bytes_);
  if (over_after == over_before) return true;
  if (parent_->TryTake(over_after - over_before)) return true;
  if (used_before != 0) return false;
  parent_->used_ += over_after - over_before;  // the one request that must make progress
  return true;
}

bool MemoryBudget::TryTake(uint64_t bytes) {
  uint64_t used = used_.load(std::memory_order_relaxed);
  do {
    if (used != 0 && used + bytes > bytes_max_) return false;
    if (used == 0 && !parent_ && bytes > bytes_max_) return false;
  } while (!used_.compare_exchange_weak(used, used + bytes));
  if (!parent_ || TryTakeFromParent(used, used + bytes)) return true;
  used_ -= bytes;
  return false;
}

void MemoryBudget::Give(uint64_t bytes) {
  uint64_t before = used_.fetch_sub(bytes);
  BLK_CHECK(before >= bytes);
  if (!parent_) return;
  uint64_t over_before = before - std::min(before, reserve_bytes_);
  uint64_t after = before - bytes;
  uint64_t over_after = after - std::min(after, reserve_bytes_);
  if (over_before != over_after) parent_->Give(over_before - over_after);
}

}  // namespace blk
