#include "src/backends/filters/tar_index.h"

#include <cerrno>

#include "src/core/error.h"
#include "src/core/limits.h"
#include "src/core/units.h"

namespace blk {
namespace {

absl::Status Broken(std::string_view what) { return ErrnoErrorAsIs(EINVAL, what); }

std::string_view Text(std::string_view block, size_t at, size_t bytes) {
  std::string_view field = block.substr(at, bytes);
  return field.substr(0, field.find('\0'));
}

// Octal digits between blanks or zero bytes; or, with the highest bit set, a binary number.
absl::StatusOr<uint64_t> Number(std::string_view field) {
  uint64_t value = 0;
  if (static_cast<uint8_t>(field[0]) & 0x80) {
    for (size_t i = 0; i < field.size(); ++i) {
      const uint8_t byte = static_cast<uint8_t>(field[i]) & (i == 0 ? 0x7f : 0xff);
      if (value >> 55) return Broken("a number in a tar header is too large");
      value = value << 8 | byte;
    }
    return value;
  }
  while (!field.empty() && field[0] == ' ') field.remove_prefix(1);
  for (char c : field) {
    if (c == ' ' || c == '\0') break;
    if (c < '0' || c > '7') return Broken("a number in a tar header is none");
    value = value << 3 | static_cast<uint64_t>(c - '0');  // at most 12 digits
  }
  return value;
}

// The sum of all bytes, those of the checksum itself counted as blanks.
uint64_t Checksum(std::string_view block) {
  uint64_t sum = 0;
  for (size_t i = 0; i < block.size(); ++i)
    sum += i >= 148 && i < 156 ? ' ' : static_cast<uint8_t>(block[i]);
  return sum;
}

}  // namespace

absl::StatusOr<TarHeader> ParseTarHeader(std::string_view block) {
  BLK_CHECK(block.size() == kTarBlockBytes);
  TarHeader header;
  if (block.find_first_not_of('\0') == std::string_view::npos) {
    header.end = true;
    return header;
  }
  absl::StatusOr<uint64_t> sum = Number(block.substr(148, 8));
  if (!sum.ok() || *sum != Checksum(block))
    return Broken("this is no tar archive, or one that is damaged: a header has a wrong checksum");
  header.type = block[156];
  header.name = Text(block, 0, 100);
  // GNU's older format has other things where ustar has a prefix.
  if (block.substr(257, 6) == std::string_view("ustar\0", 6)) {
    if (std::string_view prefix = Text(block, 345, 155); !prefix.empty())
      header.name = absl::StrCat(prefix, "/", header.name);
  }
  // Links, devices and directories have nothing after them, whatever their size says.
  if (header.type >= '1' && header.type <= '6') return header;
  BLK_ASSIGN_OR_RETURN(header.size, Number(block.substr(124, 12)));
  if (header.size > limits::kDiskBytesMax - kTarBlockBytes)
    return Broken("a member of the tar archive is impossibly large");
  return header;
}

// Records are "LENGTH KEY=VALUE\n", LENGTH being that of the whole record.
absl::StatusOr<PaxRecords> ParsePaxRecords(std::string_view text) {
  PaxRecords records;
  while (!text.empty()) {
    const size_t blank = text.find(' ');
    if (blank == std::string_view::npos || blank == 0 || blank > 9)
      return Broken("a pax header of the tar archive is damaged");
    BLK_ASSIGN_OR_RETURN(uint64_t length, ParseUnsigned(text.substr(0, blank)));
    if (length <= blank + 1 || length > text.size() || text[length - 1] != '\n')
      return Broken("a pax header of the tar archive is damaged");
    std::string_view record = text.substr(blank + 1, length - blank - 2);
    text.remove_prefix(length);
    const size_t equals = record.find('=');
    if (equals == std::string_view::npos) continue;
    std::string_view key = record.substr(0, equals), value = record.substr(equals + 1);
    if (key == "path" && !records.sparse) records.path = std::string(value);
    if (key == "size") {
      BLK_ASSIGN_OR_RETURN(records.size,
                           ParseUnsigned(value, 0, limits::kDiskBytesMax - kTarBlockBytes));
    }
    if (key.starts_with("GNU.sparse.")) records.sparse = true;
    if (key == "GNU.sparse.name") records.path = std::string(value);
  }
  return records;
}

}  // namespace blk
