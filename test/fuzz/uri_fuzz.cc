// Whatever text is given as an NBD URI: it is refused or read, and what was read is printed so
// that it reads back as the same value.
//
// Fuzzes: src/proto/uri
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "src/proto/uri.h"

namespace {

void Require(bool promise) {
  if (!promise) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto uri = blk::nbd::ParseUri(text);
  Require(!uri.ok() || blk::nbd::LooksLikeNbdUri(text));
  if (uri.ok()) {
    const std::string canonical = uri->ToString();
    const auto again = blk::nbd::ParseUri(canonical);
    Require(again.ok() && *again == *uri);
    Require(again->ToString() == canonical);
  }
  if (text.find('\0') == std::string_view::npos) {
    Require(blk::nbd::PercentDecode(blk::nbd::PercentEncode(text)) == text);
  }
  return 0;
}
