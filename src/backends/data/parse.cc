#include "src/backends/data/parse.h"

#include <algorithm>
#include <limits>
#include <map>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "src/backends/data/scan.h"
#include "src/core/error.h"

namespace blk {
namespace {

using Kind = DataExpression::Kind;

// A name was perhaps used for this tree: what it reads must be kept for the next use.
void MarkShared(DataExpression& expression) {
  if (std::exchange(expression.shared, true)) return;
  for (const auto& child : expression.children) MarkShared(*child);
}

class Parser {
 public:
  Parser(DataProgram& program, const DataVariables& variables, const DataParseLimits& limits)
      : program_(program), variables_(variables), limits_(limits) {}

  // Parses one text, in a scope inside `outer`, as a list.
  absl::StatusOr<DataExpressionPtr> ParseText(std::string variable, std::string_view text);

 private:
  // The names defined between one pair of parentheses, and the expressions so far.
  struct Scope {
    std::vector<DataExpressionPtr> items;
    std::map<std::string, DataExpressionPtr, std::less<>> names;
    bool after_definition = false;
  };

  absl::StatusOr<DataExpressionPtr> ParseList(DataScanner& scan, size_t open, bool nested);
  absl::Status ParseItem(DataScanner& scan);
  absl::Status ParseMove(DataScanner& scan);
  absl::Status ParseByte(DataScanner& scan);
  absl::Status ParseWord(DataScanner& scan);
  absl::Status ParseInput(DataScanner& scan);
  absl::Status ParseString(DataScanner& scan);
  absl::Status ParseNested(DataScanner& scan);
  absl::Status ParseVariable(DataScanner& scan);
  absl::Status ParseName(DataScanner& scan);
  absl::Status ParseRepeat(DataScanner& scan);
  absl::Status ParseSlice(DataScanner& scan);
  absl::Status ParseDefinition(DataScanner& scan);

  absl::Status CheckOperand(const DataScanner& scan, std::string_view operation);
  absl::Status Add(const DataScanner& scan, size_t position, DataExpression expression);
  absl::Status Wrap(const DataScanner& scan, size_t position, Kind kind, uint64_t number,
                    uint64_t end);
  absl::StatusOr<DataExpressionPtr> Finish(const DataScanner& scan, size_t open);
  absl::Status TooDeep(const DataScanner& scan, size_t position) const;
  Scope& scope() { return scopes_.back(); }

  DataProgram& program_;
  const DataVariables& variables_;
  const DataParseLimits& limits_;
  std::vector<Scope> scopes_;
  std::vector<std::string> open_variables_;
  uint64_t text_bytes_ = 0;
  uint64_t expressions_ = 0;
};

absl::StatusOr<DataExpressionPtr> Parser::ParseText(std::string variable, std::string_view text) {
  text_bytes_ += text.size();
  if (text_bytes_ > limits_.text_bytes_max) {
    return absl::InvalidArgumentError(
        absl::StrCat("the data expression and its variables are longer than ",
                     limits_.text_bytes_max, " bytes: use a file (<FILE) for so much data"));
  }
  const DataText& source =
      program_.texts.emplace_back(DataText{std::move(variable), std::string(text)});
  DataScanner scan(source);
  return ParseList(scan, 0, false);
}

// One scope, up to its closing parenthesis (nested) or to the end of the text.
absl::StatusOr<DataExpressionPtr> Parser::ParseList(DataScanner& scan, size_t open, bool nested) {
  if (scopes_.size() >= static_cast<size_t>(limits_.depth_max)) return TooDeep(scan, open);
  scopes_.emplace_back();
  for (;;) {
    scan.SkipBlank();
    if (scan.AtEnd()) {
      if (!nested) break;
      return scan.FailAt(open, "unmatched '(' in data string", "close it with )");
    }
    if (nested && scan.Take(")")) break;
    BLK_RETURN_IF_ERROR(ParseItem(scan));
  }
  return Finish(scan, open);
}

absl::Status Parser::ParseItem(DataScanner& scan) {
  switch (const char c = scan.Peek()) {
    case '@':
      return ParseMove(scan);
    case '<':
      return ParseInput(scan);
    case '"':
      return ParseString(scan);
    case '(':
      return ParseNested(scan);
    case '$':
      return ParseVariable(scan);
    case '\\':
      return ParseName(scan);
    case '*':
      return ParseRepeat(scan);
    case '[':
      return ParseSlice(scan);
    case ')':
      return scan.Fail("unmatched ')' in data string", "remove it, or open it with ( before");
    default:
      if (absl::ascii_isdigit(c)) return ParseByte(scan);
      if (c == 'l' || c == 'b') return ParseWord(scan);
      if (c == '-' && scan.PeekAt(1) == '>') return ParseDefinition(scan);
      return scan.Fail("data parameter: parsing error",
                       "expected a byte, a \"string\", le16: and its like, @OFFSET, <FILE, "
                       "<(SCRIPT), ( ), *N, [N:M], -> \\NAME, \\NAME or $VAR");
  }
}

absl::Status Parser::ParseMove(DataScanner& scan) {
  const size_t start = scan.position();
  scan.Skip(1);
  Kind kind = Kind::kSeek;
  std::string_view what = "data parameter @OFFSET must not be negative and must be a number";
  if (scan.Take("+")) {
    kind = Kind::kForward;
    what = "data parameter after @+ must not be negative and must be a number";
  } else if (scan.Take("-")) {
    kind = Kind::kBack;
    what = "data parameter after @- must not be negative and must be a number";
  } else if (scan.Take("^")) {
    kind = Kind::kAlign;
    what = "data parameter after @^ must not be negative and must be a number";
  }
  BLK_ASSIGN_OR_RETURN(auto number,
                       scan.Count(what, "write for example @512, @0x1fe, @+16, @-2 or @^4K"));
  if (kind == Kind::kAlign && (number == 0 || (number & (number - 1)) != 0)) {
    return scan.FailAt(start, absl::StrCat("data parameter @^", number, " must be a power of 2"),
                       "write for example @^512");
  }
  return Add(scan, start, {.kind = kind, .number = number});
}

absl::Status Parser::ParseByte(DataScanner& scan) {
  const size_t start = scan.position();
  BLK_ASSIGN_OR_RETURN(auto number, scan.Number());
  if (number > 255) {
    return scan.FailAt(start, "data parameter BYTE must be in the range 0..255",
                       "use le16:, le32:, le64: or be16: and its like for larger numbers");
  }
  return Add(scan, start,
             {.kind = Kind::kBytes, .text = std::string(1, static_cast<char>(number))});
}

// le16:WORD and the five others.
absl::Status Parser::ParseWord(DataScanner& scan) {
  const size_t start = scan.position();
  const bool little = scan.Peek() == 'l';
  scan.Skip(1);
  int bits = 0;
  if (scan.Take("e16:")) bits = 16;
  if (bits == 0 && scan.Take("e32:")) bits = 32;
  if (bits == 0 && scan.Take("e64:")) bits = 64;
  if (bits == 0) {
    return scan.FailAt(start, "data parameter: expected \"le16/32/64:\" or \"be16/32/64:\"",
                       "write for example le32:0x1234");
  }
  constexpr std::string_view kAdvice = "write a number right after the colon, such as le16:0xaa55";
  if (!absl::ascii_isdigit(scan.Peek())) {
    return scan.Fail(scan.Peek() == '-' ? "data: negative numbers are not allowed"
                                        : "data: empty string where we expected a number",
                     kAdvice);
  }
  BLK_ASSIGN_OR_RETURN(auto number, scan.Number());
  if (bits < 64 && number >> bits != 0) {
    return scan.FailAt(
        start, absl::StrCat("data: could not parse number: ", number, " is out of range"),
        absl::StrCat("the largest for ", bits, " bits is ", (uint64_t{1} << bits) - 1));
  }
  std::string bytes;
  for (int shift = 0; shift < bits; shift += 8) {
    bytes.push_back(static_cast<char>(number >> shift));
  }
  if (!little) std::reverse(bytes.begin(), bytes.end());
  return Add(scan, start, {.kind = Kind::kBytes, .text = std::move(bytes)});
}

absl::Status Parser::ParseInput(DataScanner& scan) {
  const size_t start = scan.position();
  scan.Skip(1);
  const bool is_script = scan.Take("(");
  BLK_ASSIGN_OR_RETURN(auto text, is_script ? scan.Script() : scan.FileName());
  return Add(scan, start,
             {.kind = is_script ? Kind::kScript : Kind::kFile, .text = std::move(text)});
}

absl::Status Parser::ParseString(DataScanner& scan) {
  const size_t start = scan.position();
  scan.Skip(1);
  BLK_ASSIGN_OR_RETURN(auto text, scan.String());
  return Add(scan, start, {.kind = Kind::kBytes, .text = std::move(text)});
}

absl::Status Parser::ParseNested(DataScanner& scan) {
  const size_t start = scan.position();
  scan.Skip(1);
  BLK_ASSIGN_OR_RETURN(auto list, ParseList(scan, start, true));
  scope().after_definition = false;
  scope().items.push_back(std::move(list));
  return absl::OkStatus();
}

absl::Status Parser::ParseVariable(DataScanner& scan) {
  const size_t start = scan.position();
  scan.Skip(1);
  const std::string name(absl::ascii_isdigit(scan.Peek()) ? std::string_view() : scan.Word(false));
  if (name.empty()) {
    return scan.FailAt(
        start, "data parameter: parsing error",
        "write $VAR with letters, digits and underscores, not starting with a digit");
  }
  if (std::find(open_variables_.begin(), open_variables_.end(), name) != open_variables_.end()) {
    return scan.FailAt(
        start, absl::StrCat("$", name, ": variable is used in its own value"),
        absl::StrCat("break the circle $", absl::StrJoin(open_variables_, " -> $"), " -> $", name));
  }
  const std::optional<std::string> value = variables_ ? variables_(name) : std::nullopt;
  if (!value.has_value()) {
    return scan.FailAt(start, absl::StrCat("$", name, ": variable not found"),
                       absl::StrCat("give ", name,
                                    "=EXPRESSION as a parameter, or set it in the "
                                    "environment"));
  }
  open_variables_.push_back(name);
  BLK_ASSIGN_OR_RETURN(auto list, ParseText(name, *value));
  open_variables_.pop_back();
  scope().after_definition = false;
  scope().items.push_back(std::move(list));
  return absl::OkStatus();
}

absl::Status Parser::ParseName(DataScanner& scan) {
  const size_t start = scan.position();
  scan.Skip(1);
  const std::string_view name = scan.Word(true);
  if (name.empty()) {
    return scan.FailAt(start, "data parameter: parsing error",
                       "write a name of letters, digits, - and _ after the backslash");
  }
  for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
    if (auto found = scope->names.find(name); found != scope->names.end()) {
      MarkShared(*found->second);
      scopes_.back().after_definition = false;
      scopes_.back().items.push_back(found->second);
      return absl::OkStatus();
    }
  }
  return scan.FailAt(
      start, absl::StrCat("\\", name, " not defined"),
      absl::StrCat("define it before, in this scope or around it: EXPRESSION -> \\", name));
}

absl::Status Parser::ParseRepeat(DataScanner& scan) {
  const size_t start = scan.position();
  BLK_RETURN_IF_ERROR(CheckOperand(scan, "*N"));
  scan.Skip(1);
  BLK_ASSIGN_OR_RETURN(auto count,
                       scan.Count("*N not numeric", "write a number after *, such as 0x55*512"));
  return Wrap(scan, start, Kind::kRepeat, count, 0);
}

absl::Status Parser::ParseSlice(DataScanner& scan) {
  constexpr std::string_view kWhat = "enclosed pattern (...)[N:M] not numeric";
  constexpr std::string_view kAdvice =
      "write [N:M] with numbers, or [:M] or [N:]; the slice goes from byte N up to before byte M";
  const size_t start = scan.position();
  BLK_RETURN_IF_ERROR(CheckOperand(scan, "[N:M]"));
  scan.Skip(1);
  auto skip_space = [&] {
    while (absl::ascii_isspace(scan.Peek())) scan.Skip(1);
  };
  uint64_t ends[2] = {0, kDataEnd};
  for (int i = 0; i < 2; ++i) {
    const char stop = i == 0 ? ':' : ']';
    skip_space();
    if (scan.Peek() != stop) {
      BLK_ASSIGN_OR_RETURN(auto number, scan.Count(kWhat, kAdvice));
      ends[i] = number;
      skip_space();
    }
    if (scan.Peek() != stop) return scan.FailAt(start, kWhat, kAdvice);
    scan.Skip(1);
  }
  if (ends[0] > ends[1]) {
    return scan.FailAt(start, "[N:M] does not describe a valid slice",
                       "the end M must not be before the start N");
  }
  return Wrap(scan, start, Kind::kSlice, ends[0], ends[1]);
}

// EXPRESSION -> \NAME takes the expression out of the image and gives it a name.
absl::Status Parser::ParseDefinition(DataScanner& scan) {
  BLK_RETURN_IF_ERROR(CheckOperand(scan, "->"));
  scan.Skip(2);
  while (absl::ascii_isspace(scan.Peek())) scan.Skip(1);
  const size_t start = scan.position();
  std::string_view name;
  if (scan.Take("\\")) name = scan.Word(true);
  if (name.empty()) {
    return scan.FailAt(start, "data parameter: parsing error",
                       "write a backslash and a name after ->, such as 1 -> \\one");
  }
  scope().names.insert_or_assign(std::string(name), std::move(scope().items.back()));
  scope().items.pop_back();
  scope().after_definition = true;
  return absl::OkStatus();
}

// *, [ and -> work on the expression before them.
absl::Status Parser::CheckOperand(const DataScanner& scan, std::string_view operation) {
  if (scope().items.empty() && !scope().after_definition) {
    return scan.Fail(absl::StrCat(operation, " must follow an expression"),
                     "put a byte, a string, ( ) or another expression before it");
  }
  if (scope().after_definition || scope().items.back()->IsMove()) {
    return scan.Fail(
        absl::StrCat(operation, " cannot be applied to this type of expression"),
        "it does not work on an @OFFSET or a definition; put ( ) around what you mean");
  }
  return absl::OkStatus();
}

absl::Status Parser::Add(const DataScanner& scan, size_t position, DataExpression expression) {
  if (++expressions_ > limits_.expressions_max) {
    return scan.FailAt(position,
                       absl::StrCat("more than ", limits_.expressions_max, " expressions"),
                       "use a file (<FILE) for so much data");
  }
  expression.source = &scan.source();
  expression.position = position;
  for (const auto& child : expression.children) {
    expression.depth = std::max(expression.depth, child->depth + 1);
  }
  if (expression.depth > limits_.depth_max) return TooDeep(scan, position);
  scope().after_definition = false;
  scope().items.push_back(std::make_shared<DataExpression>(std::move(expression)));
  return absl::OkStatus();
}

// Puts the last expression inside a new one that takes its place.
absl::Status Parser::Wrap(const DataScanner& scan, size_t position, Kind kind, uint64_t number,
                          uint64_t end) {
  DataExpression outer{.kind = kind, .number = number, .end = end};
  outer.children.push_back(std::move(scope().items.back()));
  scope().items.pop_back();
  return Add(scan, position, std::move(outer));
}

// Closes a scope. Neighbouring literals become one; parentheses around one thing are dropped, so
// that a slice of (<FILE) is a slice of the file.
absl::StatusOr<DataExpressionPtr> Parser::Finish(const DataScanner& scan, size_t open) {
  std::vector<DataExpressionPtr> merged;
  for (auto& item : scope().items) {
    auto is_literal = [](const DataExpression& e) { return e.kind == Kind::kBytes && !e.shared; };
    if (!merged.empty() && is_literal(*merged.back()) && is_literal(*item)) {
      merged.back()->text += item->text;
    } else {
      merged.push_back(std::move(item));
    }
  }
  scopes_.pop_back();
  ++expressions_;
  if (!scopes_.empty() && merged.size() == 1 && !merged[0]->IsMove()) return std::move(merged[0]);
  auto list = std::make_shared<DataExpression>(DataExpression{.kind = Kind::kList});
  list->source = &scan.source();
  list->position = open;
  for (const auto& child : merged) list->depth = std::max(list->depth, child->depth + 1);
  if (list->depth > limits_.depth_max) return TooDeep(scan, open);
  list->children = std::move(merged);
  return list;
}

absl::Status Parser::TooDeep(const DataScanner& scan, size_t position) const {
  return scan.FailAt(position, absl::StrCat("nested more than ", limits_.depth_max, " levels deep"),
                     "use fewer parentheses, variables and names inside each other");
}

}  // namespace

absl::StatusOr<DataProgram> ParseData(std::string_view text, const DataVariables& variables,
                                      const DataParseLimits& limits) {
  DataProgram program;
  BLK_ASSIGN_OR_RETURN(auto root, Parser(program, variables, limits).ParseText("", text));
  program.root = std::move(root);
  return program;
}

}  // namespace blk
