#include "src/backends/page_store/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <utility>

#include "src/backends/page_store/disk_bytes.h"

namespace blk::page_store {
namespace {

// Mappings double from the first to the last of these sizes. Address space costs nothing, except
// where the system promises no more than it has; there the doubling keeps the waste below half.
constexpr size_t kFirstMappingBytes = 64ull << 20;
constexpr size_t kLastMappingBytes = 64ull << 30;

char* AlignUp(char* pointer, size_t alignment) {
  return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(pointer) + alignment - 1) &
                                 ~(alignment - 1));
}

}  // namespace

Arena::~Arena() {
  while (last_) {
    Mapping* mapping = std::exchange(last_, last_->previous);
    munmap(mapping, mapping->bytes);
  }
}

void* Arena::Allocate(size_t bytes, size_t alignment) {
  absl::MutexLock lock(&mutex_);
  char* piece = AlignUp(next_, alignment);
  if (piece > end_ || static_cast<size_t>(end_ - piece) < bytes || !next_) {
    if (!Grow(bytes + alignment)) return nullptr;
    piece = AlignUp(next_, alignment);
  }
  next_ = piece + bytes;
  return piece;
}

bool Arena::Grow(size_t bytes) {
  bytes += sizeof(Mapping);
  size_t wanted = last_ ? std::min(last_->bytes * 2, kLastMappingBytes) : kFirstMappingBytes;
  for (wanted = std::max(wanted, bytes);; wanted = std::max(wanted / 2, bytes)) {
    void* start = mmap(nullptr, wanted, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (start != MAP_FAILED) {
      // A huge page would take 2 MiB for the first byte written.
      madvise(start, wanted, MADV_NOHUGEPAGE);
      madvise(start, wanted, MADV_DONTDUMP);
      last_ = new (start) Mapping{last_, wanted};
      next_ = static_cast<char*>(start) + sizeof(Mapping);
      end_ = static_cast<char*>(start) + wanted;
      return true;
    }
    if (wanted == bytes) return false;
  }
}

void Arena::Discard(void* start, size_t bytes) {
  // Refused for locked memory only, which can still be zeroed.
  if (madvise(start, bytes, MADV_DONTNEED) != 0) ZeroDiskBytes(start, bytes);
}

}  // namespace blk::page_store
