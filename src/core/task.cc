#include "src/core/task.h"

#include <array>
#include <cstdlib>
#include <new>

namespace blk::internal {
namespace {

[[maybe_unused]] constexpr size_t kClassBytes = 128;
constexpr size_t kClasses = 32;          // frames up to 4 KiB; larger ones go to malloc
constexpr size_t kFramesPerClass = 256;  // kept per thread and class

// A sanitizer must see the life of each frame, so there is no pool under one.
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
constexpr bool kPooled = false;
#else
constexpr bool kPooled = true;
#endif

struct FreeLists {
  struct Frame {
    Frame* next;
  };
  std::array<Frame*, kClasses> first{};
  std::array<size_t, kClasses> count{};
  ~FreeLists() {
    for (Frame* frame : first)
      while (frame) std::free(std::exchange(frame, frame->next));
    count.fill(kFramesPerClass);  // whatever is freed after this goes to malloc
    first.fill(nullptr);
  }
};
thread_local FreeLists lists;

void* Allocate(size_t bytes) {
  void* frame = std::malloc(bytes);
  BLK_CHECK(frame != nullptr);
  return frame;
}

}  // namespace

void* AllocateFrame(size_t bytes) {
  size_t index = (bytes - 1) / kClassBytes;
  if (!kPooled || index >= kClasses) return Allocate(bytes);
  if (FreeLists::Frame* frame = lists.first[index]) {
    lists.first[index] = frame->next;
    --lists.count[index];
    return frame;
  }
  return Allocate((index + 1) * kClassBytes);
}

void FreeFrame(void* frame, size_t bytes) noexcept {
  size_t index = (bytes - 1) / kClassBytes;
  if (kPooled && index < kClasses && lists.count[index] < kFramesPerClass) {
    auto* free_frame = static_cast<FreeLists::Frame*>(frame);
    free_frame->next = lists.first[index];
    lists.first[index] = free_frame;
    ++lists.count[index];
    return;
  }
  std::free(frame);
}

}  // namespace blk::internal
