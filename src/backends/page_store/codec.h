#pragma once
// Codec: zstd contexts and work space of the calling thread, so that packing needs no lock and no
// allocation. Bytes that do not shrink are kept as they are.
#include <cstddef>
#include <memory>

#include "absl/status/status.h"
#include "src/backends/page_store/page_format.h"

struct ZSTD_CCtx_s;
struct ZSTD_DCtx_s;

namespace blk::page_store {

class Codec {
 public:
  // Of this thread; null when there is no memory for one.
  static Codec* Get();
  ~Codec();

  // Both return the packed size, at most `bytes`, which is also the room needed at `packed`.
  size_t PackPage(int level, const char* page, char* packed) {
    return Pack(page_, level, page, kPageBytes, packed);
  }
  size_t PackBlock(int level, const char* block, char* packed) {
    return Pack(block_, level, block, kBlockBytes, packed);
  }
  // EIO if the bytes are not what Pack() wrote.
  absl::Status Unpack(const char* packed, size_t packed_bytes, char* into, size_t bytes);

  char plain[kPageBytes];
  char packed[kSizesBytes + kPageBytes];

 private:
  // Pages and blocks have a context each: one for both would set up its tables anew each time.
  struct Packer {
    ZSTD_CCtx_s* context = nullptr;
    int level = 0;
  };
  Codec();
  size_t Pack(Packer& packer, int level, const char* from, size_t bytes, char* packed);

  Packer page_, block_;
  ZSTD_DCtx_s* unpack_ = nullptr;
};

}  // namespace blk::page_store
