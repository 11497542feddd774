#pragma once
// Finding zeroes. Any thread.
#include <algorithm>
#include <cstddef>
#include <cstring>

namespace blk {

// True when all `bytes` are 0. Stops early: data usually differs in its first bytes. The rest is
// compared with itself, shifted, which runs at memory speed.
inline bool IsZero(const char* data, size_t bytes) {
  size_t head = std::min<size_t>(bytes, 16);
  for (size_t i = 0; i < head; ++i)
    if (data[i]) return false;
  return bytes == head || std::memcmp(data, data + head, bytes - head) == 0;
}

}  // namespace blk
