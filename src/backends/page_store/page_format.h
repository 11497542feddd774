#pragma once
// How the zstd store keeps a page, packed:
//
//   whole   one frame of the page: packs best, and must be unpacked whole
//   split   the sizes of its blocks, then a frame for each: what is written in small pieces is
//           read, and written again, in small pieces
//
// A frame as long as its content is the content. Frames have neither magic number nor size.
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace blk::page_store {

inline constexpr size_t kPageBytes = 32 << 10;
inline constexpr size_t kBlockBytes = 4 << 10;
inline constexpr int kPageBlocks = kPageBytes / kBlockBytes;
inline constexpr size_t kSizesBytes = kPageBlocks * sizeof(uint16_t);

// A bit a block.
using BlockSet = uint8_t;
inline constexpr BlockSet kAllBlocks = 0xff;

struct PackedPage {
  uint16_t payload_bytes;
  BlockSet allocated;  // not empty
  bool whole;

  char* payload() { return reinterpret_cast<char*>(this + 1); }
  const char* payload() const { return reinterpret_cast<const char*>(this + 1); }
  size_t total_bytes() const { return sizeof(PackedPage) + payload_bytes; }

  // Of a split page: the frame of a block; empty for one that is not allocated.
  struct Frame {
    const char* data;
    size_t bytes;
  };
  Frame frame(int block) const {
    uint16_t sizes[kPageBlocks];
    std::memcpy(sizes, payload(), sizeof sizes);
    size_t start = kSizesBytes;
    for (int i = 0; i < block; ++i) start += sizes[i];
    return {payload() + start, sizes[block]};
  }

  // Null when memory is out; ends with std::free().
  static PackedPage* Make(BlockSet allocated, bool whole, const char* payload, size_t bytes) {
    auto* page = static_cast<PackedPage*>(std::malloc(sizeof(PackedPage) + bytes));
    if (!page) return nullptr;
    *page = {static_cast<uint16_t>(bytes), allocated, whole};
    std::memcpy(page->payload(), payload, bytes);
    return page;
  }
};

}  // namespace blk::page_store
