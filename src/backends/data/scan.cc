#include "src/backends/data/scan.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "src/core/error.h"

namespace blk {
namespace {

// As much of the text as an error message quotes.
constexpr size_t kQuoteCharsMax = 24;

int DigitValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  const char lower = absl::ascii_tolower(c);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : 99;
}

// The power of two that a suffix stands for; -1 when the letter is none.
int SuffixShift(char c) {
  constexpr std::string_view kSuffixes = "bkmgtpe";
  const size_t index = kSuffixes.find(absl::ascii_tolower(c));
  return index == std::string_view::npos || c == '\0' ? -1 : static_cast<int>(index) * 10;
}

void AppendUtf8(uint32_t code, std::string& out) {
  auto put = [&](uint32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6);
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

}  // namespace

absl::Status DataError(absl::StatusCode code, const DataText& source, size_t position,
                       std::string_view what, std::string_view advice) {
  const std::string_view text = source.text;
  std::string where = absl::StrCat(" at offset ", position);
  if (!source.variable.empty()) absl::StrAppend(&where, " of $", source.variable);
  if (position < text.size()) {
    const std::string_view piece = text.substr(position, kQuoteCharsMax);
    absl::StrAppend(&where, " near `", absl::CHexEscape(piece),
                    position + piece.size() < text.size() ? "...`" : "`");
  } else {
    absl::StrAppend(&where, " (the end)");
  }
  return absl::Status(code, absl::StrCat(what, where, ": ", advice));
}

bool DataScanner::Take(std::string_view word) {
  if (text_.substr(position_, word.size()) != word) return false;
  position_ += word.size();
  return true;
}

void DataScanner::SkipBlank() {
  while (!AtEnd()) {
    if (Peek() == '#') {
      position_ = std::min(text_.find('\n', position_), text_.size());
    } else if (absl::ascii_isspace(Peek())) {
      ++position_;
    } else {
      return;
    }
  }
}

absl::Status DataScanner::FailAt(size_t position, std::string_view what,
                                 std::string_view advice) const {
  return DataError(absl::StatusCode::kInvalidArgument, source_, position, what, advice);
}

absl::StatusOr<uint64_t> DataScanner::Number() {
  const size_t start = position_;
  unsigned base = 10;
  if (Peek() == '0') {
    base = absl::ascii_tolower(PeekAt(1)) == 'x' ? 16 : 8;
    if (base == 16) Skip(2);
  }
  const size_t digits_start = position_;
  uint64_t value = 0;
  for (; DigitValue(Peek()) < static_cast<int>(base); Skip(1)) {
    const uint64_t digit = DigitValue(Peek());
    if (value > (std::numeric_limits<uint64_t>::max() - digit) / base) {
      return FailAt(start, "number out of range", "the largest is 2^64-1");
    }
    value = value * base + digit;
  }
  if (position_ == digits_start) {
    return FailAt(start, "data parameter: 0x without digits",
                  "write a hexadecimal number such as 0x1F, or 0");
  }
  // 08 would otherwise be read as the two bytes 0 and 8.
  if (base == 8 && absl::ascii_isdigit(Peek())) {
    return FailAt(start, "data parameter: not an octal number",
                  "a number that starts with 0 is octal; leave the 0 out, or write 0x before it");
  }
  return value;
}

absl::StatusOr<uint64_t> DataScanner::Count(std::string_view what, std::string_view advice) {
  while (absl::ascii_isspace(Peek())) Skip(1);
  const size_t start = position_;
  if (!absl::ascii_isdigit(Peek())) return FailAt(start, what, advice);
  BLK_ASSIGN_OR_RETURN(uint64_t value, Number());
  const int shift = SuffixShift(Peek());
  constexpr uint64_t kMax = std::numeric_limits<int64_t>::max();
  if (shift >= 0 && !absl::ascii_isalnum(PeekAt(1)) && PeekAt(1) != '_') {
    Skip(1);
    value = value > kMax >> shift ? kMax + 1 : value << shift;
  }
  if (value > kMax) {
    return FailAt(start, "number out of range",
                  "a size or count is at most 2^63-1 (just under 8E)");
  }
  return value;
}

std::string_view DataScanner::Word(bool dash) {
  const size_t start = position_;
  while (absl::ascii_isalnum(Peek()) || Peek() == '_' || (dash && Peek() == '-')) Skip(1);
  return text_.substr(start, position_ - start);
}

absl::StatusOr<std::string> DataScanner::String() {
  const size_t start = position_ - 1;
  std::string out;
  while (!AtEnd() && Peek() != '"') {
    if (Peek() == '\\') {
      BLK_RETURN_IF_ERROR(Escape(out));
    } else {
      out.push_back(Peek());
      Skip(1);
    }
  }
  if (AtEnd()) {
    return FailAt(start, "data parameter: unterminated string",
                  "end it with \" (and write a \" inside it as \\\")");
  }
  Skip(1);
  return out;
}

// The escapes of C strings. A backslash before any other character stands for that character.
absl::Status DataScanner::Escape(std::string& out) {
  constexpr std::string_view kLetters = "abfnrtv";
  constexpr std::string_view kMeanings = "\a\b\f\n\r\t\v";
  const size_t start = position_;
  Skip(1);
  if (AtEnd()) return absl::OkStatus();  // The caller says that the string has no end.
  const char c = Peek();
  Skip(1);
  if (const size_t index = kLetters.find(c); index != std::string_view::npos) {
    out.push_back(kMeanings[index]);
  } else if (c == 'x') {
    if (DigitValue(Peek()) >= 16 || DigitValue(PeekAt(1)) >= 16) {
      return FailAt(start, "data: \\xNN must be followed by exactly two hexadecimal characters",
                    "write for example \\x0f");
    }
    out.push_back(static_cast<char>(DigitValue(Peek()) * 16 + DigitValue(PeekAt(1))));
    Skip(2);
  } else if (c == 'u' || c == 'U') {
    return Unicode(c == 'u' ? 4 : 8, out);
  } else if (absl::ascii_isdigit(c)) {
    int value = DigitValue(c);
    for (int i = 0; i < 2 && DigitValue(Peek()) < 8 && value < 8 * 8; ++i, Skip(1)) {
      value = value * 8 + DigitValue(Peek());
    }
    if (c >= '8' || value > 255) {
      return FailAt(start, "data: \\NNN must be an octal number from 0 to 377",
                    "write for example \\101, or \\x41");
    }
    out.push_back(static_cast<char>(value));
  } else {
    out.push_back(c);
  }
  return absl::OkStatus();
}

absl::Status DataScanner::Unicode(size_t digits, std::string& out) {
  const size_t start = position_ - 2;
  uint32_t code = 0;
  for (size_t i = 0; i < digits; ++i, Skip(1)) {
    if (DigitValue(Peek()) >= 16 || code > 0x10FFFF) {
      code = 0x110000;
      break;
    }
    code = code * 16 + DigitValue(Peek());
  }
  if (code > 0x10FFFF || (code >= 0xD800 && code < 0xE000)) {
    return FailAt(start, "data: not a Unicode character",
                  "write \\u and four or \\U and eight hexadecimal digits, such as \\u00e9");
  }
  AppendUtf8(code, out);
  return absl::OkStatus();
}

absl::StatusOr<std::string> DataScanner::FileName() {
  const size_t start = position_;
  const size_t end = std::min(text_.find_first_of(" \t\n\r\f\v*[)", start), text_.size());
  if (end == start) {
    return FailAt(start - 1, "data parameter <FILE not a filename",
                  "write the name right after <, without quotes and spaces");
  }
  position_ = end;
  return std::string(text_.substr(start, end - start));
}

absl::StatusOr<std::string> DataScanner::Script() {
  const size_t start = position_;
  for (int depth = 1; !AtEnd(); Skip(1)) {
    if (Peek() == '(') ++depth;
    if (Peek() == ')' && --depth == 0) {
      std::string script(text_.substr(start, position_ - start));
      Skip(1);
      return script;
    }
  }
  return FailAt(start - 2, "data parameter: unmatched '(' of a <(SCRIPT)",
                "close it with ); every ( in a script, quoted or not, needs its )");
}

}  // namespace blk
