#pragma once
// Buffer: uninitialised bytes for payloads, from per-thread free lists of size classes, last in
// first out so that they stay in the processor's cache. May be freed on another thread than it was
// made on. Accounting is the caller's (MemoryBudget).
#include <cstddef>
#include <span>
#include <utility>

namespace blk {

class Buffer {
 public:
  Buffer() = default;
  // `bytes` of memory, aligned to 64 bytes (4096 from 4096 bytes on). Never fails: a machine that
  // gives no memory ends the program, so bound what you ask for.
  explicit Buffer(size_t bytes);
  Buffer(Buffer&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    return *this;
  }
  ~Buffer();

  char* data() { return data_; }
  const char* data() const { return data_; }
  size_t size() const { return size_; }
  std::span<char> span() { return {data_, size_}; }
  explicit operator bool() const { return data_ != nullptr; }

 private:
  char* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace blk
