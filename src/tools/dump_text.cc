#include "src/tools/dump_text.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "src/core/error.h"

namespace blk {

absl::Status DumpText::Data(uint64_t offset, std::span<const char> bytes) {
  while (!bytes.empty()) {
    if (filled_ == 0) {
      line_offset_ = offset;
      std::memset(line_, 0, kLineBytes);  // what a short last line is compared as
    }
    size_t step = std::min(kLineBytes - filled_, bytes.size());
    std::memcpy(line_ + filled_, bytes.data(), step);
    filled_ += step;
    offset += step;
    bytes = bytes.subspan(step);
    if (filled_ == kLineBytes || offset == end_) Line();
  }
  std::fwrite(out_.text().data(), 1, out_.text().size(), stdout);
  out_.text().clear();
  return std::ferror(stdout) ? ErrnoError(EPIPE, "cannot write to standard output")
                             : absl::OkStatus();
}

absl::Status DumpText::Zero(uint64_t offset, uint64_t length) {
  constexpr char kZeroes[4 * kLineBytes] = {};
  // The ends of the run as data; the whole lines between them are equal to their neighbours.
  uint64_t head = std::min<uint64_t>(length, 2 * kLineBytes);
  if (absl::Status status = Data(offset, {kZeroes, head}); !status.ok()) return status;
  uint64_t left = length - head;
  uint64_t skipped = left > 2 * kLineBytes ? (left - 2 * kLineBytes) / kLineBytes * kLineBytes : 0;
  line_offset_ += skipped;
  return left ? Data(offset + head + skipped, {kZeroes, left - skipped}) : absl::OkStatus();
}

void DumpText::Line() {
  bool last = line_offset_ + kLineBytes >= never_folded_;
  if (has_previous_ && !last && std::memcmp(line_, previous_, kLineBytes) == 0) {
    if (!folded_) out_.text() += out_.on() ? "☆\n" : "*\n";
    folded_ = true;
  } else {
    PrintLine();
    folded_ = false;
  }
  std::memcpy(previous_, line_, kLineBytes);
  has_previous_ = true;
  filled_ = 0;
}

void DumpText::PrintLine() {
  const std::string_view bar = out_.on() ? "│" : "|";
  out_.Set(colour::kGreen);
  absl::StrAppendFormat(&out_.text(), "%010x", line_offset_);
  out_.Set(colour::kGrey);
  out_.text() += ": ";
  for (size_t i = 0; i < kLineBytes; ++i) {
    if (i == filled_) out_.Set(colour::kGrey);
    if (i < filled_) {
      AppendByte(line_[i]);
    } else {
      out_.text() += "   ";
    }
    if (i == 7) out_.text() += ' ';
  }
  if (filled_ == kLineBytes) out_.Set(colour::kGrey);
  out_.text() += bar;
  for (size_t i = 0; i < filled_; ++i) AppendSign(line_[i]);
  out_.Set(colour::kGrey);
  out_.text().append(kLineBytes - filled_, ' ');
  out_.text().append(bar).append("\n");
  out_.Restore();
}

void DumpText::AppendByte(unsigned char byte) {
  out_.Set(byte ? colour::kBrightBlue : colour::kGrey);
  absl::StrAppendFormat(&out_.text(), "%02x ", byte);
}

void DumpText::AppendSign(unsigned char byte) {
  const bool printable = absl::ascii_isprint(byte);
  out_.Set(absl::ascii_isalnum(byte) ? colour::kBrightRed
           : printable               ? colour::kBrightMagenta
                                     : colour::kGrey);
  if (printable) {
    out_.text() += static_cast<char>(byte);
  } else {
    out_.text() += out_.on() ? "·" : ".";
  }
}

}  // namespace blk
