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

// A sanitizer must see the life of each buffer, so there is no pool under one.
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kPooled = false;
#else
constexpr bool kPooled = true;
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
thread_local FreeLists lists;

}  // namespace

Buffer::Buffer(size_t bytes) : size_(bytes) {
  if (bytes == 0) return;
  int index = ClassOf(bytes);
  if (kPooled && index < kClasses) {
    if (FreeLists::Node* node = lists.first[index]) {
      lists.first[index] = node->next;
      --lists.count[index];
      data_ = reinterpret_cast<char*>(node);
      return;
    }
    data_ = Allocate(ClassBytes(index));
    return;
  }
  data_ = Allocate(bytes);
}

Buffer::~Buffer() {
  if (!data_) return;
  int index = ClassOf(size_);
  if (kPooled && index < kClasses && !lists.closed &&
      (lists.count[index] + 1) * ClassBytes(index) <= kBytesPerClassMax) {
    auto* node = reinterpret_cast<FreeLists::Node*>(data_);
    node->next = lists.first[index];
    lists.first[index] = node;
    ++lists.count[index];
    return;
  }
  std::free(data_);
}

}  // namespace blk
