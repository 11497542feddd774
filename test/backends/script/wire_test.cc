#include "src/backends/script/wire.h"

#include <doctest/doctest.h>

#include <cerrno>

namespace blk::script {
namespace {

TEST_CASE("exec lines: requests, and arguments of all kinds") {
  CHECK(RequestLine(7, "flush", 0, {"h"}) == "7 flush 0 h\n");
  CHECK(RequestLine(1, "load", 0, {}) == "1 load 0\n");
  CHECK(EscapeArgument("") == "-");
  CHECK(EscapeArgument("-") == "%2d");
  CHECK(EscapeArgument("--") == "--");
  CHECK(EscapeArgument("a b\n%\x7f") == "a%20b%0a%25%7f");
  CHECK(EscapeArgument("Gr\xc3\xb6\xc3\x9f"
                       "e") ==
        "Gr\xc3\xb6\xc3\x9f"
        "e");
}

TEST_CASE("exec lines: replies of each kind") {
  auto head = ParseReplyLine("12 ok 4096");
  REQUIRE(head.ok());
  CHECK(head->kind == ReplyHead::Kind::kAnswer);
  CHECK(head->id == 12);
  CHECK(head->answer == Answer::Kind::kDone);
  CHECK(head->payload_bytes == 4096);
  CHECK(ParseReplyLine("1 missing").value().answer == Answer::Kind::kMissing);
  CHECK(ParseReplyLine("1 false 0").value().answer == Answer::Kind::kFalse);
  head = ParseReplyLine("3 error 5 shutdown");
  REQUIRE(head.ok());
  CHECK(head->answer == Answer::Kind::kFailed);
  CHECK(head->demand == Answer::Demand::kShutdown);
  CHECK(ParseReplyLine("1 ok 0 disconnect").value().demand == Answer::Demand::kDisconnect);
  CHECK(ParseReplyLine("1 ok 0 disconnect-now").value().demand == Answer::Demand::kDisconnectNow);
  CHECK(ParseReplyLine("- debug 3").value().kind == ReplyHead::Kind::kDebug);
  CHECK(ParseReplyLine("- log 3").value().kind == ReplyHead::Kind::kLog);
}

TEST_CASE("exec lines: what is no reply") {
  for (const char* line : {"", "1", "ok 1", "x ok 0", "-1 ok 0", "1 okay 0", "1 ok x", "1 ok -1",
                           "1 ok 0 quit", "1 ok 0 shutdown now", "- warn 3", "- debug 3 shutdown",
                           "18446744073709551616 ok 0", "1 ok 67108865"}) {
    CAPTURE(line);
    CHECK(ErrnoOf(ParseReplyLine(line).status()) == EPROTO);
  }
  CHECK(ParseReplyLine("1 ok 67108864").ok());
}

}  // namespace
}  // namespace blk::script
