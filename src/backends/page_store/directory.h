#pragma once
// Directory: a radix tree from the number of a region to its record, for disks up to 2^63 bytes.
// Find() and Next() take no lock: slots are set once and records never move or go away before the
// directory does. Empty spans are skipped a whole subtree at a time. Any thread.
#include <atomic>
#include <cstdint>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "src/backends/page_store/arena.h"

namespace blk::page_store {

template <typename Record>
class Directory {
 public:
  // `arena` provides the nodes and must outlive the directory.
  Directory(Arena* arena, uint64_t count) : arena_(arena) {
    while (levels_ * kNodeBits < 64 && (count >> (levels_ * kNodeBits)) != 0) ++levels_;
    root_ = NewNode();
  }

  // False when there was no memory for the root: nothing else may be called.
  bool ok() const { return root_ != nullptr; }

  // Null when there is no record.
  Record* Find(uint64_t index) const {
    Slot* node = root_;
    for (int level = levels_ - 1; level > 0; --level) {
      node = static_cast<Slot*>(SlotOf(node, level, index).load(std::memory_order_acquire));
      if (!node) return nullptr;
    }
    return static_cast<Record*>(SlotOf(node, 0, index).load(std::memory_order_acquire));
  }

  // Calls `make()` for a record that does not exist yet. Null when memory is out.
  template <typename Make>
  Record* FindOrMake(uint64_t index, Make make) {
    if (Record* found = Find(index)) return found;
    absl::MutexLock lock(&mutex_);
    Slot* node = root_;
    for (int level = levels_ - 1; level > 0; --level) {
      Slot& slot = SlotOf(node, level, index);
      node = static_cast<Slot*>(slot.load(std::memory_order_relaxed));
      if (!node) {
        node = NewNode();
        if (!node) return nullptr;
        slot.store(node, std::memory_order_release);
      }
    }
    Slot& slot = SlotOf(node, 0, index);
    if (void* found = slot.load(std::memory_order_relaxed)) return static_cast<Record*>(found);
    Record* made = make();
    if (made) slot.store(made, std::memory_order_release);
    return made;
  }

  // The first index in [index, end) that has a record; `end` if none has.
  uint64_t Next(uint64_t index, uint64_t end) const {
    while (index < end) {
      const Slot* node = root_;
      // From the root down to the subtree of `index`; where it is empty, on to the next slot. A
      // node that ends before anything was found sends us back to the root.
      for (int level = levels_ - 1; node; --level) {
        void* found = nullptr;
        while (index < end &&
               !(found = SlotOf(node, level, index).load(std::memory_order_acquire))) {
          const int shift = level * kNodeBits;
          index = ((index >> shift) + 1) << shift;
          if (((index >> shift) & kNodeMask) == 0) break;
        }
        if (found && level == 0) return index;
        node = static_cast<const Slot*>(found);
      }
    }
    return end;
  }

 private:
  using Slot = std::atomic<void*>;
  static constexpr int kNodeBits = 14;
  static constexpr uint64_t kNodeMask = (1ull << kNodeBits) - 1;

  // Zeroed memory is an array of null slots, of which only the touched pages cost anything.
  Slot* NewNode() {
    return static_cast<Slot*>(arena_->Allocate(sizeof(Slot) << kNodeBits, alignof(Slot)));
  }
  template <typename Node>
  static Node& SlotOf(Node* node, int level, uint64_t index) {
    return node[(index >> (level * kNodeBits)) & kNodeMask];
  }

  Arena* const arena_;
  int levels_ = 1;
  Slot* root_ = nullptr;
  absl::Mutex mutex_;  // of those who add
};

}  // namespace blk::page_store
