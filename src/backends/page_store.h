#pragma once
// PageStore: the bytes of the memory and data backends, in one of several shapes.
//
//   sparse           memory only for what was written; the default
//   malloc           the whole disk as one mapping; `mlock=true` pins it
//   zstd[,level=N]   compressed pages with a small cache of hot ones
//   dedup            equal pages stored once
//
// Threads: every method from any number of threads at the same time. Operations on overlapping
// bytes at the same time leave either's bytes, as on any disk; all others keep out of each other's
// way, also within one page. The caller keeps ranges inside the size given to Create().
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/core/device.h"
#include "src/core/extents.h"

namespace blk {

class PageStore {
 public:
  struct Stats {
    uint64_t logical_bytes = 0;  // allocated, in whole pages
    uint64_t stored_bytes = 0;   // what they take, without tables and caches
  };

  // `allocator` is one of the names above with its options. The content is all zeroes.
  // EINVAL: a name or option that is not known; ENOMEM: no room for the whole (malloc) or its
  // tables.
  static absl::StatusOr<std::unique_ptr<PageStore>> Create(std::string_view allocator,
                                                           uint64_t size_bytes);
  virtual ~PageStore() = default;

  // Read fails only where bytes must be unpacked first (zstd: EIO, ENOMEM).
  virtual absl::Status Read(uint64_t offset, std::span<char> into) = 0;
  // ENOSPC when memory is out; a prefix may have been written then.
  virtual absl::Status Write(uint64_t offset, std::span<const char> from) = 0;
  // The range reads as zeroes afterwards. Whole pages become holes and their memory goes back to
  // the system if `may_trim`; else what is allocated stays so. Costs what is allocated in the
  // range, whatever its length.
  virtual absl::Status Zero(uint64_t offset, uint64_t length, bool may_trim) = 0;
  // Appends until the list is full. Written zeroes are data, the rest are holes.
  virtual void Extents(ExtentList* list) = 0;
  // Lends the bytes in place. The loan must end before the store does. False: nothing is lent.
  virtual bool Borrow(uint64_t offset, uint64_t length, Loan* loan);
  // Borrow() can lend, and operations are short: fit for an event loop.
  virtual bool in_place() const { return false; }
  virtual Stats stats() const = 0;
};

}  // namespace blk
