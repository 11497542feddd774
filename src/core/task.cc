#include "src/core/task.h"

#include <array>
#include <cstdlib>
#include <new>

namespace blk::internal {
namespace {

[[maybe_unused]] constexpr size_t kClassBytes = 128;
constexpr size_t kClasses = 32;          // frames up to 4 KiB; larger ones go to malloc
constexpr size_t kFramesPerClass = 256;  // kept per thread and class

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define BLK_NO_FRAME_POOL 1  // a sanitizer must see each frame's life
#endif
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
#ifdef BLK_NO_FRAME_POOL
  return Allocate(bytes);
#else
  size_t index = (bytes - 1) / kClassBytes;
  if (index >= kClasses) return Allocate(bytes);
  if (FreeLists::Frame* frame = lists.first[index]) {
    lists.first[index] = frame->next;
    --lists.count[index];
    return frame;
  }
  return Allocate((index + 1) * kClassBytes);
#endif
}

void FreeFrame(void* frame, [[maybe_unused]] size_t bytes) noexcept {
#ifndef BLK_NO_FRAME_POOL
  size_t index = (bytes - 1) / kClassBytes;
  if (index < kClasses && lists.count[index] < kFramesPerClass) {
    auto* free_frame = static_cast<FreeLists::Frame*>(frame);
    free_frame->next = lists.first[index];
    lists.first[index] = free_frame;
    ++lists.count[index];
    return;
  }
#endif
  std::free(frame);
}

}  // namespace blk::internal
