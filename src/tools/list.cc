#include "src/tools/list.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_join.h"
#include "src/backends/registry.h"
#include "src/core/param_text.h"
#include "src/core/suggest.h"

namespace blk {
namespace {

struct ListConfig : CommonOptions {
  bool json = false;
};

const ParamTable<ListConfig>& ListRows() {
  static const auto& table = *[] {
    auto* rows = new ParamTable<ListConfig>;
    rows->Param("json", &ListConfig::json, {.help = "print JSON, with all parameters"});
    return &AddCommonOptions(*rows);
  }();
  return table;
}

int ListMain(std::span<const std::string> arguments) {
  ListConfig config;
  int exit_status = 0;
  auto words = ParseTool("list", ListRows(), &config, arguments, &exit_status);
  if (!words) return exit_status;
  if (!words->empty())
    return ExitStatusOf("list", absl::InvalidArgumentError(
                                    "this takes no words; `blk help NAME` explains one of them"));
  const std::vector<const Spec*> specs = AllSpecs().specs();
  if (config.json) {
    std::vector<std::string> objects;
    for (const Spec* spec : specs) objects.push_back(SpecJson(*spec));
    std::printf("[\n%s\n]\n", absl::StrJoin(objects, ",\n").c_str());
  } else {
    std::fputs(SpecList(specs).c_str(), stdout);
  }
  return 0;
}

// Everything that `blk help NAME` explains.
std::vector<std::string_view> AllNames() {
  std::vector<std::string_view> names;
  for (const Tool& tool : Tools()) names.push_back(tool.name);
  for (const Spec* spec : AllSpecs().specs()) names.push_back(spec->name());
  return names;
}

const ParamTable<CommonOptions>& HelpRows() {
  static const auto& table = *[] {
    auto* rows = new ParamTable<CommonOptions>;
    return &AddCommonOptions(*rows);
  }();
  return table;
}

int HelpMain(std::span<const std::string> arguments) {
  CommonOptions config;
  int exit_status = 0;
  auto words = ParseTool("help", HelpRows(), &config, arguments, &exit_status);
  if (!words) return exit_status;
  if (words->size() != 1)
    return ExitStatusOf(
        "help", absl::InvalidArgumentError("name one backend, filter or tool; `blk list` and `blk "
                                           "--help` show them"));
  const std::string& name = (*words)[0];
  // A name may be both a backend's and a filter's (exportname is not, but nothing forbids it).
  std::string text;
  if (const Tool* tool = FindTool(name)) text += ToolHelpText(*tool);
  for (const Spec* spec : AllSpecs().specs())
    if (spec->name() == name) absl::StrAppend(&text, text.empty() ? "" : "\n", SpecHelp(*spec));
  if (text.empty()) {
    std::vector<std::string_view> names = AllNames();
    return ExitStatusOf("help", absl::NotFoundError(absl::StrCat(
                                    "there is no backend, filter or tool `", name, "`",
                                    DidYouMean(name, names), "; `blk list` shows what there is")));
  }
  std::fputs(text.c_str(), stdout);
  return 0;
}

}  // namespace

Tool ListTool() {
  return {.name = "list",
          .summary = "show the backends and filters, one line each",
          .synopsis = "[--json]",
          .examples = {{"blk list", "all of them"},
                       {"blk list --json | jq -r '.[].name'", "their names, for a script"}},
          .rows = []() -> const ParamRows& { return ListRows(); },
          .run = ListMain};
}

Tool HelpTool() {
  return {.name = "help",
          .summary = "explain a backend, a filter or a tool",
          .synopsis = "NAME",
          .examples = {{"blk help memory", "its parameters and examples"},
                       {"blk help copy", "the same as `blk copy -h`"}},
          .rows = []() -> const ParamRows& { return HelpRows(); },
          .run = HelpMain};
}

}  // namespace blk
