#include "src/core/buffer.h"

#include <array>
#include <bit>
#include <cstdlib>

#include "src/core/error.h"

namespace blk {
namespace {

// Classes of 2^n + 4096 bytes: a payload of a power of two, and room for its headers.
constexpr size_t kExtraBytes = 4096;
constexpr int kSmallestShift = 9;
constexpr int kClasses = 13;  // up to 2 MiB; larger ones come from malloc
[[maybe_unused]] constexpr size_t kBytesPerClassMax = 16u << 20;  // kept per thread and class

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define BLK_NO_BUFFER_POOL 1
#endif
#endif

[[maybe_unused]] int ClassOf(size_t bytes) {
  size_t payload = bytes > kExtraBytes ? bytes - kExtraBytes : 1;
  int shift = std::bit_width(payload - 1);
  return shift < kSmallestShift ? 0 : shift - kSmallestShift;
}
[[maybe_unused]] size_t ClassBytes(int index) {
  return (size_t{1} << (index + kSmallestShift)) + kExtraBytes;
}

char* Allocate(size_t bytes) {
  size_t alignment = bytes >= 4096 ? 4096 : 64;
  void* data = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  BLK_CHECK(data != nullptr);
  return static_cast<char*>(data);
}

struct FreeLists {
  struct Node {
    Node* next;
  };
  std::array<Node*, kClasses> first{};
  std::array<size_t, kClasses> count{};
  bool closed = false;
  ~FreeLists() {
    closed = true;
    for (Node* node : first)
      while (node) std::free(std::exchange(node, node->next));
  }
};
[[maybe_unused]] thread_local FreeLists lists;

}  // namespace

Buffer::Buffer(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
#ifndef BLK_NO_BUFFER_POOL
  int index = ClassOf(bytes);
  if (index < kClasses) {
    if (FreeLists::Node* node = lists.first[index]) {
      lists.first[index] = node->next;
      --lists.count[index];
      data_ = reinterpret_cast<char*>(node);
      return;
    }
    data_ = Allocate(ClassBytes(index));
    return;
  }
#endif
  data_ = Allocate(bytes);
}

Buffer::~Buffer() {
  if (!data_) return;
#ifndef BLK_NO_BUFFER_POOL
  int index = ClassOf(size_);
  if (index < kClasses && !lists.closed &&
      (lists.count[index] + 1) * ClassBytes(index) <= kBytesPerClassMax) {
    auto* node = reinterpret_cast<FreeLists::Node*>(data_);
    node->next = lists.first[index];
    lists.first[index] = node;
    ++lists.count[index];
    return;
  }
#endif
  std::free(data_);
}

}  // namespace blk
