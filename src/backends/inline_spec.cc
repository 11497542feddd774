#include "src/backends/inline_spec.h"

#include <algorithm>
#include <array>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "src/core/error.h"
#include "src/core/limits.h"
#include "src/core/param.h"
#include "src/core/suggest.h"

namespace blk {
namespace {

using Params = std::vector<std::pair<std::string, std::string>>;

struct Scheme {
  std::string_view name, backend, key;
};
constexpr std::array<Scheme, 12> kSchemes{{{"nbd", "nbd", "uri"},
                                           {"nbds", "nbd", "uri"},
                                           {"nbd+unix", "nbd", "uri"},
                                           {"nbds+unix", "nbd", "uri"},
                                           {"nbd+vsock", "nbd", "uri"},
                                           {"nbds+vsock", "nbd", "uri"},
                                           {"http", "curl", "url"},
                                           {"https", "curl", "url"},
                                           {"ftp", "curl", "url"},
                                           {"ftps", "curl", "url"},
                                           {"sftp", "curl", "url"},
                                           {"scp", "curl", "url"}}};

const Scheme* FindScheme(std::string_view name) {
  for (const Scheme& scheme : kSchemes) {
    if (absl::EqualsIgnoreCase(scheme.name, name)) return &scheme;
  }
  return nullptr;
}

// What stands before `://` if it has the form of a scheme (RFC 3986, 3.1).
std::optional<std::string_view> SchemeOf(std::string_view text) {
  std::string_view scheme = text.substr(0, text.find("://"));
  if (scheme.size() == text.size() || scheme.empty() || !absl::ascii_isalpha(scheme[0]))
    return std::nullopt;
  for (char c : scheme) {
    if (!absl::ascii_isalnum(c) && c != '+' && c != '-' && c != '.') return std::nullopt;
  }
  return scheme;
}

bool IsName(std::string_view text) {
  if (text.empty() || !absl::ascii_isalnum(text[0])) return false;
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return absl::ascii_isalnum(c) || c == '-' || c == '_'; });
}

std::optional<unsigned> HexDigit(char c) {
  if (absl::ascii_isdigit(c)) return c - '0';
  c = absl::ascii_tolower(c);
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return std::nullopt;
}

absl::StatusOr<std::string> Decode(std::string_view text) {
  std::string result;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '%') {
      result += text[i];
      continue;
    }
    std::optional<unsigned> high, low;
    if (i + 2 < text.size()) high = HexDigit(text[i + 1]), low = HexDigit(text[i + 2]);
    if (!high || !low) {
      return absl::InvalidArgumentError(absl::StrCat("`", text.substr(i, 3),
                                                     "` is not % and two hexadecimal digits; "
                                                     "write % as %25"));
    }
    // Most values end up in system calls, where this byte would silently end them.
    if (*high == 0 && *low == 0)
      return absl::InvalidArgumentError("a value cannot contain the byte %00");
    result += static_cast<char>(*high * 16 + *low);
    i += 2;
  }
  return result;
}

// The text between parentheses, without them.
absl::StatusOr<Params> ParseParams(std::string_view group) {
  Params params;
  if (group.empty()) return params;
  for (std::string_view piece : absl::StrSplit(group, ',')) {
    auto pair = SplitKeyValue(piece);
    if (!pair)
      return absl::InvalidArgumentError(
          absl::StrCat("expected KEY=VALUE instead of `", piece, "`"));
    if (absl::StrContains(pair->second, "("))
      return absl::InvalidArgumentError("inside parentheses write ( as %28");
    BLK_ASSIGN_OR_RETURN(std::string value, Decode(pair->second));
    params.emplace_back(pair->first, std::move(value));
  }
  return params;
}

// Where the last pair of parentheses begins if it ends the text and holds KEY=VALUE only; npos if
// not.
size_t FindLastParams(std::string_view text) {
  size_t open = text.rfind('(');
  if (open == std::string_view::npos || text.back() != ')') return std::string_view::npos;
  std::string_view group = text.substr(open + 1, text.size() - open - 2);
  if (absl::StrContains(group, ")")) return std::string_view::npos;
  // `64K()` has no parameters; alone or after a sign, `()` is part of the value.
  if (group.empty())
    return open > 0 && absl::ascii_isalnum(text[open - 1]) ? open : std::string_view::npos;
  for (std::string_view piece : absl::StrSplit(group, ',')) {
    if (!SplitKeyValue(piece)) return std::string_view::npos;
  }
  return open;
}

class SpecParser {
 public:
  explicit SpecParser(std::string_view text) : rest_(text) {}

  absl::StatusOr<InlineSpec> Run() {
    for (;;) {
      if (rest_.empty())
        return absl::InvalidArgumentError(spec_.filters.empty() ? "it is empty"
                                                                : "nothing follows the last `+`");
      if (IsPathSpec(rest_))
        return Source(InlineSpec::Form::kPath,
                      {.name = "file", .params = {{"file", std::string(rest_)}}});
      if (std::optional<std::string_view> scheme = SchemeOf(rest_)) {
        if (const Scheme* known = FindScheme(*scheme)) {
          return Source(InlineSpec::Form::kUri,
                        {.name = std::string(known->backend),
                         .params = {{std::string(known->key), std::string(rest_)}}});
        }
        if (!absl::StrContains(*scheme, "+")) return UnknownScheme(*scheme);
      }
      BLK_ASSIGN_OR_RETURN(bool more, Word());
      if (!more) return std::move(spec_);
    }
  }

 private:
  absl::StatusOr<InlineSpec> Source(InlineSpec::Form form, SpecWord word) {
    spec_.form = form;
    spec_.source = std::move(word);
    return std::move(spec_);
  }

  // A filter (true, and its `+` is taken) or a named source (false).
  absl::StatusOr<bool> Word() {
    size_t end = std::min(rest_.find_first_of(":(+"), rest_.size());
    SpecWord word{.name = std::string(rest_.substr(0, end))};
    if (!IsName(word.name)) {
      return absl::InvalidArgumentError(
          absl::StrCat("`", word.name, "` cannot be a name; for a file write ./", rest_));
    }
    rest_.remove_prefix(end);
    if (absl::StartsWith(rest_, ":")) {
      BLK_RETURN_IF_ERROR(Value(&word));
    } else if (absl::StartsWith(rest_, "(")) {
      BLK_RETURN_IF_ERROR(Parentheses(&word));
    }
    bool filter = absl::StartsWith(rest_, "+");
    if (filter) {
      rest_.remove_prefix(1);
      spec_.filters.push_back(std::move(word));
      if (spec_.filters.size() >= limits::kStackLayersMax) {
        return absl::InvalidArgumentError(
            absl::StrCat("more than ", limits::kStackLayersMax - 1, " filters"));
      }
    } else {
      spec_.source = std::move(word);
    }
    return filter;
  }

  absl::Status Value(SpecWord* word) {
    std::string_view value = rest_.substr(1);
    size_t open = FindLastParams(value);
    if (open != std::string_view::npos) {
      BLK_ASSIGN_OR_RETURN(word->params,
                           ParseParams(value.substr(open + 1, value.size() - open - 2)));
      value = value.substr(0, open);
    }
    word->value = std::string(value);
    rest_ = {};
    return absl::OkStatus();
  }

  absl::Status Parentheses(SpecWord* word) {
    size_t close = rest_.find(')');
    if (close == std::string_view::npos) {
      return absl::InvalidArgumentError(absl::StrCat("`", word->name, "(` is not closed by `)`"));
    }
    BLK_ASSIGN_OR_RETURN(word->params, ParseParams(rest_.substr(1, close - 1)));
    rest_.remove_prefix(close + 1);
    if (rest_.empty() || rest_[0] == '+') return absl::OkStatus();
    return absl::InvalidArgumentError(
        absl::StrCat("expected `+` or the end after the parentheses instead of `", rest_, "`"));
  }

  static absl::Status UnknownScheme(std::string_view scheme) {
    std::vector<std::string_view> names;
    for (const Scheme& known : kSchemes) names.push_back(known.name);
    std::string suggestion = DidYouMean(scheme, names);
    return absl::InvalidArgumentError(
        absl::StrCat("unknown kind of URI `", scheme, "://`", suggestion));
  }

  std::string_view rest_;
  InlineSpec spec_;
};

std::string FormatWord(const SpecWord& word) {
  std::string text = word.name;
  if (word.value) absl::StrAppend(&text, ":", *word.value);
  if (word.params.empty()) return text;
  auto pair = [](std::string* out, const auto& param) {
    absl::StrAppend(out, param.first, "=", EncodeSpecValue(param.second));
  };
  return absl::StrCat(text, "(", absl::StrJoin(word.params, ",", pair), ")");
}

}  // namespace

bool IsPathSpec(std::string_view text) {
  if (text.empty()) return false;
  if (text[0] == '/' || text[0] == '.') return true;
  return text.substr(0, text.find_first_of(":(+")).find_first_of("./") != std::string_view::npos;
}

absl::StatusOr<InlineSpec> ParseInlineSpec(std::string_view text) {
  if (text.size() > limits::kSpecBytesMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("a disk's spec is longer than ", limits::kSpecBytesMax, " bytes"));
  }
  if (absl::StrContains(text, '\0'))
    return absl::InvalidArgumentError("a disk's spec contains a zero byte");
  absl::StatusOr<InlineSpec> spec = SpecParser(text).Run();
  if (!spec.ok()) return Annotate(spec.status(), absl::StrCat("\"", text, "\""));
  return spec;
}

std::string FormatInlineSpec(const InlineSpec& spec) {
  std::string text;
  for (const SpecWord& filter : spec.filters) absl::StrAppend(&text, FormatWord(filter), "+");
  if (spec.form == InlineSpec::Form::kName || spec.source.params.empty())
    return text + FormatWord(spec.source);
  const std::string& place = spec.source.params[0].second;
  bool prefix = spec.form == InlineSpec::Form::kPath && !IsPathSpec(place);
  return absl::StrCat(text, prefix ? "./" : "", place);
}

std::string EncodeSpecValue(std::string_view value) {
  std::string text;
  for (char c : value) {
    bool plain = absl::ascii_isprint(c) && c != '%' && c != ',' && c != '(' && c != ')';
    if (plain || static_cast<unsigned char>(c) >= 0x80) {
      text += c;
    } else {
      absl::StrAppendFormat(&text, "%%%02X", static_cast<unsigned char>(c));
    }
  }
  return text;
}

}  // namespace blk
