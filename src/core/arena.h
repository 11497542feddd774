#pragma once
// Arena: memory that two processes share, so that payloads need not go through a socket. The side
// that makes it (the NBD client) hands out pieces of it as buffers; the side that is given it (the
// server) only maps it. docs/shared-memory.md has the wire format.
//
// Any thread. A piece must not outlive its arena.
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <utility>
#include <vector>

#include "src/core/error.h"

namespace blk {

class Arena {
 public:
  // A new arena of `bytes`, whose size is sealed. Errors: what memfd_create or mmap say.
  static absl::StatusOr<std::shared_ptr<Arena>> Create(uint64_t bytes);
  // Maps one that a stranger sent. Takes `fd`. Refused (EINVAL) unless it is a memfd sealed against
  // shrinking, of ordinary pages and at least `bytes` long: anything else could raise SIGBUS or
  // hang a loop.
  static absl::StatusOr<std::shared_ptr<Arena>> Adopt(int fd, uint64_t bytes);
  ~Arena();
  Arena(const Arena&) = delete;

  int fd() const { return fd_; }
  uint64_t size() const { return size_; }
  char* data() const { return data_; }
  bool Contains(const void* from, uint64_t bytes) const {
    auto at = static_cast<const char*>(from);
    return at >= data_ && at < data_ + size_ && bytes <= static_cast<uint64_t>(data_ + size_ - at);
  }
  uint64_t OffsetOf(const void* at) const { return static_cast<const char*>(at) - data_; }
  // Null when the range is not inside.
  char* At(uint64_t offset, uint64_t bytes) const {
    return offset <= size_ && bytes <= size_ - offset ? data_ + offset : nullptr;
  }

  // At least `bytes`; null when there is no room. Last in, first out for each size class (powers of
  // two from 4 KiB), so that pieces stay in the processor's cache.
  char* TakePiece(uint64_t bytes);
  void GivePiece(char* piece, uint64_t bytes);

  // The other process may touch this range at any time from now on, as a server may whose answer
  // nobody waits for any more: a piece with any of it is never handed out again.
  void Retire(const char* at, uint64_t bytes);
  bool Retired(const char* at, uint64_t bytes) const;

 private:
  Arena(int fd, char* data, uint64_t size) : fd_(fd), data_(data), size_(size) {}

  const int fd_;
  char* const data_;
  const uint64_t size_;
  mutable std::mutex mutex_;
  static constexpr int kSmallestShift = 12, kClasses = 16;
  static int ClassOf(uint64_t bytes);
  bool RetiredLocked(const char* at, uint64_t bytes) const;
  uint64_t carved_ = 0;  // guarded by mutex_, as are the next
  std::array<std::vector<char*>, kClasses> free_;
  std::vector<std::pair<uint64_t, uint64_t>> retired_;  // offset and length
  std::atomic<bool> any_retired_{false};
};

// A piece that gives itself back.
class ArenaPiece {
 public:
  ArenaPiece() = default;
  ArenaPiece(Arena* arena, uint64_t bytes)
      : arena_(arena), data_(arena->TakePiece(bytes)), bytes_(bytes) {}
  ArenaPiece(ArenaPiece&& other) noexcept
      : arena_(other.arena_), data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  ArenaPiece& operator=(ArenaPiece&&) = delete;
  ~ArenaPiece() {
    if (data_) arena_->GivePiece(data_, bytes_);
  }
  char* data() const { return data_; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  Arena* arena_ = nullptr;
  char* data_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace blk
