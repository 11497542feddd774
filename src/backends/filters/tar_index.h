#pragma once
// Headers of tar archives: ustar, GNU long names, base-256 sizes, pax names and sizes. Pure
// functions; any thread.
//
// POSIX.1-2017, pax(1), "ustar Interchange Format" and "pax Header Block"; GNU tar's manual, "Basic
// Tar Format".
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace blk {

inline constexpr uint64_t kTarBlockBytes = 512;

struct TarHeader {
  std::string name;
  char type = '0';
  uint64_t size = 0;  // of what follows in whole blocks
  bool end = false;   // a block of zeroes: the archive ends

  bool is_file() const { return type == '0' || type == '\0' || type == '7'; }
  bool is_sparse() const { return type == 'S'; }
  // Bytes after the header up to the next one. At most 2^63.
  uint64_t blocks_bytes() const {
    return (size + kTarBlockBytes - 1) / kTarBlockBytes * kTarBlockBytes;
  }
};

// A block of 512 bytes. EINVAL when it is no header (its checksum is wrong, its size impossible).
absl::StatusOr<TarHeader> ParseTarHeader(std::string_view block);

// What a pax header says of the member that follows.
struct PaxRecords {
  std::optional<std::string> path;
  std::optional<uint64_t> size;
  bool sparse = false;
};
absl::StatusOr<PaxRecords> ParsePaxRecords(std::string_view text);

}  // namespace blk
