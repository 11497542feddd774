// The small words of the data language: numbers, counts, strings, file names, scripts.
//
// Owner: the parser, one scanner per text, on its stack. Threads: none of its own.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/backends/data/parse.h"

namespace blk {

class DataScanner {
 public:
  // `source` outlives the scanner.
  explicit DataScanner(const DataText& source) : source_(source), text_(source.text) {}

  const DataText& source() const { return source_; }
  size_t position() const { return position_; }
  bool AtEnd() const { return position_ == text_.size(); }
  // The next character, or NUL at the end (which no valid text contains).
  char Peek() const { return PeekAt(0); }
  char PeekAt(size_t ahead) const {
    return position_ + ahead < text_.size() ? text_[position_ + ahead] : '\0';
  }
  void Skip(size_t characters) { position_ += characters; }
  // True, and moved over it, when the text goes on with `word`.
  bool Take(std::string_view word);
  // Moves over spaces and comments.
  void SkipBlank();

  // kInvalidArgument at the current position, in the words of DataError.
  absl::Status Fail(std::string_view what, std::string_view advice) const {
    return FailAt(position_, what, advice);
  }
  absl::Status FailAt(size_t position, std::string_view what, std::string_view advice) const;

  // A number in decimal, octal (0) or hexadecimal (0x), up to 2^64-1. Peek() must be a digit.
  absl::StatusOr<uint64_t> Number();
  // A number up to 2^63-1 with an optional suffix (b k M G T P E), spaces before it allowed. `what`
  // and `advice` are the error when there is none.
  absl::StatusOr<uint64_t> Count(std::string_view what, std::string_view advice);
  // Letters, digits and underscores; with `dash` also dashes. Perhaps empty.
  std::string_view Word(bool dash);
  // After the opening quote: the string up to the closing one, escapes replaced.
  absl::StatusOr<std::string> String();
  // After '<': everything up to a space or one of `*[)`.
  absl::StatusOr<std::string> FileName();
  // After "<(": everything up to the matching parenthesis.
  absl::StatusOr<std::string> Script();

 private:
  absl::Status Escape(std::string& out);
  absl::Status Unicode(size_t digits, std::string& out);

  const DataText& source_;
  std::string_view text_;
  size_t position_ = 0;
};

}  // namespace blk
