#include "src/core/spec.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "src/core/param_text.h"

namespace blk {
namespace {

std::optional<Need::Kind> NeedOf(PathUse use) {
  switch (use) {
    case PathUse::kNone:
      return std::nullopt;
    case PathUse::kRead:
      return Need::Kind::kReadPath;
    case PathUse::kReadWrite:
      return Need::Kind::kReadWritePath;
    case PathUse::kCreate:
      return Need::Kind::kCreatePath;
  }
  return std::nullopt;
}

std::string Usage(const Spec& spec) {
  std::string params = ParamUsage(spec.params());
  std::string line = spec.is_filter()
                         ? absl::StrCat("blk serve --filter=", spec.name(), " BACKEND ...")
                         : absl::StrCat("blk serve ", spec.name());
  return absl::StrCat(line, params.empty() ? "" : " ", params);
}

std::string ListOf(const std::vector<const Spec*>& specs, Spec::Kind kind, std::string_view title) {
  std::string result;
  for (const Spec* spec : specs) {
    if (spec->kind() != kind) continue;
    absl::StrAppend(&result, result.empty() ? absl::StrCat(title, ":\n") : "", "  ", spec->name(),
                    std::string(spec->name().size() < 18 ? 18 - spec->name().size() : 1, ' '),
                    spec->summary(), "\n");
  }
  return result;
}

}  // namespace

std::string_view NeedName(Need::Kind kind) {
  switch (kind) {
    case Need::Kind::kReadPath:
      return "read";
    case Need::Kind::kReadWritePath:
      return "read-write";
    case Need::Kind::kCreatePath:
      return "create";
    case Need::Kind::kNetwork:
      return "network";
    case Need::Kind::kProgram:
      return "program";
    case Need::Kind::kTemporaryFile:
      return "temporary";
  }
  return "";
}

std::vector<Need> Spec::NeedsOf(const void* config) const {
  std::vector<Need> needs = needs_;
  for (const ParamRow& row : params_->rows()) {
    std::optional<Need::Kind> kind = NeedOf(row.info.path);
    if (!kind) continue;
    for (std::string& path : row.values(config)) {
      if (!path.empty()) needs.push_back({*kind, std::move(path)});
    }
  }
  if (more_needs_) {
    for (Need& need : more_needs_(config)) needs.push_back(std::move(need));
  }
  return needs;
}

std::string SpecHelp(const Spec& spec) {
  std::string result = absl::StrCat(spec.name(), ": ", spec.summary(), "\n\n");
  absl::StrAppend(&result, WrapText("Usage: " + Usage(spec), 0));
  if (!spec.description().empty()) absl::StrAppend(&result, "\n", WrapText(spec.description(), 0));
  std::string params = ParamHelp(spec.params(), ParamStyle::kKeyValue);
  if (!params.empty()) absl::StrAppend(&result, "\nParameters:\n", params);
  if (!spec.examples().empty()) absl::StrAppend(&result, "\nExamples, as any tool takes them:\n");
  for (const Example& example : spec.examples()) {
    absl::StrAppend(&result, "  ", example.spec, "\n");
    if (!example.text.empty()) absl::StrAppend(&result, WrapText(example.text, 6));
  }
  return result;
}

std::string SpecJson(const Spec& spec) {
  auto example_json = [](std::string* out, const Example& example) {
    absl::StrAppend(out, "{\"spec\":", JsonQuote(example.spec));
    if (!example.text.empty()) absl::StrAppend(out, ",\"text\":", JsonQuote(example.text));
    absl::StrAppend(out, "}");
  };
  return absl::StrCat(
      "{\"name\":", JsonQuote(spec.name()), ",\"kind\":\"", spec.is_filter() ? "filter" : "backend",
      "\",\"summary\":", JsonQuote(spec.summary()), ",\"parameters\":", ParamJson(spec.params()),
      ",\"takes_any_key\":", spec.params().takes_any_key() ? "true" : "false", ",\"examples\":[",
      absl::StrJoin(spec.examples(), ",", example_json), "]}");
}

std::string SpecList(const std::vector<const Spec*>& specs) {
  std::string backends = ListOf(specs, Spec::Kind::kBackend, "Backends");
  std::string filters = ListOf(specs, Spec::Kind::kFilter, "Filters");
  return absl::StrCat(backends, backends.empty() || filters.empty() ? "" : "\n", filters);
}

}  // namespace blk
