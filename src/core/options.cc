#include "src/core/options.h"

#include <optional>

#include "absl/strings/match.h"
#include "absl/strings/strip.h"

namespace blk {
namespace {

class OptionParser {
 public:
  OptionParser(const ParamRows& rows, void* config, std::string_view tool,
               std::span<const std::string> args)
      : rows_(rows),
        tool_(tool),
        args_(args),
        reader_(rows, config, std::string(tool), ParamReader::Style::kOption) {}

  absl::StatusOr<std::vector<std::string>> Run(OptionSyntax syntax) {
    while (next_ < args_.size()) {
      const std::string& arg = args_[next_++];
      if (arg == "--") break;
      if (absl::StartsWith(arg, "--")) {
        BLK_RETURN_IF_ERROR(Long(std::string_view(arg).substr(2)));
      } else if (absl::StartsWith(arg, "-") && arg != "-") {
        BLK_RETURN_IF_ERROR(Short(std::string_view(arg).substr(1)));
      } else {
        words_.push_back(arg);
        if (syntax.stop_at_word) break;
        if (syntax.brackets && arg == "[") BLK_RETURN_IF_ERROR(Brackets());
      }
    }
    words_.insert(words_.end(), args_.begin() + static_cast<std::ptrdiff_t>(next_), args_.end());
    BLK_RETURN_IF_ERROR(reader_.Finish());
    return std::move(words_);
  }

 private:
  // The text after `--`: NAME, NAME=VALUE or no-NAME.
  absl::Status Long(std::string_view option) {
    size_t equals = option.find('=');
    std::string_view name = option.substr(0, equals);
    std::optional<std::string_view> value;
    if (equals != std::string_view::npos) value = option.substr(equals + 1);
    const ParamRow* row = rows_.Find(name);
    if (row == nullptr && absl::StartsWith(name, "no-")) return Opposite(name, value);
    if (row == nullptr) return reader_.Give(name, "");  // says what is wrong with the name
    if (value) return reader_.Give(row->name, *value);
    return GiveNext(*row, absl::StrCat("--", name));
  }

  absl::Status Opposite(std::string_view name, std::optional<std::string_view> value) {
    const ParamRow* row = rows_.Find(absl::StripPrefix(name, "no-"));
    if (row == nullptr || !row->is_switch) return reader_.Give(name, "");
    if (value) return Fail(absl::StrCat("option `--", name, "` takes no value"));
    return reader_.Give(row->name, "false");
  }

  // The text after `-`: switches run together, then perhaps one that takes the rest, or the next
  // word, as its value.
  absl::Status Short(std::string_view letters) {
    while (!letters.empty()) {
      char letter = letters[0];
      letters.remove_prefix(1);
      const ParamRow* row = rows_.FindLetter(letter);
      if (row == nullptr)
        return Fail(absl::StrCat("unknown option `-", std::string(1, letter), "`; -h lists them"));
      if (row->is_switch) {
        BLK_RETURN_IF_ERROR(reader_.Give(row->name, "true"));
      } else if (letters.empty() || row->info.if_bare) {
        BLK_RETURN_IF_ERROR(GiveNext(*row, absl::StrCat("-", std::string(1, letter))));
      } else {
        return reader_.Give(row->name, letters);
      }
    }
    return absl::OkStatus();
  }

  // An option without `=`: a switch is on, others take the next word, whatever it looks like.
  absl::Status GiveNext(const ParamRow& row, std::string_view shown) {
    if (row.is_switch) return reader_.Give(row.name, "true");
    if (row.info.if_bare) return reader_.Give(row.name, *row.info.if_bare);
    if (next_ == args_.size())
      return Fail(absl::StrCat("option `", shown, "` needs a value, ", row.word));
    return reader_.Give(row.name, args_[next_++]);
  }

  absl::Status Brackets() {
    while (next_ < args_.size()) {
      words_.push_back(args_[next_++]);
      if (words_.back() == "]") return absl::OkStatus();
    }
    return Fail("`[` without a word `]` after it");
  }

  absl::Status Fail(std::string_view text) const {
    return absl::InvalidArgumentError(absl::StrCat(tool_, ": ", text));
  }

  const ParamRows& rows_;
  std::string_view tool_;
  std::span<const std::string> args_;
  ParamReader reader_;
  size_t next_ = 0;
  std::vector<std::string> words_;
};

}  // namespace

absl::StatusOr<std::vector<std::string>> ParseOptions(const ParamRows& rows, void* config,
                                                      std::string_view tool,
                                                      std::span<const std::string> args,
                                                      OptionSyntax syntax) {
  return OptionParser(rows, config, tool, args).Run(syntax);
}

}  // namespace blk
