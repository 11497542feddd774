#pragma once
// The constructors behind PageStore::Create(), and the little that the stores share.
#include <xxhash.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <string_view>

#include "src/backends/page_store.h"
#include "src/core/error.h"

namespace blk::page_store {

using StorePtr = std::unique_ptr<PageStore>;
using PageHash = XXH128_hash_t (*)(const void* data, size_t bytes);

// The stores keep their tables per region of this many bytes.
inline constexpr int kRegionBits = 21;
inline constexpr uint64_t kRegionBytes = 1ull << kRegionBits;

absl::StatusOr<StorePtr> MakeSparse(uint64_t size_bytes);
absl::StatusOr<StorePtr> MakeMalloc(uint64_t size_bytes, bool lock);
absl::StatusOr<StorePtr> MakeZstd(uint64_t size_bytes, int level);
// `hash` is replaced by tests, to make collisions.
absl::StatusOr<StorePtr> MakeDedup(uint64_t size_bytes, PageHash hash = XXH3_128bits);

inline uint64_t RegionCount(uint64_t size_bytes) {
  return size_bytes / kRegionBytes + (size_bytes % kRegionBytes != 0);
}

inline absl::Status OutOfMemory(uint64_t offset) {
  return ErrnoErrorAsIs(ENOSPC,
                        absl::StrCat("memory: no memory left for the bytes at offset ", offset,
                                     "; raise the limit, or trim what is not needed"));
}

inline absl::Status NoTables(uint64_t size_bytes) {
  return ErrnoErrorAsIs(ENOMEM,
                        absl::StrCat("memory: no memory for the tables of ", size_bytes, " bytes"));
}

// The part of [offset, offset + length) that lies in the unit (a power of two) of `offset`.
inline uint64_t PartLength(uint64_t offset, uint64_t length, uint64_t unit) {
  return std::min(length, unit - (offset & (unit - 1)));
}

}  // namespace blk::page_store
