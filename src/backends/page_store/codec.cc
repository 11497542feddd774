#include "src/backends/page_store/codec.h"

#define ZSTD_STATIC_LINKING_ONLY  // for frames without a magic number
#include <zstd.h>

#include <new>

#include "src/core/error.h"

namespace blk::page_store {

Codec* Codec::Get() {
  thread_local std::unique_ptr<Codec> codec;
  if (!codec) {
    codec.reset(new (std::nothrow) Codec);
    if (codec && !(codec->page_.context && codec->block_.context && codec->unpack_)) codec.reset();
  }
  return codec.get();
}

Codec::Codec() : unpack_(ZSTD_createDCtx()) {
  for (Packer* packer : {&page_, &block_}) {
    packer->context = ZSTD_createCCtx();
    if (!packer->context) return;
    ZSTD_CCtx_setParameter(packer->context, ZSTD_c_format, ZSTD_f_zstd1_magicless);
    ZSTD_CCtx_setParameter(packer->context, ZSTD_c_contentSizeFlag, 0);
  }
  if (unpack_) ZSTD_DCtx_setParameter(unpack_, ZSTD_d_format, ZSTD_f_zstd1_magicless);
}

Codec::~Codec() {
  ZSTD_freeCCtx(page_.context);
  ZSTD_freeCCtx(block_.context);
  ZSTD_freeDCtx(unpack_);
}

size_t Codec::Pack(Packer& packer, int level, const char* from, size_t bytes, char* packed) {
  if (packer.level != level) {
    packer.level = level;
    ZSTD_CCtx_setParameter(packer.context, ZSTD_c_compressionLevel, level);
  }
  const size_t size = ZSTD_compress2(packer.context, packed, bytes - 1, from, bytes);
  if (!ZSTD_isError(size)) return size;
  std::memcpy(packed, from, bytes);
  return bytes;
}

absl::Status Codec::Unpack(const char* packed, size_t packed_bytes, char* into, size_t bytes) {
  if (packed_bytes == bytes) {
    std::memcpy(into, packed, bytes);
    return absl::OkStatus();
  }
  const size_t size = ZSTD_decompressDCtx(unpack_, into, bytes, packed, packed_bytes);
  if (size == bytes) return absl::OkStatus();
  return ErrnoErrorAsIs(
      EIO, absl::StrCat("memory: a page does not unpack: ",
                        ZSTD_isError(size) ? ZSTD_getErrorName(size) : "its size is wrong"));
}

}  // namespace blk::page_store
