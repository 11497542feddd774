// What `-D data.AST=1` prints.
#include <optional>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "doctest/doctest.h"
#include "src/backends/data/describe.h"

namespace blk {
namespace {

// The lines, without those further in being further in.
std::string Described(std::string_view text) {
  auto program =
      ParseData(text, [](std::string_view) { return std::optional<std::string>("7 7"); });
  REQUIRE_MESSAGE(program.ok(), program.status().ToString());
  std::vector<std::string> lines = DescribeData(*program);
  for (std::string& line : lines) line.erase(0, line.find_first_not_of(' '));
  return absl::StrJoin(lines, " ");
}

TEST_CASE("literals are joined: fills, bytes, single bytes") {
  CHECK(Described("") == "null");
  CHECK(Described("1") == "1");
  CHECK(Described("1 1 1") == "fill(1*3)");
  CHECK(Described("\"1111\" 0x31") == "fill(49*5)");
  CHECK(Described("0x31 0x32 (((0x33)))") == "\"123\"");
  CHECK(Described("2 2 2 (1 1) 3") == "( fill(2*3) fill(1*2) 3 )");
  CHECK(Described("2 2 3 1 1 1") == "( fill(2*2) \"\\x03\\x01\\x01\\x01\" )");
  CHECK(Described("\"a\\\"\\\\\\n\"") == "\"a\\\"\\\\\\x0a\"");
  CHECK(Described("$x") == "fill(7*2)");
}

TEST_CASE("repeats and slices of literals are written out while they are short") {
  CHECK(Described("(1 2 3)*0") == "null");
  CHECK(Described("(<f)*1") == "<f");
  CHECK(Described("0*1M*1M") == "fill(0*1099511627776)");
  CHECK(Described("(0x31 0x32)*2*2") == "\"12121212\"");
  CHECK(Described("(0x31 0x32)*33") == "( \"12\" ) *33");
  CHECK(Described("\"123456\"[2:4]") == "\"34\"");
  CHECK(Described("\"123456\"[5:]") == "54");
  CHECK(Described("5*6[1:3]") == "fill(5*2)");
  CHECK(Described("5*6[6:]") == "null");
  CHECK(Described("\"\"[:]") == "null");
  CHECK(Described("\"12\"[1:3]") == "( \"12\" )[1:3]");  // An error, of which others tell.
}

TEST_CASE("moves, files and scripts stay, and the parentheses of moves") {
  CHECK(Described("1 @10 2 @+3 @-1 @^8") == "( 1 @10 2 @+3 @-1 @^8 )");
  CHECK(Described("(@4 1)*3 9") == "( ( @4 1 ) *3 9 )");
  CHECK(Described("(@4 1) 9") == "( ( @4 1 ) 9 )");
  CHECK(Described("<file[2:] <(echo 1; echo)[:3]") == "( ( <file )[2:] ( <(echo 1; echo) )[0:3] )");
}

TEST_CASE("a name is what it stands for, however much that is") {
  CHECK(Described("(1 2) -> \\x \\x \\x") == "\"\\x01\\x02\\x01\\x02\"");
  std::string text = "(<f <g) -> \\a0";
  for (int i = 1; i < 60; ++i) absl::StrAppend(&text, " (\\a", i - 1, " \\a", i - 1, ") -> \\a", i);
  const std::string lines = Described(text + " \\a59");
  CHECK(lines.size() < 1'000'000);
  CHECK(lines.find("... # and more") != std::string::npos);
}

TEST_CASE("lines further in begin with spaces") {
  auto program = ParseData("(@4 1)*3", {});
  REQUIRE(program.ok());
  const std::vector<std::string> expected = {"(", "    @4", "    1", ") *3"};
  CHECK(DescribeData(*program) == expected);
}

}  // namespace
}  // namespace blk
