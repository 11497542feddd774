#pragma once
// Copies of the bytes of a disk that lies in memory without locks. Requests that overlap race for
// them, as they would for the sectors of a disk: a reader gets the old bytes, the new ones, or some
// of each, and so does one that reads whole blocks and uses only what lies between its neighbours'
// bytes. That is the clients' to order; nothing here looks at what it copies. So tsan is told to
// leave these accesses alone, and these only.
#include <cstring>

#include "absl/base/dynamic_annotations.h"

namespace blk::page_store {

inline void ReadDiskBytes(void* into, const void* disk, size_t bytes) {
  ABSL_ANNOTATE_IGNORE_READS_BEGIN();
  std::memcpy(into, disk, bytes);
  ABSL_ANNOTATE_IGNORE_READS_END();
}

inline void WriteDiskBytes(void* disk, const void* from, size_t bytes) {
  ABSL_ANNOTATE_IGNORE_WRITES_BEGIN();
  std::memcpy(disk, from, bytes);
  ABSL_ANNOTATE_IGNORE_WRITES_END();
}

inline void ZeroDiskBytes(void* disk, size_t bytes) {
  ABSL_ANNOTATE_IGNORE_WRITES_BEGIN();
  std::memset(disk, 0, bytes);
  ABSL_ANNOTATE_IGNORE_WRITES_END();
}

}  // namespace blk::page_store
