// In-line specs: what parses is printed as text that parses to the same.
//
// Fuzzes: src/backends/inline_spec
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "src/backends/inline_spec.h"
#include "src/core/error.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  absl::StatusOr<blk::InlineSpec> spec = blk::ParseInlineSpec(text);
  if (!spec.ok()) return 0;
  absl::StatusOr<blk::InlineSpec> again = blk::ParseInlineSpec(blk::FormatInlineSpec(*spec));
  BLK_CHECK(again.ok() && *again == *spec);
  return 0;
}
