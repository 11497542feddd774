#pragma once
// A range of bytes as people write it: START-END, both inclusive, either may be left out. The type
// of the parameters protect and map. Any thread.
#include <optional>
#include <string>

#include "src/core/param.h"

namespace blk {

struct ByteRange {
  uint64_t first = 0;
  std::optional<uint64_t> last = {};  // inclusive; unset: to the end of the disk

  // The end, exclusive, on a disk of this size.
  uint64_t EndOn(uint64_t disk_bytes) const {
    return last && *last < disk_bytes ? *last + 1 : disk_bytes;
  }
};

inline absl::StatusOr<ByteRange> ParseByteRange(std::string_view text) {
  const size_t dash = text.find('-');
  if (dash == std::string_view::npos)
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is no range: write START-END, both included"));
  ByteRange range;
  if (dash > 0) {
    BLK_ASSIGN_OR_RETURN(range.first, ParseUnsigned(text.substr(0, dash), 0, kSizeBytesMax));
  }
  if (dash + 1 < text.size()) {
    BLK_ASSIGN_OR_RETURN(range.last, ParseUnsigned(text.substr(dash + 1), 0, kSizeBytesMax));
    if (*range.last < range.first)
      return absl::InvalidArgumentError(absl::StrCat("the range ", text, " ends before it begins"));
  }
  return range;
}

inline std::string FormatByteRange(const ByteRange& range) {
  return absl::StrCat(range.first, "-", range.last ? absl::StrCat(*range.last) : "");
}

}  // namespace blk
