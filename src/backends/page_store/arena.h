#pragma once
// Arena: address space filled with zeroes, handed out in pieces that stay mapped, at the same
// place, until the arena is destroyed. Memory is used only for what is touched; Discard() gives it
// back, after which the bytes read as zeroes again. So whoever still reads a discarded piece sees
// zeroes or the old bytes, never an unmapped address: no other reclamation scheme is needed.
//
// Any thread. Few large mappings, so that a disk of many pieces stays far below the kernel's limit
// of mappings.
#include <cstddef>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"

namespace blk::page_store {

class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  ~Arena();

  // A zeroed piece; null when there is no address space (RLIMIT_AS, overcommit rules).
  // `alignment` is a power of two up to 2 MiB.
  void* Allocate(size_t bytes, size_t alignment);

  // Zeroes a page-aligned range and gives its memory back.
  static void Discard(void* start, size_t bytes);

 private:
  // Lies at the start of each mapping.
  struct Mapping {
    Mapping* previous;
    size_t bytes;
  };
  bool Grow(size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  absl::Mutex mutex_;
  Mapping* last_ ABSL_GUARDED_BY(mutex_) = nullptr;
  char* next_ ABSL_GUARDED_BY(mutex_) = nullptr;
  char* end_ ABSL_GUARDED_BY(mutex_) = nullptr;
};

}  // namespace blk::page_store
