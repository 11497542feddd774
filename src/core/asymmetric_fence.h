#pragma once
// A fence between a path that is taken often and one that is taken seldom, when each stores and
// then looks at what the other has stored. LightFence() on the often taken side is nothing but an
// order for the compiler; HeavyFence() on the other makes every thread of the process pass a full
// fence before it returns (membarrier(2), some microseconds). Where the kernel has no membarrier,
// both are full fences. Any thread.
#include <atomic>

namespace blk {

class AsymmetricFence {
 public:
  // Registers with the kernel; to be called before threads that use the fence start.
  AsymmetricFence();

  void Light() const {
    if (expedited_)
      std::atomic_signal_fence(std::memory_order_seq_cst);
    else
      std::atomic_thread_fence(std::memory_order_seq_cst);
  }
  void Heavy() const;

 private:
  bool expedited_;
};

}  // namespace blk
