// The expression language of `blk serve data`, from text to a tree. The language is the one that
// nbdkit-data-plugin(1) documents; this parser reads no file, runs nothing and knows no offsets.
//
// Beyond that language: sizes and counts take suffixes (`@1M`, `*4K`, `[:1G]`), strings take octal
// and Unicode escapes, le16:WORD ends where the word ends and needs no space after it.
//
// Owner: the program owns its tree and the texts that errors quote. Threads: a finished program is
// never changed; any thread may evaluate it.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace blk {

// Bounds on what a text may ask of the parser; a stranger's text cannot make it explode.
struct DataParseLimits {
  uint64_t text_bytes_max = 64 << 20;  // All texts together, every use of a variable counted again.
  uint64_t expressions_max = 4 << 20;
  int depth_max = 400;  // Of the tree, through names, and so of the recursion over it.
};

struct DataExpression;
using DataExpressionPtr = std::shared_ptr<DataExpression>;

// A text that was parsed: the expression itself, or the value of a variable.
struct DataText {
  std::string variable;  // Empty for the expression itself.
  std::string text;
};

struct DataExpression {
  enum class Kind {
    kBytes,    // text: the bytes.
    kSeek,     // number: @OFFSET
    kForward,  // number: @+N
    kBack,     // number: @-N
    kAlign,    // number: @^ALIGNMENT, a power of two
    kFile,     // text: the name.
    kScript,   // text: what goes between the parentheses.
    kList,     // children, in a scope of offsets of their own.
    kRepeat,   // children[0], number times.
    kSlice,    // children[0], bytes [number, end); end is kDataEnd when it was left out.
  };
  Kind kind;
  uint64_t number = 0;
  uint64_t end = 0;
  int depth = 1;        // 1 + that of the deepest child.
  bool shared = false;  // A name makes it part of the image more than once, perhaps.
  std::string text = {};
  std::vector<DataExpressionPtr> children = {};
  const DataText* source = nullptr;  // Where it was written; owned by the program.
  size_t position = 0;

  // Moves the offset instead of writing.
  bool IsMove() const { return kind >= Kind::kSeek && kind <= Kind::kAlign; }
};

inline constexpr uint64_t kDataEnd = ~uint64_t{0};

// A parsed expression. Names are resolved: a use of \NAME is the tree it stands for.
struct DataProgram {
  DataExpressionPtr root;  // Always a list.
  std::deque<DataText> texts;
};

// The value of a variable, if there is such a variable.
using DataVariables = std::function<std::optional<std::string>(std::string_view name)>;

// Parses `text`. `variables` is asked for each $VAR, in the order of the text. kInvalidArgument
// says what is wrong, at which offset (of which variable) and what to write instead.
absl::StatusOr<DataProgram> ParseData(std::string_view text, const DataVariables& variables,
                                      const DataParseLimits& limits = {});

// "WHAT at offset 7 near "2*x": ADVICE". For errors about the piece of text at `position`.
absl::Status DataError(absl::StatusCode code, const DataText& source, size_t position,
                       std::string_view what, std::string_view advice);

}  // namespace blk
