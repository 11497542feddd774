#pragma once
// Lines of docs/exec-protocol.md, as text and as values. Pure functions; any thread.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "src/backends/script/method.h"

namespace blk::script {

inline constexpr size_t kReplyLineBytesMax = 1024;

// `ID METHOD INPUT_BYTES ARGUMENT...`, with its end of line.
std::string RequestLine(uint64_t id, std::string_view method, uint64_t input_bytes,
                        const std::vector<std::string>& arguments);

// An argument as it stands in a line: no blanks or control characters, never empty.
std::string EscapeArgument(std::string_view text);

// The first line of what a program sends.
struct ReplyHead {
  enum class Kind { kAnswer, kDebug, kLog };
  Kind kind = Kind::kAnswer;
  uint64_t id = 0;  // kAnswer
  Answer::Kind answer = Answer::Kind::kDone;
  Answer::Demand demand = Answer::Demand::kNone;
  uint64_t payload_bytes = 0;
};

// `line` without its end. Errors: EPROTO with what is wrong.
absl::StatusOr<ReplyHead> ParseReplyLine(std::string_view line);

}  // namespace blk::script
