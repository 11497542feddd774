// The grammar: what is refused, with which words and where. What is accepted is tested by its
// value.
#include <map>
#include <string>

#include "absl/strings/str_cat.h"
#include "doctest/doctest.h"
#include "src/backends/data/parse.h"

namespace blk {
namespace {

using Kind = DataExpression::Kind;

absl::StatusOr<DataProgram> Parse(std::string_view text,
                                  const std::map<std::string, std::string>& variables = {},
                                  const DataParseLimits& limits = {}) {
  return ParseData(
      text,
      [&](std::string_view name) -> std::optional<std::string> {
        auto found = variables.find(std::string(name));
        if (found == variables.end()) return std::nullopt;
        return found->second;
      },
      limits);
}

std::string Error(std::string_view text, const std::map<std::string, std::string>& variables = {},
                  const DataParseLimits& limits = {}) {
  auto program = Parse(text, variables, limits);
  if (program.ok()) return "accepted";
  CHECK(program.status().code() == absl::StatusCode::kInvalidArgument);
  return std::string(program.status().message());
}

bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

TEST_CASE("an error says what, where and what to do") {
  CHECK(Error("0 1 256 3") ==
        "data parameter BYTE must be in the range 0..255 at offset 4 near `256 3`: use le16:, "
        "le32:, le64: or be16: and its like for larger numbers");
  CHECK(Error("1 2 (3 4") ==
        "unmatched '(' in data string at offset 4 near `(3 4`: close it with )");
  CHECK(Error("1*") ==
        "*N not numeric at offset 2 (the end): write a number after *, such as "
        "0x55*512");
  CHECK(Contains(Error("1 $x 2", {{"x", "5 ) 5"}}),
                 "unmatched ')' in data string at offset 2 of $x near `) 5`"));
}

TEST_CASE("every malformed text is refused in the words that scripts know") {
  const struct {
    const char* text;
    const char* part;
  } kCases[] = {
      {"0xfg", "data parameter: parsing error at offset 3"},
      {"+1", "data parameter: parsing error at offset 0"},
      {"1,2", "data parameter: parsing error at offset 1"},
      {"1M", "data parameter: parsing error at offset 1"},
      {"1]", "data parameter: parsing error at offset 1"},
      {"08", "not an octal number at offset 0"},
      {"0x", "0x without digits at offset 0"},
      {"-1", "parsing error at offset 0"},
      {"1 - > \\a", "parsing error at offset 2"},
      {"1 -> a", "parsing error at offset 5"},
      {"1 -> \\", "parsing error at offset 5"},
      {"\\", "parsing error at offset 0"},
      {"\\nope", "\\nope not defined at offset 0"},
      {"(1 -> \\x) \\x", "\\x not defined at offset 10"},
      {"\\x 1 -> \\x", "\\x not defined at offset 0"},
      {"le24:1", "expected \"le16/32/64:\" or \"be16/32/64:\" at offset 0"},
      {"be16", "expected \"le16/32/64:\" or \"be16/32/64:\" at offset 0"},
      {"le16:65536", "could not parse number: 65536 is out of range at offset 0"},
      {"be32:0x100000000", "is out of range at offset 0"},
      {"le64:18446744073709551616", "number out of range at offset 5"},
      {"le16:-1", "negative numbers are not allowed at offset 5"},
      {"le16: 1", "empty string where we expected a number at offset 5"},
      {"*3", "*N must follow an expression at offset 0"},
      {"(*3)", "*N must follow an expression at offset 1"},
      {"[:1]", "[N:M] must follow an expression at offset 0"},
      {"-> \\x", "-> must follow an expression at offset 0"},
      {"@4*2", "*N cannot be applied to this type of expression at offset 2"},
      {"@4[:1]", "[N:M] cannot be applied to this type of expression at offset 2"},
      {"@4 -> \\x", "-> cannot be applied to this type of expression at offset 3"},
      {"2 1 -> \\x *2", "*N cannot be applied to this type of expression at offset 10"},
      {"1*x", "*N not numeric at offset 2"},
      {"1*-1", "*N not numeric at offset 2"},
      {"1*9223372036854775808", "number out of range at offset 2"},
      {"1*8E", "number out of range at offset 2"},
      {"1[0]", "enclosed pattern (...)[N:M] not numeric at offset 1"},
      {"1[0:1", "enclosed pattern (...)[N:M] not numeric at offset 1"},
      {"1[-1:]", "enclosed pattern (...)[N:M] not numeric at offset 2"},
      {"1[2:1]", "[N:M] does not describe a valid slice at offset 1"},
      {"@-x", "after @- must not be negative and must be a number at offset 2"},
      {"@+-5", "after @+ must not be negative"},
      {"@^-5", "after @^ must not be negative"},
      {"@", "@OFFSET must not be negative and must be a number at offset 1 (the end)"},
      {"@^3", "data parameter @^3 must be a power of 2 at offset 0"},
      {"@^0", "data parameter @^0 must be a power of 2 at offset 0"},
      {"\"abc", "data parameter: unterminated string at offset 0"},
      {"\"abc\\", "data parameter: unterminated string at offset 0"},
      {"\"\\x4\"", "\\xNN must be followed by exactly two hexadecimal characters at offset 1"},
      {"\"\\400\"", "\\NNN must be an octal number from 0 to 377 at offset 1"},
      {"\"\\8\"", "\\NNN must be an octal number from 0 to 377 at offset 1"},
      {"\"\\ud800\"", "not a Unicode character at offset 1"},
      {"\"\\u12\"", "not a Unicode character at offset 1"},
      {"<", "data parameter <FILE not a filename at offset 0"},
      {"< f", "data parameter <FILE not a filename at offset 0"},
      {"<(echo (hi)", "unmatched '(' of a <(SCRIPT) at offset 0"},
      {"<f)", "unmatched ')' in data string at offset 2"},
      {"$", "parsing error at offset 0"},
      {"$1", "parsing error at offset 0"},
      {"${x}", "parsing error at offset 0"},
      {"$nope", "$nope: variable not found at offset 0"},
  };
  for (const auto& c : kCases) {
    CAPTURE(c.text);
    const std::string error = Error(c.text);
    CHECK_MESSAGE(Contains(error, c.part), error);
  }
}

TEST_CASE("variables: a circle is refused, and a name defined in one is gone after it") {
  CHECK(Contains(Error("$a", {{"a", "1 $b"}, {"b", "$a"}}),
                 "$a: variable is used in its own value at offset 0 of $b near `$a`: break the "
                 "circle $a -> $b -> $a"));
  CHECK(Error("$a $a", {{"a", "1"}}) == "accepted");
  CHECK(Error("1 -> \\x $a", {{"a", "\\x"}}) == "accepted");
  CHECK(Contains(Error("$a \\x", {{"a", "1 -> \\x"}}), "\\x not defined at offset 3"));
}

TEST_CASE("hostile texts meet a bound, not the end of the stack or of memory") {
  CHECK(Contains(Error(std::string(100'000, '(')), "nested more than 400 levels deep at offset"));
  std::string postfix = "1";
  for (int i = 0; i < 100'000; ++i) postfix += "*1";
  CHECK(Contains(Error(postfix), "nested more than 400 levels deep"));
  std::string names = "1 -> \\x ";
  for (int i = 0; i < 100'000; ++i) names += "(\\x 1) -> \\x ";
  CHECK(Contains(Error(names), "nested more than 400 levels deep"));
  // Each variable holds two of the next: 2^40 copies of the last one.
  std::map<std::string, std::string> variables{{"v40", "1"}};
  for (int i = 0; i < 40; ++i) {
    variables[absl::StrCat("v", i)] = absl::StrCat("$v", i + 1, " $v", i + 1);
  }
  CHECK(Contains(Error("$v0", variables, {.text_bytes_max = 100'000}), "longer than 100000 bytes"));
  CHECK(Contains(Error("1*1 1*1 1*1", {}, {.expressions_max = 5}), "more than 5 expressions"));
}

TEST_CASE("the tree: literals are joined, needless parentheses dropped, names replaced") {
  auto program = Parse(" 1 2 0xff 010 le16:0x4142 \"x\" # comment\n (((3))) ");
  REQUIRE(program.ok());
  REQUIRE(program->root->children.size() == 1);
  CHECK(program->root->children[0]->text ==
        "\x01\x02\xff\x08"
        "BAx\x03");
  program = Parse("(<file) -> \\f \\f[1:2K] \\f*0x10");
  REQUIRE(program.ok());
  REQUIRE(program->root->children.size() == 2);
  const DataExpression& slice = *program->root->children[0];
  CHECK(slice.kind == Kind::kSlice);
  CHECK(slice.number == 1);
  CHECK(slice.end == 2048);
  CHECK(slice.children[0]->kind == Kind::kFile);
  CHECK(slice.children[0]->shared);
  CHECK(program->root->children[1]->number == 16);
  CHECK(program->root->children[1]->children[0] == slice.children[0]);
}

TEST_CASE("counts take suffixes, bytes and hexadecimal digits do not") {
  auto program = Parse("@1 @1b @2k @0x1E @3E @+1M @-4g @^1T @010K @5P");
  REQUIRE(program.ok());
  const uint64_t expected[] = {1,
                               1,
                               2048,
                               0x1E,
                               uint64_t{3} << 60,
                               1 << 20,
                               uint64_t{4} << 30,
                               uint64_t{1} << 40,
                               8192,
                               uint64_t{5} << 50};
  REQUIRE(program->root->children.size() == 10);
  for (size_t i = 0; i < 10; ++i) CHECK(program->root->children[i]->number == expected[i]);
  // "@1le16:5" is the offset 1 and a word, not a suffix.
  CHECK(Error("@1le16:5") == "accepted");
  CHECK(Error("@1be16:5") == "accepted");
}

}  // namespace
}  // namespace blk
