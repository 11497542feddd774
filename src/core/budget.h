#pragma once
// Memory accounting: one budget for the process (--memory), a child per connection with a small
// reserve that is always granted, so that no connection starves. Request buffers, reply queues,
// arenas, caches and decoders draw from it. The process budget: any thread; a child: one at a time.
#include <atomic>
#include <cstdint>

#include "src/core/limits.h"

namespace blk {

class MemoryBudget {
 public:
  // The process's budget, of limits::kMemoryBytesDefault unless SetProcessBytes() was called.
  static MemoryBudget& Process();
  static void SetProcessBytes(uint64_t bytes);

  explicit MemoryBudget(uint64_t bytes, MemoryBudget* parent = nullptr,
                        uint64_t reserve_bytes = limits::kConnectionReserveBytes)
      : bytes_max_(bytes), reserve_bytes_(parent ? reserve_bytes : 0), parent_(parent) {}
  MemoryBudget(const MemoryBudget&) = delete;
  ~MemoryBudget();

  // False when the budget (or its parent's, beyond the reserve) does not have `bytes` left. A
  // single request is granted to a child that holds nothing, however large, so that it can make
  // progress.
  bool TryTake(uint64_t bytes);
  void Give(uint64_t bytes);
  uint64_t used_bytes() const { return used_.load(std::memory_order_relaxed); }

 private:
  bool TryTakeFromParent(uint64_t used_before, uint64_t used_after);

  std::atomic<uint64_t> bytes_max_;
  const uint64_t reserve_bytes_;
  MemoryBudget* const parent_;
  std::atomic<uint64_t> used_{0};
};

}  // namespace blk
