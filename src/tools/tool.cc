#include "src/tools/tool.h"

#include <sched.h>

#include <algorithm>
#include <cstdio>

#include "src/core/budget.h"
#include "src/core/param_text.h"
#include "src/core/trace.h"

namespace blk {

const Tool* FindTool(std::string_view name) {
  for (const Tool& tool : Tools())
    if (tool.name == name) return &tool;
  return nullptr;
}

std::string ToolHelpText(const Tool& tool) {
  std::string text = absl::StrCat("blk ", tool.name, " ", tool.synopsis, "\n", tool.summary,
                                  "\n\nOptions:\n", ParamHelp(tool.rows(), ParamStyle::kOption));
  if (!tool.examples.empty()) absl::StrAppend(&text, "\nExamples:\n");
  for (const ToolExample& example : tool.examples)
    absl::StrAppend(&text, "  ", example.command, "\n      ", example.text, "\n");
  return text;
}

int ExitStatusOf(std::string_view tool, const absl::Status& status) {
  if (status.ok()) return 0;
  std::fprintf(stderr, "blk %.*s: error: %s\n", static_cast<int>(tool.size()), tool.data(),
               std::string(status.message()).c_str());
  return 1;
}

std::optional<std::vector<std::string>> ParseToolOptions(std::string_view tool_name,
                                                         const ParamRows& rows,
                                                         CommonOptions* common, void* config,
                                                         std::span<const std::string> arguments,
                                                         OptionSyntax syntax, int* exit_status) {
  auto words = ParseOptions(rows, config, absl::StrCat("blk ", tool_name), arguments, syntax);
  if (common->help) {
    std::fputs(ToolHelpText(*FindTool(tool_name)).c_str(), stdout);
    *exit_status = 0;
    return std::nullopt;
  }
  if (!words.ok()) {
    std::fprintf(stderr, "%s\nTry `blk %.*s -h`.\n", std::string(words.status().message()).c_str(),
                 static_cast<int>(tool_name.size()), tool_name.data());
    *exit_status = 1;
    return std::nullopt;
  }
  SetVerbose(common->verbose);
  MemoryBudget::SetProcessBytes(common->memory.bytes);
  return *std::move(words);
}

int LoopCount(int wanted) {
  if (wanted > 0) return std::min(wanted, limits::kLoopsMax);
  cpu_set_t set;
  CPU_ZERO(&set);
  int count = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
  return std::clamp(count, 1, limits::kLoopsMax);
}

}  // namespace blk
