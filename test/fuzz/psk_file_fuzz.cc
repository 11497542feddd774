// A file of TLS keys, NAME:HEX a line: whatever it holds, it is read or refused, and what is read
// has a name and a key.
//
// Fuzzes: src/core/tls src/core/tls_context
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "src/core/error.h"
#include "src/core/tls.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  auto keys = blk::ParsePskFile({reinterpret_cast<const char*>(data), size}, "keys.psk");
  if (!keys.ok()) return 0;
  for (const auto& [name, key] : *keys) BLK_CHECK(!name.empty() && !key.empty());
  return 0;
}
