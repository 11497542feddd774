#pragma once
// Output: messages that wait to be sent in one gathered send, and what owns their bytes. A plain
// value of one session; two of them take turns (one is sent while the other fills), so that steady
// state allocates nothing.
#include <cstddef>
#include <cstdint>
#include <vector>

#include "src/core/buffer.h"
#include "src/core/device.h"

namespace blk::nbd {

struct Output {
  static constexpr size_t kArenaBytes = 32 << 10;

  // A range of a file is sent after the first `parts` parts.
  struct FilePart {
    size_t parts;
    FileRange range;
  };

  std::vector<iovec> parts;     // in the order of sending
  std::vector<FilePart> files;  // in the same order, sent between them
  std::vector<Buffer> buffers;
  std::vector<Loan> loans;
  uint64_t bytes = 0;    // of all parts
  size_t requests = 0;   // for the session's accounts: replies in here,
  uint64_t charged = 0;  // and the budget that they hold

  bool empty() const { return parts.empty(); }

  // `size` bytes (at most kArenaBytes) to be filled in, for headers and small payloads.
  char* Append(size_t size) {
    if (arena_used_ + size > kArenaBytes) {
      arenas_.emplace_back(kArenaBytes);
      arena_used_ = 0;
    }
    char* at = arenas_.back().data() + arena_used_;
    arena_used_ += size;
    bytes += size;
    const bool file_between = !files.empty() && files.back().parts == parts.size();
    if (!parts.empty() && !file_between &&
        static_cast<char*>(parts.back().iov_base) + parts.back().iov_len == at) {
      parts.back().iov_len += size;
    } else {
      parts.push_back({at, size});
    }
    return at;
  }

  // Bytes that somebody else owns until they are sent.
  void AppendBytes(const void* data, size_t size) {
    parts.push_back({const_cast<void*>(data), size});
    bytes += size;
  }

  // After a header.
  void AppendFile(FileRange range) {
    files.push_back({parts.size(), range});
    bytes += range.length;
  }

  void Clear() {
    parts.clear();
    files.clear();
    buffers.clear();
    loans.clear();
    if (arenas_.size() > 1) arenas_.resize(1);
    arena_used_ = arenas_.empty() ? kArenaBytes : 0;
    bytes = 0;
    requests = 0;
    charged = 0;
  }

 private:
  std::vector<Buffer> arenas_;
  size_t arena_used_ = kArenaBytes;
};

}  // namespace blk::nbd
