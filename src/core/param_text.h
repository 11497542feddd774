// Parameter rows as text: for people (help, man pages), for shells (completion) and for programs
// (JSON, fuzz dictionaries). Whatever documentation of a parameter exists, it is printed from here,
// so that it cannot differ from what is read.
//
// Owner: core. Pure functions; any thread. Hidden rows are in none of these.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "src/core/param.h"

namespace blk {

using ParamStyle = ParamReader::Style;

// `text` broken at spaces into lines of at most `width` characters, each begun with `indent` spaces
// and ended by a newline. Lines of `text` that begin with a space are kept as they are.
std::string WrapText(std::string_view text, size_t indent, size_t width = 80);

// How the row is written: `size=SIZE`, `[size=]SIZE` (magic), `-C, --connections=N`,
// `--[no-]flush`.
std::string ParamSyntax(const ParamRow& row, ParamStyle style);

// What help says of it: its line of help, then required, bounds, default and the like in
// parentheses.
std::string ParamDescription(const ParamRow& row, ParamStyle style);

// A two-column table of all rows, indented by two; "" if there are none.
std::string ParamHelp(const ParamRows& rows, ParamStyle style);

// The rows in one line of usage: `[size=]SIZE [allocator=TEXT]`.
std::string ParamUsage(const ParamRows& rows);

// The same rows as items of a man page (the man(7) macros).
std::string ParamMan(const ParamRows& rows, ParamStyle style);

// A line a completion: the text to insert, a tab, its help. `size=`, `--request-size=`, `-f`; and
// `cache=none` where values are known.
std::vector<std::string> ParamCompletions(const ParamRows& rows, ParamStyle style);

// A JSON array with an object a row.
std::string ParamJson(const ParamRows& rows);

// Lines of a libFuzzer dictionary: every key and every known value.
std::string ParamDictionary(const ParamRows& rows);

// `text` in quotes as JSON wants it. Bytes that are not UTF-8 become U+FFFD.
std::string JsonQuote(std::string_view text);

// `text` for a line of a man page: backslashes and hyphens as troff wants them, no line begun with
// a request.
std::string ManQuote(std::string_view text);

}  // namespace blk
