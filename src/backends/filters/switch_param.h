#pragma once
// A switch that is on, off, or on while a file exists: `true`, `false` or an absolute path. The
// type of parameters such as cow-on-read. Any thread.
#include <unistd.h>

#include <string>

#include "src/core/param.h"

namespace blk {

struct SwitchParam {
  bool always = false;
  std::string while_file = {};  // a path; empty: `always` says it

  bool on() const { return while_file.empty() ? always : access(while_file.c_str(), F_OK) == 0; }
  bool never() const { return while_file.empty() && !always; }
};

template <>
struct ParamValue<SwitchParam> {
  static constexpr std::string_view kType = "switch", kWord = "BOOL|/PATH";
  static absl::StatusOr<SwitchParam> Parse(std::string_view text) {
    if (!text.empty() && text[0] == '/') return SwitchParam{false, std::string(text)};
    BLK_ASSIGN_OR_RETURN(bool always, ParseBool(text));
    return SwitchParam{always};
  }
  static std::string Format(const SwitchParam& value) {
    return !value.while_file.empty() ? value.while_file : value.always ? "true" : "false";
  }
};

}  // namespace blk
