#include "src/backends/data/describe.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace blk {
namespace {

using Kind = DataExpression::Kind;

// Names inside each other can stand for any number of items, and a repeat for any number of bytes.
constexpr int kItemsMax = 10'000;
constexpr size_t kShownBytesMax = 4096;
constexpr uint64_t kUnrolledBytesMax = 64;

// What remains of an expression: one byte repeated, other bytes, or lines that stand for what is
// known later.
struct Item {
  enum class Kind { kFill, kBytes, kLines };
  Kind kind;
  char byte = 0;
  uint64_t count = 0;
  std::string bytes = {};
  std::vector<std::string> lines = {};

  uint64_t size() const { return kind == Kind::kFill ? count : bytes.size(); }
};

struct Items {
  std::vector<Item> items;
  bool moves = false;  // The offsets in it are its own: its parentheses mean something.
};

// Equal bytes become a fill; a byte goes on with bytes that are none.
void AppendByte(char byte, std::vector<Item>* items) {
  Item* last = items->empty() ? nullptr : &items->back();
  if (last && last->kind == Item::Kind::kFill && last->byte == byte) {
    ++last->count;
  } else if (last && last->kind == Item::Kind::kFill && last->count == 1) {
    *last = {.kind = Item::Kind::kBytes, .bytes = {last->byte, byte}};
  } else if (last && last->kind == Item::Kind::kBytes) {
    last->bytes += byte;
  } else {
    items->push_back({.kind = Item::Kind::kFill, .byte = byte, .count = 1});
  }
}

void Append(Item item, std::vector<Item>* items) {
  Item* last = items->empty() ? nullptr : &items->back();
  if (item.kind == Item::Kind::kBytes) {
    for (char byte : item.bytes) AppendByte(byte, items);
  } else if (item.kind == Item::Kind::kFill && item.count == 1) {
    AppendByte(item.byte, items);
  } else if (last && last->kind == item.kind && item.kind == Item::Kind::kFill &&
             last->byte == item.byte && last->count <= kDataEnd - item.count) {
    last->count += item.count;
  } else {
    items->push_back(std::move(item));
  }
}

std::string Quoted(std::string_view bytes) {
  std::string text = "\"";
  for (char byte : bytes.substr(0, kShownBytesMax)) {
    if (byte == '"' || byte == '\\') {
      text += {'\\', byte};
    } else if (absl::ascii_isprint(byte)) {
      text += byte;
    } else {
      absl::StrAppend(&text, "\\x", absl::Hex(static_cast<unsigned char>(byte), absl::kZeroPad2));
    }
  }
  text += '"';
  if (bytes.size() > kShownBytesMax) absl::StrAppend(&text, "... # of ", bytes.size(), " bytes");
  return text;
}

std::vector<std::string> LinesOf(Item item) {
  const int byte = static_cast<unsigned char>(item.byte);
  switch (item.kind) {
    case Item::Kind::kFill:
      return {item.count == 1 ? absl::StrCat(byte)
                              : absl::StrCat("fill(", byte, "*", item.count, ")")};
    case Item::Kind::kBytes:
      return {Quoted(item.bytes)};
    case Item::Kind::kLines:
      break;
  }
  return std::move(item.lines);
}

std::vector<std::string> InParentheses(std::vector<Item> items, std::string_view after) {
  std::vector<std::string> lines = {"("};
  for (Item& item : items)
    for (std::string& line : LinesOf(std::move(item))) lines.push_back(absl::StrCat("    ", line));
  lines.push_back(absl::StrCat(")", after));
  return lines;
}

Item Line(std::string line) { return {.kind = Item::Kind::kLines, .lines = {std::move(line)}}; }

// `items` in parentheses with an operation behind them.
Items Operation(std::vector<Item> items, std::string_view after) {
  return {{{.kind = Item::Kind::kLines, .lines = InParentheses(std::move(items), after)}}};
}

bool IsLiteral(const std::vector<Item>& items) {
  return items.size() == 1 && items[0].kind != Item::Kind::kLines;
}

class Describer {
 public:
  Items Describe(const DataExpression& expression) {
    if (items_ == kItemsMax) return {};
    if (++items_ == kItemsMax) return {{Line("... # and more")}};
    const uint64_t number = expression.number;
    switch (expression.kind) {
      case Kind::kBytes:
        return DescribeBytes(expression.text);
      case Kind::kSeek:
        return {{Line(absl::StrCat("@", number))}, true};
      case Kind::kForward:
        return {{Line(absl::StrCat("@+", number))}, true};
      case Kind::kBack:
        return {{Line(absl::StrCat("@-", number))}, true};
      case Kind::kAlign:
        return {{Line(absl::StrCat("@^", number))}, true};
      case Kind::kFile:
        return {{Line(absl::StrCat("<", expression.text))}};
      case Kind::kScript:
        return {{Line(absl::StrCat("<(", expression.text, ")"))}};
      case Kind::kList:
        return DescribeList(expression);
      case Kind::kRepeat:
        return DescribeRepeat(Describe(*expression.children[0]), number);
      case Kind::kSlice:
        return DescribeSlice(Describe(*expression.children[0]), number, expression.end);
    }
    return {};
  }

 private:
  static Items DescribeBytes(std::string_view bytes) {
    Items result;
    for (char byte : bytes) AppendByte(byte, &result.items);
    return result;
  }

  Items DescribeList(const DataExpression& list) {
    Items result;
    for (const DataExpressionPtr& child : list.children) {
      Items part = Describe(*child);
      const bool nested = part.moves && !child->IsMove();
      if (nested) part = Operation(std::move(part.items), "");
      for (Item& item : part.items) Append(std::move(item), &result.items);
      result.moves |= child->IsMove();
    }
    return result;
  }

  static Items DescribeRepeat(Items child, uint64_t count) {
    if (count == 0 || child.items.empty()) return {};
    if (count == 1) return child;
    if (IsLiteral(child.items)) {
      Item& item = child.items[0];
      if (item.kind == Item::Kind::kFill && item.count <= kDataEnd / count) {
        item.count *= count;
        return child;
      }
      if (item.size() <= kUnrolledBytesMax / count) {
        const std::string once = item.bytes;
        for (uint64_t i = 1; i < count; ++i) item.bytes += once;
        return child;
      }
    }
    return Operation(std::move(child.items), absl::StrCat(" *", count));
  }

  static Items DescribeSlice(Items child, uint64_t begin, uint64_t end) {
    const bool whole = begin == 0 && end == kDataEnd;
    if (begin == end || (whole && child.items.empty())) return {};
    if (IsLiteral(child.items)) {
      Item& item = child.items[0];
      const uint64_t stop = end == kDataEnd ? item.size() : end;
      if (begin <= stop && stop <= item.size()) {
        if (item.kind == Item::Kind::kBytes) {
          return DescribeBytes(std::string_view(item.bytes).substr(begin, stop - begin));
        }
        item.count = stop - begin;
        return item.count > 0 ? std::move(child) : Items{};
      }
    }
    const std::string stop = end == kDataEnd ? "" : absl::StrCat(end);
    return Operation(std::move(child.items), absl::StrCat("[", begin, ":", stop, "]"));
  }

  int items_ = 0;
};

}  // namespace

std::vector<std::string> DescribeData(const DataProgram& program) {
  Items items = Describer().Describe(*program.root);
  if (items.items.empty()) return {"null"};
  if (items.items.size() == 1 && !items.moves) return LinesOf(std::move(items.items[0]));
  return InParentheses(std::move(items.items), "");
}

}  // namespace blk
