#include "src/backends/script/wire.h"

#include <cerrno>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "src/core/limits.h"

namespace blk::script {
namespace {

absl::Status Garbage(std::string_view line, std::string_view what) {
  constexpr size_t kQuotedBytesMax = 80;
  return ErrnoErrorAsIs(EPROTO, absl::StrCat("it sent ", what, ": \"",
                                             absl::CHexEscape(line.substr(0, kQuotedBytesMax)),
                                             line.size() > kQuotedBytesMax ? "...\"" : "\""));
}

bool ParseAnswerKind(std::string_view word, Answer::Kind* kind) {
  if (word == "ok")
    *kind = Answer::Kind::kDone;
  else if (word == "missing")
    *kind = Answer::Kind::kMissing;
  else if (word == "false")
    *kind = Answer::Kind::kFalse;
  else if (word == "error")
    *kind = Answer::Kind::kFailed;
  else
    return false;
  return true;
}

bool ParseDemand(std::string_view word, Answer::Demand* demand) {
  if (word == "shutdown")
    *demand = Answer::Demand::kShutdown;
  else if (word == "disconnect")
    *demand = Answer::Demand::kDisconnect;
  else if (word == "disconnect-now")
    *demand = Answer::Demand::kDisconnectNow;
  else
    return false;
  return true;
}

}  // namespace

std::string EscapeArgument(std::string_view text) {
  if (text.empty()) return "-";
  std::string result;
  for (unsigned char byte : text) {
    const bool plain = byte > ' ' && byte != '%' && byte != 0x7f;
    if (plain && (byte != '-' || text.size() > 1)) {
      result.push_back(static_cast<char>(byte));
    } else {
      absl::StrAppend(&result, "%", absl::Hex(byte, absl::kZeroPad2));
    }
  }
  return result;
}

std::string RequestLine(uint64_t id, std::string_view method, uint64_t input_bytes,
                        const std::vector<std::string>& arguments) {
  std::string line = absl::StrCat(id, " ", method, " ", input_bytes);
  for (const std::string& argument : arguments)
    absl::StrAppend(&line, " ", EscapeArgument(argument));
  line.push_back('\n');
  return line;
}

absl::StatusOr<ReplyHead> ParseReplyLine(std::string_view line) {
  std::vector<std::string_view> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
  if (words.size() < 2 || words.size() > 4) return Garbage(line, "what is no reply");
  ReplyHead head;
  if (words[0] == "-") {
    if (words[1] != "debug" && words[1] != "log") return Garbage(line, "an unknown message");
    head.kind = words[1] == "debug" ? ReplyHead::Kind::kDebug : ReplyHead::Kind::kLog;
  } else if (!absl::SimpleAtoi(words[0], &head.id)) {
    return Garbage(line, "what is no reply");
  } else if (!ParseAnswerKind(words[1], &head.answer)) {
    return Garbage(line, "neither ok, missing, false nor error");
  }
  if (words.size() > 2 && !absl::SimpleAtoi(words[2], &head.payload_bytes))
    return Garbage(line, "a length that is no number");
  if (head.payload_bytes > limits::kProgramOutputBytesMax) return Garbage(line, "more than it may");
  if (words.size() > 3 &&
      (head.kind != ReplyHead::Kind::kAnswer || !ParseDemand(words[3], &head.demand)))
    return Garbage(line, "an unknown word at the end");
  return head;
}

}  // namespace blk::script
