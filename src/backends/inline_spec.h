// The text of an in-line spec taken apart: a disk in one word, as every tool takes it.
//
//   SPEC   = { FILTER [PARAMS] "+" } SOURCE          the leftmost filter is nearest the client
//   SOURCE = path | URI | NAME [":" VALUE] [PARAMS]
//   PARAMS = "(" [ KEY "=" VALUE { "," KEY "=" VALUE } ] ")"
//
//   memory:1T    sparse-random:1T(seed=7)    partition(partition=2)+disk.img    ./memory
//
// What SOURCE is follows from the text alone, never from which files exist or which backends are
// built in, so that a spec means the same everywhere and a misspelt name never creates a file. The
// rules, tried in this order at the beginning and after each `+`:
//   1. begins with `/` or `.`                        a path to the end, whatever it contains
//   2. begins with a known scheme and `://`          a URI to the end (unknown: an error)
//   3. has a `.` or `/` before any `:`, `(` or `+`   a path to the end: disk.img, images/disk
//   4. anything else                                 a NAME, and an error if there is none such:
//                                                    memroy, disk, c++.img
// Inside parentheses `%XX` is a byte, and `%`, `,`, `(` and `)` in a value must be written so;
// outside them `%` is a plain character. A VALUE goes to the end, but for a last pair of
// parentheses that holds nothing but KEY=VALUE: `memory:1T(a=b)` has a parameter, `data:(1 2)`
// has none.
//
// `-`, `null:` as a target and `[ COMMAND ]` belong to the tools that take them, not here.
// Owner: backends. Pure functions; any thread.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"

namespace blk {

// One filter or the source.
struct SpecWord {
  std::string name;
  std::optional<std::string> value =
      std::nullopt;  // what follows the colon; for the magic parameter
  std::vector<std::pair<std::string, std::string>> params = {};  // decoded, in order
  friend bool operator==(const SpecWord&, const SpecWord&) = default;
};

struct InlineSpec {
  enum class Form { kName, kPath, kUri };
  std::vector<SpecWord> filters;  // outermost first
  SpecWord source;  // for a path `file` with its `file`; for a URI the backend of its scheme with
                    // its `uri` or `url`
  Form form = Form::kName;
  friend bool operator==(const InlineSpec&, const InlineSpec&) = default;
};

// InvalidArgument, with the spec quoted, on text that does not follow the grammar; at most
// limits::kSpecBytesMax long. Whether names and keys exist is found out by the stack (stack.h).
absl::StatusOr<InlineSpec> ParseInlineSpec(std::string_view text);

// The spec as text that ParseInlineSpec reads back as the same.
std::string FormatInlineSpec(const InlineSpec& spec);

// Whether rule 1 or 3 makes the text a path. Other file names are written with `./` before them.
bool IsPathSpec(std::string_view text);

// A value as PARAMS hold it.
std::string EncodeSpecValue(std::string_view value);

}  // namespace blk
