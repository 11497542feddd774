#pragma once
// Bytes in hexadecimal, as nbddump prints them: lines of 16; lines equal to the one before fold to
// one `*`; holes cost nothing. One thread.
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "src/tools/terminal_colour.h"

namespace blk {

class DumpText {
 public:
  // Bytes come in order and end at `end`. A line that reaches `never_folded` is always shown.
  // `colour`: for a terminal, with its escape sequences and signs beyond ASCII.
  DumpText(uint64_t end, uint64_t never_folded, bool colour)
      : end_(end), never_folded_(never_folded), out_(colour) {}

  // Print to standard output. An error when that is not possible any more.
  absl::Status Data(uint64_t offset, std::span<const char> bytes);
  absl::Status Zero(uint64_t offset, uint64_t length);

 private:
  static constexpr size_t kLineBytes = 16;

  void Line();
  void PrintLine();
  void AppendByte(unsigned char byte);
  void AppendSign(unsigned char byte);

  const uint64_t end_, never_folded_;
  ColourText out_;
  char line_[kLineBytes] = {}, previous_[kLineBytes] = {};
  size_t filled_ = 0;
  uint64_t line_offset_ = 0;
  bool has_previous_ = false, folded_ = false;
};

}  // namespace blk
