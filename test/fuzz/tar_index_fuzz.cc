// Headers of tar archives and pax records: no crash, and sizes that can be added to an offset.
//
// Fuzzes: src/backends/filters/tar_index
#include <string_view>

#include "src/backends/filters/tar_index.h"
#include "src/core/error.h"
#include "src/core/limits.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t bytes) {
  std::string_view text(reinterpret_cast<const char*>(data), bytes);
  if (bytes >= blk::kTarBlockBytes) {
    auto header = blk::ParseTarHeader(text.substr(0, blk::kTarBlockBytes));
    if (header.ok()) {
      BLK_CHECK(header->blocks_bytes() >= header->size);
      BLK_CHECK(header->blocks_bytes() <= blk::limits::kDiskBytesMax);
      text.remove_prefix(blk::kTarBlockBytes);
    }
  }
  auto records = blk::ParsePaxRecords(text);
  if (records.ok() && records->size) BLK_CHECK(*records->size < blk::limits::kDiskBytesMax);
  return 0;
}
