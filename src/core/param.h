// Parameters, declared once: a row binds a name to a member of a Config struct and says the rest
// (help, bounds, whether it is required). Notation, default and the word in help follow from the
// member's type and initialiser:
//
//   struct Config {
//     Size size;
//     Nanoseconds delay = std::chrono::seconds(2);
//     std::vector<std::string> header;
//   };
//   ParamTable<Config> table;
//   table.Param("size", &Config::size, {.help = "size of the disk", .required = true})
//       .Param("delay", &Config::delay, {.help = "time to wait", .max = "60s"})
//       .Param("header", &Config::header, {.help = "header to send"});
//
// The rows are read by ParamReader (key=value words and in-line specs), by ParseOptions (options.h:
// a tool's --name=value) and by param_text.h (help, man pages, completion, JSON, fuzz dictionary).
// Keys are as nbdkit has them: `-` and `_` as written.
//
// Owner: core. Tables are built once and then read by any thread; a ParamReader belongs to one
// thread.
#pragma once

#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "src/core/error.h"
#include "src/core/secret.h"
#include "src/core/units.h"

namespace blk {

// What a value that names a path is used for: the sandbox and shell completion follow from it.
enum class PathUse { kNone, kRead, kReadWrite, kCreate };

// What a declaration says beside name and member. Everything has a default.
struct ParamInfo {
  std::string help = {};  // one line, no full stop
  bool required = false;
  bool magic = false;  // takes the words without `key=`
  std::vector<std::string> aliases = {};
  char letter = 0;        // options: the short form
  std::string word = {};  // the value's name in help, when the type's own says too little
  std::string unit = {};  // what a bare number counts, when the type does not say it
  std::string min = {};   // bounds, written as a value would be
  std::string max = {};
  std::vector<std::string> choices = {};  // texts: no others are accepted
  std::optional<std::string> if_bare =
      {};  // options: `--name` alone means this value, others need `--name=VALUE`
  PathUse path = PathUse::kNone;
  bool later = false;   // the path is looked at while running, where a server in the background has
                        // another working directory: the value is made absolute when it is read
  bool hidden = false;  // works, but help does not show it
};

// One row with its Config forgotten.
struct ParamRow {
  std::string name;
  ParamInfo info;
  std::string type;          // for the JSON dump: "size", "boolean" ...
  std::string word;          // for help: SIZE, BOOL ...
  std::string default_text;  // "" when there is nothing to show
  std::vector<std::string> choices;
  bool repeatable = false;
  bool is_switch = false;  // a bool: as an option it needs no value, and --no-NAME is its opposite
  bool is_text = false;    // an empty value is a value
  bool is_secret = false;
  std::function<absl::Status(void* config, std::string_view text)> set;
  std::function<std::vector<std::string>(const void* config)>
      values;  // as text, for what derives needs from paths

  bool Answers(std::string_view key) const;
};

// Whether `text` can be a key at all: a letter, then letters, digits, `.`, `_` and `-`, as nbdkit
// has it. `2=x` or `a/b=x` are values.
bool IsKey(std::string_view text);

// `key=value` split at the first `=`, or nothing if what stands before it is no key.
std::optional<std::pair<std::string_view, std::string_view>> SplitKeyValue(std::string_view word);

// `path` below the working directory of now, with nothing resolved; ENOENT when that was removed.
absl::StatusOr<std::string> AbsolutePath(std::string_view path);

class ParamRows {
 public:
  const std::vector<ParamRow>& rows() const { return rows_; }
  // Null if there is none. Pointers live as long as the table is not changed.
  const ParamRow* Find(std::string_view key) const;  // by name or alias
  const ParamRow* FindLetter(char letter) const;
  const ParamRow* magic() const;
  // The row that takes every key that has no row of its own, for backends whose keys the user makes
  // up. Where it takes words, those without a key that the magic row has no room for go there, too,
  // with "" as their key.
  bool takes_any_key() const { return static_cast<bool>(set_any_); }
  bool any_key_takes_words() const { return any_key_takes_words_; }
  const std::string& any_key_help() const { return any_key_help_; }
  absl::Status SetAny(void* config, std::string_view key, std::string_view value) const {
    return set_any_(config, key, value);
  }
  // Names (not aliases) of the rows that help shows.
  std::vector<std::string_view> names() const;

 protected:
  void Add(ParamRow row);  // stops the program on a name, letter or magic used twice, and on bounds
                           // that cannot be read

  std::vector<ParamRow> rows_;
  std::function<absl::Status(void* config, std::string_view key, std::string_view value)> set_any_;
  std::string any_key_help_;
  bool any_key_takes_words_ = false;
};

// Reads one layer's or tool's parameters into a Config. Messages begin with `owner` ("memory:
// ...").
class ParamReader {
 public:
  enum class Style { kKeyValue, kOption };
  // `rows` and `config`, the Config that the rows were made for, outlive the reader.
  ParamReader(const ParamRows& rows, void* config, std::string owner,
              Style style = Style::kKeyValue);

  // As nbdkit has it: a value that is given again replaces the one before, instead of being
  // refused, and what is missing is said in its words.
  void UseOldRules() { old_rules_ = true; }

  bool Knows(std::string_view key) const { return rows_->Find(key) != nullptr; }
  // Knows `key` and has room for (another) one: not yet given, or repeatable.
  bool HasRoomFor(std::string_view key) const;

  // Sets one value. InvalidArgument or OutOfRange: unknown (with a suggestion), given twice,
  // without its value, or not readable as its type.
  absl::Status Give(std::string_view key, std::string_view value);
  // A word without `key=`.
  absl::Status GiveBare(std::string_view value);
  // After the last: whether a required one is missing.
  absl::Status Finish() const;

 private:
  absl::Status GiveRow(const ParamRow& row, std::string_view value);
  absl::Status Fail(std::string_view text) const;
  absl::Status Unknown(std::string_view key) const;
  std::string Show(const ParamRow& row) const;  // `size` or `--size`

  const ParamRows* rows_;
  void* config_;
  std::string owner_;
  Style style_;
  bool old_rules_ = false;
  std::vector<std::optional<std::string>> given_;  // for each row, the value it got last
};

// ---- types of values ----

// How a type is written. Specialise it for a new type of value: kType and kWord as in ParamRow;
// Parse; Format as Parse reads it.
template <typename T>
struct ParamValue;

template <typename T>
  requires(std::is_integral_v<T> && !std::is_same_v<T, bool>)
struct ParamValue<T> {
  static constexpr std::string_view kType = "integer", kWord = "N";
  static absl::StatusOr<T> Parse(std::string_view text) { return ParseInteger<T>(text); }
  static std::string Format(T value) { return absl::StrCat(+value); }
};
template <>
struct ParamValue<bool> {
  static constexpr std::string_view kType = "boolean", kWord = "BOOL";
  static absl::StatusOr<bool> Parse(std::string_view text) { return ParseBool(text); }
  static std::string Format(bool value) { return value ? "true" : "false"; }
};
template <>
struct ParamValue<double> {
  static constexpr std::string_view kType = "number", kWord = "NUMBER";
  static absl::StatusOr<double> Parse(std::string_view text) { return ParseNumber(text); }
  static std::string Format(double value) { return FormatNumber(value); }
};
template <>
struct ParamValue<Size> {
  static constexpr std::string_view kType = "size", kWord = "SIZE";
  static absl::StatusOr<Size> Parse(std::string_view text) { return ParseSize(text); }
  static std::string Format(Size value) { return FormatSize(value.bytes); }
};
template <>
struct ParamValue<BitRate> {
  static constexpr std::string_view kType = "rate", kWord = "BITS";
  static absl::StatusOr<BitRate> Parse(std::string_view text) { return ParseBitRate(text); }
  static std::string Format(BitRate value) { return FormatSize(value.bits_per_second); }
};
template <>
struct ParamValue<Nanoseconds> {
  static constexpr std::string_view kType = "duration", kWord = "TIME";
  static absl::StatusOr<Nanoseconds> Parse(std::string_view text) { return ParseDuration(text); }
  static std::string Format(Nanoseconds value) { return FormatDuration(value); }
};
template <>
struct ParamValue<Probability> {
  static constexpr std::string_view kType = "probability", kWord = "PROBABILITY";
  static absl::StatusOr<Probability> Parse(std::string_view text) { return ParseProbability(text); }
  static std::string Format(Probability value) { return FormatNumber(value.value); }
};
template <>
struct ParamValue<Percent> {
  static constexpr std::string_view kType = "percent", kWord = "PERCENT";
  static absl::StatusOr<Percent> Parse(std::string_view text) { return ParsePercent(text); }
  static std::string Format(Percent value) { return FormatNumber(value.value); }
};
template <>
struct ParamValue<std::string> {
  static constexpr std::string_view kType = "text", kWord = "TEXT";
  static absl::StatusOr<std::string> Parse(std::string_view text) { return std::string(text); }
  static std::string Format(const std::string& value) { return value; }
};
template <>
struct ParamValue<Secret> {
  static constexpr std::string_view kType = "secret", kWord = "SECRET";
  static absl::StatusOr<Secret> Parse(std::string_view text) { return ReadSecret(text); }
  static std::string Format(const Secret&) { return ""; }
};

// ---- implementation of the templates ----

namespace param_internal {

// A member's type seen as one value: optional<T> and vector<T> hold T.
template <typename T>
struct Member {
  using Element = T;
  static constexpr bool kOptional = false, kRepeatable = false;
};
template <typename T>
struct Member<std::optional<T>> {
  using Element = T;
  static constexpr bool kOptional = true, kRepeatable = false;
};
template <typename T>
struct Member<std::vector<T>> {
  using Element = T;
  static constexpr bool kOptional = false, kRepeatable = true;
};
template <typename T>
using ElementOf = typename Member<T>::Element;

// Calls `use` with each value that the member holds.
template <typename T, typename Use>
void ForEachValue(const T& member, Use use) {
  if constexpr (Member<T>::kRepeatable) {
    for (const auto& value : member) use(value);
  } else if constexpr (Member<T>::kOptional) {
    if (member) use(*member);
  } else {
    use(member);
  }
}

// "give a value between 4K and 64M", "give at least 4K" ...
std::string RangeHint(const ParamInfo& info);
// The choice that `text` names, or an error that lists them all.
absl::StatusOr<size_t> FindChoice(const std::vector<std::string>& choices, std::string_view text);

// `parse` with the row's bounds around it.
template <typename E>
std::function<absl::StatusOr<E>(std::string_view)> ParserFor(const ParamInfo& info) {
  using Value = ParamValue<E>;
  if constexpr (std::three_way_comparable<E>) {
    if (info.min.empty() && info.max.empty()) return Value::Parse;
    std::optional<E> min, max;
    // Bounds are our own text: one that cannot be read is our own mistake.
    if (!info.min.empty()) min = Value::Parse(info.min).value();
    if (!info.max.empty()) max = Value::Parse(info.max).value();
    return [min, max, hint = RangeHint(info)](std::string_view text) -> absl::StatusOr<E> {
      absl::StatusOr<E> value = Value::Parse(text);
      bool outside = value.ok() ? (min && *value < *min) || (max && *value > *max)
                                : absl::IsOutOfRange(value.status());
      if (outside) return absl::OutOfRangeError(absl::StrCat(text, " is out of range: ", hint));
      return value;
    };
  } else {
    BLK_CHECK(info.min.empty() && info.max.empty());
    return Value::Parse;
  }
}

}  // namespace param_internal

// The rows of one Config.
template <typename Config>
class ParamTable : public ParamRows {
  template <typename T>
  using ElementOf = param_internal::ElementOf<T>;

 public:
  // `member` may also be inherited by Config. std::optional: unset until given. std::vector: may be
  // given again and again.
  template <typename T, typename Owner>
  ParamTable& Param(std::string_view name, T Owner::* member, ParamInfo info) {
    using Value = ParamValue<ElementOf<T>>;
    auto parse = param_internal::ParserFor<ElementOf<T>>(info);
    if constexpr (std::is_same_v<ElementOf<T>, std::string>) {
      if (!info.choices.empty()) {
        parse = [choices = info.choices](std::string_view text) -> absl::StatusOr<std::string> {
          absl::StatusOr<size_t> index = param_internal::FindChoice(choices, text);
          if (!index.ok()) return index.status();
          return choices[*index];
        };
      }
    }
    ParamRow row = MakeRow(name, member, std::move(info), std::move(parse), Value::Format);
    row.type = Value::kType;
    row.word = !row.info.word.empty()            ? row.info.word
               : !row.choices.empty()            ? JoinedChoices(row)
               : row.info.path != PathUse::kNone ? "PATH"
                                                 : std::string(Value::kWord);
    Add(std::move(row));
    return *this;
  }

  // A value that is one of some names. Of several names for one value the first is the one that
  // help shows as default.
  template <typename T, typename Owner>
  ParamTable& Param(std::string_view name, T Owner::* member,
                    std::initializer_list<std::pair<std::string_view, ElementOf<T>>> values,
                    ParamInfo info) {
    std::vector<std::pair<std::string, ElementOf<T>>> table(values.begin(), values.end());
    info.choices.clear();
    for (const auto& [text, value] : table) info.choices.push_back(text);
    auto parse = [table,
                  choices = info.choices](std::string_view text) -> absl::StatusOr<ElementOf<T>> {
      absl::StatusOr<size_t> index = param_internal::FindChoice(choices, text);
      if (!index.ok()) return index.status();
      return table[*index].second;
    };
    auto format = [table](const ElementOf<T>& wanted) {
      for (const auto& [text, value] : table) {
        if (value == wanted) return text;
      }
      return std::string();
    };
    ParamRow row = MakeRow(name, member, std::move(info), std::move(parse), std::move(format));
    row.type = "choice";
    row.word = row.info.word.empty() ? JoinedChoices(row) : row.info.word;
    row.is_switch = false;
    Add(std::move(row));
    return *this;
  }

  // Every key that has no row is appended to `member`, in the order given.
  ParamTable& AnyKey(std::vector<std::pair<std::string, std::string>> Config::* member,
                     std::string help, bool takes_words = false) {
    any_key_help_ = std::move(help);
    any_key_takes_words_ = takes_words;
    set_any_ = [member](void* config, std::string_view key, std::string_view value) {
      (static_cast<Config*>(config)->*member).emplace_back(key, value);
      return absl::OkStatus();
    };
    return *this;
  }

 private:
  static std::string JoinedChoices(const ParamRow& row) {
    std::string word;
    for (const std::string& choice : row.choices)
      absl::StrAppend(&word, word.empty() ? "" : "|", choice);
    return word;
  }

  template <typename T, typename Owner, typename Parse, typename Format>
  ParamRow MakeRow(std::string_view name, T Owner::* member, ParamInfo info, Parse parse,
                   Format format) {
    static_assert(std::is_base_of_v<Owner, Config>);
    using Kind = param_internal::Member<T>;
    using Element = typename Kind::Element;
    ParamRow row;
    row.name = std::string(name);
    row.choices = info.choices;
    row.repeatable = Kind::kRepeatable;
    row.is_switch = std::is_same_v<Element, bool> && !Kind::kRepeatable;
    row.is_text = std::is_same_v<Element, std::string> && info.choices.empty();
    row.is_secret = std::is_same_v<Element, Secret>;
    row.set = [member, parse](void* config, std::string_view text) -> absl::Status {
      absl::StatusOr<Element> value = parse(text);
      if (!value.ok()) return value.status();
      T& into = static_cast<Config*>(config)->*member;
      if constexpr (Kind::kRepeatable) {
        into.push_back(*std::move(value));
      } else {
        into = *std::move(value);
      }
      return absl::OkStatus();
    };
    row.values = [member, format](const void* config) {
      std::vector<std::string> texts;
      param_internal::ForEachValue(static_cast<const Config*>(config)->*member,
                                   [&](const auto& value) { texts.push_back(format(value)); });
      return texts;
    };
    Config defaults;
    if (!info.required && !row.is_secret) {
      for (const std::string& text : row.values(&defaults)) {
        absl::StrAppend(&row.default_text, row.default_text.empty() ? "" : " ", text);
      }
    }
    row.info = std::move(info);
    return row;
  }
};

}  // namespace blk
