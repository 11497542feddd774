#include "src/core/param_text.h"

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace blk {
namespace {

constexpr size_t kHelpColumn = 28;

std::vector<const ParamRow*> Shown(const ParamRows& rows) {
  std::vector<const ParamRow*> shown;
  for (const ParamRow& row : rows.rows()) {
    if (!row.info.hidden) shown.push_back(&row);
  }
  return shown;
}

// The length of the UTF-8 sequence at the start of `text`; 0 if that is none (RFC 3629: no overlong
// forms, no surrogates, nothing above U+10FFFF).
size_t Utf8Length(std::string_view text) {
  auto byte = [&](size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  auto follows = [&](size_t i) { return (byte(i) & 0xc0) == 0x80; };
  unsigned first = byte(0), second = byte(1);
  if (first < 0x80) return 1;
  if (first >= 0xc2 && first <= 0xdf) return follows(1) ? 2 : 0;
  if (first >= 0xe0 && first <= 0xef) {
    if ((first == 0xe0 && second < 0xa0) || (first == 0xed && second > 0x9f)) return 0;
    return follows(1) && follows(2) ? 3 : 0;
  }
  if (first >= 0xf0 && first <= 0xf4) {
    if ((first == 0xf0 && second < 0x90) || (first == 0xf4 && second > 0x8f)) return 0;
    return follows(1) && follows(2) && follows(3) ? 4 : 0;
  }
  return 0;
}

std::string DictionaryEntry(std::string_view text) {
  std::string entry = "\"";
  for (unsigned char c : text) {
    if (c == '"' || c == '\\') {
      absl::StrAppend(&entry, "\\", std::string(1, static_cast<char>(c)));
    } else if (absl::ascii_isprint(c)) {
      entry += static_cast<char>(c);
    } else {
      absl::StrAppendFormat(&entry, "\\x%02x", c);
    }
  }
  return entry + "\"\n";
}

std::vector<std::string> Values(const ParamRow& row) {
  if (row.type == "boolean") return {"true", "false"};
  return row.choices;
}

}  // namespace

std::string WrapText(std::string_view text, size_t indent, size_t width) {
  std::string result;
  const std::string margin(indent, ' ');
  for (std::string_view line : absl::StrSplit(text, '\n')) {
    if (line.empty() || line[0] == ' ') {
      absl::StrAppend(&result, line.empty() ? "" : margin, line, "\n");
      continue;
    }
    std::string current;
    for (std::string_view word : absl::StrSplit(line, ' ', absl::SkipEmpty())) {
      if (!current.empty() && indent + current.size() + 1 + word.size() > width) {
        absl::StrAppend(&result, margin, current, "\n");
        current.clear();
      }
      absl::StrAppend(&current, current.empty() ? "" : " ", word);
    }
    absl::StrAppend(&result, margin, current, "\n");
  }
  return result;
}

std::string ParamSyntax(const ParamRow& row, ParamStyle style) {
  if (style == ParamStyle::kKeyValue) {
    return row.info.magic ? absl::StrCat("[", row.name, "=]", row.word)
                          : absl::StrCat(row.name, "=", row.word);
  }
  std::string text =
      row.info.letter ? absl::StrCat("-", std::string(1, row.info.letter), ", ") : "    ";
  // A switch that is on unless said otherwise is shown as what one would write.
  if (row.is_switch)
    return absl::StrCat(text, row.default_text == "true" ? "--no-" : "--", row.name);
  if (row.info.if_bare) return absl::StrCat(text, "--", row.name, "[=", row.word, "]");
  return absl::StrCat(text, "--", row.name, "=", row.word);
}

namespace {
// Of an option as help shows it: `--no-flush` does not do what the row says. Help begins with a
// verb.
std::string HelpOf(const ParamRow& row, ParamStyle style) {
  const bool negated = style == ParamStyle::kOption && row.is_switch && row.default_text == "true";
  return absl::StrCat(negated ? "do not " : "", row.info.help);
}
}  // namespace

std::string ParamDescription(const ParamRow& row, ParamStyle style) {
  bool option_switch = style == ParamStyle::kOption && row.is_switch;
  std::vector<std::string> facts;
  if (row.info.required) facts.push_back("required");
  if (!row.info.unit.empty()) facts.push_back("in " + row.info.unit);
  if (!row.info.min.empty() && !row.info.max.empty()) {
    facts.push_back(absl::StrCat(row.info.min, " to ", row.info.max));
  } else if (!row.info.min.empty()) {
    facts.push_back(absl::StrCat("at least ", row.info.min));
  } else if (!row.info.max.empty()) {
    facts.push_back(absl::StrCat("at most ", row.info.max));
  }
  if (row.repeatable) facts.push_back("may be repeated");
  if (row.is_secret) facts.push_back("- asks, +FILE or -FD reads it");
  if (!row.default_text.empty() && !option_switch) facts.push_back("default " + row.default_text);
  if (!row.info.aliases.empty()) {
    std::string prefix = style == ParamStyle::kOption ? "--" : "";
    facts.push_back(absl::StrCat("also ", prefix, absl::StrJoin(row.info.aliases, ", " + prefix)));
  }
  return absl::StrCat(HelpOf(row, style),
                      facts.empty() ? "" : absl::StrCat(" (", absl::StrJoin(facts, "; "), ")"));
}

std::string ParamHelp(const ParamRows& rows, ParamStyle style) {
  std::string result;
  auto append = [&result](std::string_view left, std::string_view right) {
    std::string text = WrapText(right, kHelpColumn);
    std::string head = absl::StrCat("  ", left);
    if (right.empty()) {
      absl::StrAppend(&result, head, "\n");
    } else if (head.size() + 2 > kHelpColumn) {
      absl::StrAppend(&result, head, "\n", text);
    } else {
      absl::StrAppend(&result, head, text.substr(head.size()));
    }
  };
  for (const ParamRow* row : Shown(rows))
    append(ParamSyntax(*row, style), ParamDescription(*row, style));
  if (rows.takes_any_key()) append("KEY=VALUE", rows.any_key_help());
  return result;
}

std::string ParamUsage(const ParamRows& rows) {
  std::vector<std::string> parts;
  for (const ParamRow* row : Shown(rows)) {
    std::string syntax = ParamSyntax(*row, ParamStyle::kKeyValue);
    if (row->repeatable) syntax += " ...";
    parts.push_back(row->info.required ? syntax : absl::StrCat("[", syntax, "]"));
  }
  if (rows.takes_any_key()) parts.push_back("[KEY=VALUE ...]");
  return absl::StrJoin(parts, " ");
}

std::string ParamMan(const ParamRows& rows, ParamStyle style) {
  std::string result;
  for (const ParamRow* row : Shown(rows)) {
    std::string syntax(absl::StripAsciiWhitespace(ParamSyntax(*row, style)));
    absl::StrAppend(&result, ".TP\n.B ", ManQuote(syntax), "\n",
                    ManQuote(ParamDescription(*row, style)), "\n");
  }
  if (rows.takes_any_key())
    absl::StrAppend(&result, ".TP\n.B KEY=VALUE\n", ManQuote(rows.any_key_help()), "\n");
  return result;
}

std::vector<std::string> ParamCompletions(const ParamRows& rows, ParamStyle style) {
  bool option = style == ParamStyle::kOption;
  std::vector<std::string> lines;
  for (const ParamRow* row : Shown(rows)) {
    std::string key = absl::StrCat(option ? "--" : "", row->name);
    if (option && row->info.letter) {
      lines.push_back(absl::StrCat("-", std::string(1, row->info.letter), "\t", row->info.help));
    }
    if (option && row->is_switch) {
      if (row->default_text == "true") key = absl::StrCat("--no-", row->name);
      lines.push_back(absl::StrCat(key, "\t", HelpOf(*row, style)));
      continue;
    }
    lines.push_back(absl::StrCat(key, "=\t", row->info.help));
    for (const std::string& value : Values(*row))
      lines.push_back(absl::StrCat(key, "=", value, "\t", row->info.help));
  }
  return lines;
}

std::string ParamJson(const ParamRows& rows) {
  std::vector<std::string> objects;
  for (const ParamRow* row : Shown(rows)) {
    std::vector<std::string> fields{absl::StrCat("\"name\":", JsonQuote(row->name)),
                                    absl::StrCat("\"type\":", JsonQuote(row->type)),
                                    absl::StrCat("\"help\":", JsonQuote(row->info.help))};
    auto add_flag = [&](std::string_view name, bool value) {
      if (value) fields.push_back(absl::StrCat("\"", name, "\":true"));
    };
    auto add_text = [&](std::string_view name, std::string_view value) {
      if (!value.empty()) fields.push_back(absl::StrCat("\"", name, "\":", JsonQuote(value)));
    };
    auto add_list = [&](std::string_view name, const std::vector<std::string>& values) {
      if (values.empty()) return;
      auto quote = [](std::string* out, const std::string& value) { *out += JsonQuote(value); };
      fields.push_back(absl::StrCat("\"", name, "\":[", absl::StrJoin(values, ",", quote), "]"));
    };
    add_flag("required", row->info.required);
    add_flag("magic", row->info.magic);
    add_flag("repeatable", row->repeatable);
    if (row->info.letter) add_text("letter", std::string(1, row->info.letter));
    add_text("default", row->default_text);
    add_text("unit", row->info.unit);
    add_text("min", row->info.min);
    add_text("max", row->info.max);
    add_list("values", row->choices);
    add_list("aliases", row->info.aliases);
    objects.push_back(absl::StrCat("{", absl::StrJoin(fields, ","), "}"));
  }
  return absl::StrCat("[", absl::StrJoin(objects, ","), "]");
}

std::string ParamDictionary(const ParamRows& rows) {
  std::string result;
  for (const ParamRow* row : Shown(rows)) {
    absl::StrAppend(&result, DictionaryEntry(row->name + "="));
    for (const std::string& alias : row->info.aliases)
      absl::StrAppend(&result, DictionaryEntry(alias + "="));
    for (const std::string& value : Values(*row)) absl::StrAppend(&result, DictionaryEntry(value));
  }
  return result;
}

std::string JsonQuote(std::string_view text) {
  std::string result = "\"";
  while (!text.empty()) {
    size_t length = Utf8Length(text);
    unsigned char c = static_cast<unsigned char>(text[0]);
    if (length == 0) {
      absl::StrAppend(&result, "\xef\xbf\xbd");
      length = 1;
    } else if (c == '"' || c == '\\') {
      absl::StrAppend(&result, "\\", text.substr(0, 1));
    } else if (c == '\n') {
      absl::StrAppend(&result, "\\n");
    } else if (c < 0x20 || c == 0x7f) {
      absl::StrAppendFormat(&result, "\\u%04x", c);
    } else {
      absl::StrAppend(&result, text.substr(0, length));
    }
    text.remove_prefix(length);
  }
  return result + "\"";
}

std::string ManQuote(std::string_view text) {
  std::string result;
  bool line_start = true;
  for (char c : text) {
    // At the start of a line these two characters are requests; \& before them prints nothing and
    // stops that.
    if (line_start && (c == '.' || c == '\'')) absl::StrAppend(&result, "\\&");
    line_start = c == '\n';
    if (c == '\\') {
      absl::StrAppend(&result, "\\e");
    } else if (c == '-') {
      absl::StrAppend(&result, "\\-");
    } else {
      result += c;
    }
  }
  return result;
}

}  // namespace blk
