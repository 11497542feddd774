// A tool's command line, read into a Config by the same rows as every other parameter.
//
//   -C 4, -C4, --connections=4, --connections 4    a value
//   -f, --foreground, --foreground=no              a switch; --no-foreground is its opposite
//   -fv                                            letters run together; the last may have a value
//   --                                             only words follow
//
// Options and words mix in any order unless the syntax says otherwise. `-` alone is a word.
// Owner: core. Any thread.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "src/core/param.h"

namespace blk {

struct OptionSyntax {
  bool stop_at_word = false;  // everything from the first word on is words: `blk --version copy -h`
  bool brackets = false;      // everything between the words `[` and `]` is words: a command with
                              // options of its own
};

// Reads `args` (without the program's and the tool's name) into `config`, the Config that `rows`
// were made for, and returns the words that are no options, in order. InvalidArgument or OutOfRange
// with a message that begins with `tool`. What was read before the failure stays in `config`.
absl::StatusOr<std::vector<std::string>> ParseOptions(const ParamRows& rows, void* config,
                                                      std::string_view tool,
                                                      std::span<const std::string> args,
                                                      OptionSyntax syntax = {});

template <typename Config>
absl::StatusOr<std::vector<std::string>> ParseOptions(const ParamTable<Config>& table,
                                                      Config* config, std::string_view tool,
                                                      std::span<const std::string> args,
                                                      OptionSyntax syntax = {}) {
  return ParseOptions(static_cast<const ParamRows&>(table), static_cast<void*>(config), tool, args,
                      syntax);
}

}  // namespace blk
