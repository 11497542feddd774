#include "src/core/param.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "src/core/suggest.h"

namespace blk {
namespace param_internal {

std::string RangeHint(const ParamInfo& info) {
  if (info.max.empty()) return absl::StrCat("give at least ", info.min);
  if (info.min.empty()) return absl::StrCat("give at most ", info.max);
  return absl::StrCat("give a value between ", info.min, " and ", info.max);
}

absl::StatusOr<size_t> FindChoice(const std::vector<std::string>& choices, std::string_view text) {
  auto found = std::find(choices.begin(), choices.end(), text);
  if (found != choices.end()) return static_cast<size_t>(found - choices.begin());
  std::vector<std::string_view> names(choices.begin(), choices.end());
  std::string suggestion = DidYouMean(text, names);
  return absl::InvalidArgumentError(absl::StrCat("\"", text, "\" is not one of ",
                                                 absl::StrJoin(choices, ", "),
                                                 suggestion.empty() ? "" : suggestion));
}

}  // namespace param_internal

bool IsKey(std::string_view text) {
  if (text.empty() || !absl::ascii_isalpha(text[0])) return false;
  return std::all_of(text.begin(), text.end(), [](char c) {
    return absl::ascii_isalnum(c) || c == '.' || c == '_' || c == '-';
  });
}

std::optional<std::pair<std::string_view, std::string_view>> SplitKeyValue(std::string_view word) {
  size_t equals = word.find('=');
  if (equals == std::string_view::npos || !IsKey(word.substr(0, equals))) return std::nullopt;
  return std::pair(word.substr(0, equals), word.substr(equals + 1));
}

absl::StatusOr<std::string> AbsolutePath(std::string_view path) {
  if (absl::StartsWith(path, "/")) return std::string(path);
  char* here = get_current_dir_name();
  if (!here) return ErrnoError(errno, "cannot find out the working directory");
  std::string absolute = absl::StrCat(here, "/", path);
  std::free(here);
  return absolute;
}

bool ParamRow::Answers(std::string_view key) const {
  return key == name ||
         std::find(info.aliases.begin(), info.aliases.end(), key) != info.aliases.end();
}

const ParamRow* ParamRows::Find(std::string_view key) const {
  for (const ParamRow& row : rows_) {
    if (row.Answers(key)) return &row;
  }
  return nullptr;
}

const ParamRow* ParamRows::FindLetter(char letter) const {
  for (const ParamRow& row : rows_) {
    if (row.info.letter == letter) return &row;
  }
  return nullptr;
}

const ParamRow* ParamRows::magic() const {
  for (const ParamRow& row : rows_) {
    if (row.info.magic) return &row;
  }
  return nullptr;
}

std::vector<std::string_view> ParamRows::names() const {
  std::vector<std::string_view> names;
  for (const ParamRow& row : rows_) {
    if (!row.info.hidden) names.push_back(row.name);
  }
  return names;
}

void ParamRows::Add(ParamRow row) {
  BLK_CHECK(IsKey(row.name));
  BLK_CHECK(Find(row.name) == nullptr);
  for (const std::string& alias : row.info.aliases)
    BLK_CHECK(IsKey(alias) && Find(alias) == nullptr);
  BLK_CHECK(row.info.letter == 0 || FindLetter(row.info.letter) == nullptr);
  BLK_CHECK(!row.info.magic || magic() == nullptr);
  rows_.push_back(std::move(row));
}

ParamReader::ParamReader(const ParamRows& rows, void* config, std::string owner, Style style)
    : rows_(&rows),
      config_(config),
      owner_(std::move(owner)),
      style_(style),
      given_(rows.rows().size()) {}

bool ParamReader::HasRoomFor(std::string_view key) const {
  const ParamRow* row = rows_->Find(key);
  if (row == nullptr) return false;
  return row->repeatable || !given_[static_cast<size_t>(row - rows_->rows().data())];
}

absl::Status ParamReader::Give(std::string_view key, std::string_view value) {
  const ParamRow* row = rows_->Find(key);
  if (row != nullptr) return GiveRow(*row, value);
  if (rows_->takes_any_key()) return Annotate(rows_->SetAny(config_, key, value), owner_);
  return Unknown(key);
}

absl::Status ParamReader::GiveBare(std::string_view value) {
  const ParamRow* row = rows_->magic();
  bool full = row != nullptr && !HasRoomFor(row->name);
  if (full && rows_->any_key_takes_words())
    return Annotate(rows_->SetAny(config_, "", value), owner_);
  if (row != nullptr) return GiveRow(*row, value);
  std::vector<std::string_view> names = rows_->names();
  if (names.empty() && !rows_->takes_any_key()) {
    return Fail(absl::StrCat("it takes no parameters, but \"", value, "\" was given"));
  }
  return Fail(absl::StrCat("\"", value, "\" is not KEY=VALUE", DidYouMean(value, names)));
}

absl::Status ParamReader::GiveRow(const ParamRow& row, std::string_view value) {
  std::optional<std::string>& last = given_[static_cast<size_t>(&row - rows_->rows().data())];
  // Saying a switch again changes nothing; `-v -v` is a habit, not a slip.
  bool harmless =
      row.repeatable || old_rules_ || (style_ == Style::kOption && row.is_switch && last == value);
  if (last && !harmless) {
    if (row.is_secret) return Fail(absl::StrCat(Show(row), " is given twice"));
    return Fail(absl::StrCat(Show(row), " is given twice: \"", *last, "\", then \"", value, "\""));
  }
  if (value.empty() && !row.is_text && !row.is_secret) {
    return Fail(absl::StrCat(Show(row), " needs a value, ", style_ == Style::kOption ? "--" : "",
                             row.name, "=", row.word));
  }
  last = std::string(row.is_secret ? "" : value);
  std::string absolute;
  if (row.info.later && !value.empty() && value[0] != '/') {
    BLK_ASSIGN_OR_RETURN(absolute, AbsolutePath(value));
    value = absolute;
  }
  absl::Status set = row.set(config_, value);
  return Annotate(set, absl::StrCat(owner_, ": ", style_ == Style::kOption ? "--" : "", row.name));
}

absl::Status ParamReader::Finish() const {
  for (size_t i = 0; i < given_.size(); ++i) {
    const ParamRow& row = rows_->rows()[i];
    if (!row.info.required || given_[i]) continue;
    if (old_rules_)
      return Fail(absl::StrCat("you must supply the ", row.name, "=<", row.word,
                               "> parameter after the plugin name on the command line"));
    std::string how = absl::StrCat(style_ == Style::kOption ? "--" : "", row.name, "=", row.word);
    return Fail(absl::StrCat(Show(row), " is missing: give ", how,
                             row.info.magic ? absl::StrCat(" or just ", row.word) : ""));
  }
  return absl::OkStatus();
}

absl::Status ParamReader::Fail(std::string_view text) const {
  return absl::InvalidArgumentError(absl::StrCat(owner_, ": ", text));
}

absl::Status ParamReader::Unknown(std::string_view key) const {
  std::vector<std::string_view> names = rows_->names();
  if (style_ == Style::kOption) {
    // What follows `no-` is compared on its own: its letters alone say how many may be wrong.
    std::string_view prefix = "--";
    std::string_view meant = key;
    if (absl::ConsumePrefix(&meant, "no-")) {
      prefix = "--no-";
      std::erase_if(names, [&](std::string_view name) { return !rows_->Find(name)->is_switch; });
    }
    std::string suggestion = DidYouMean(meant, names, prefix);
    if (suggestion.empty() && meant != key && Knows(meant))
      suggestion = absl::StrCat(", did you mean `--", meant, "`?");
    return Fail(absl::StrCat("unknown option `--", key, "`",
                             suggestion.empty() ? "; -h lists them" : suggestion));
  }
  if (names.empty()) return Fail(absl::StrCat("it takes no parameters, but `", key, "` was given"));
  std::string suggestion = DidYouMean(key, names);
  if (suggestion.empty()) suggestion = absl::StrCat("; it takes ", absl::StrJoin(names, ", "));
  return Fail(absl::StrCat("unknown parameter `", key, "`", suggestion));
}

std::string ParamReader::Show(const ParamRow& row) const {
  return style_ == Style::kOption ? absl::StrCat("option `--", row.name, "`")
                                  : absl::StrCat("parameter `", row.name, "`");
}

}  // namespace blk
