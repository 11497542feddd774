#pragma once
// What the subcommands share: a table entry each, options with -h, and running a task on loops.
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/core/loop.h"
#include "src/core/options.h"
#include "src/core/param.h"

namespace blk {

struct ToolExample {
  std::string_view command;
  std::string_view text;
};

// One subcommand.
struct Tool {
  std::string_view name;
  std::string_view summary;   // one line, no full stop
  std::string_view synopsis;  // after `blk NAME`
  std::vector<ToolExample> examples;
  const ParamRows& (*rows)();
  int (*run)(std::span<const std::string> arguments);  // the exit status
};

// The written list, in the order of help. tools.cc.
const std::vector<Tool>& Tools();
const Tool* FindTool(std::string_view name);

// Options that every tool has; a tool's Config inherits it.
struct CommonOptions {
  bool help = false;
  bool verbose = false;
  Size memory{limits::kMemoryBytesDefault};
};
template <typename Config>
ParamTable<Config>& AddCommonOptions(ParamTable<Config>& table) {
  return table.Param("help", &Config::help, {.help = "print this help", .letter = 'h'})
      .Param("verbose", &Config::verbose,
             {.help = "say what happens, on standard error", .letter = 'v'})
      .Param("memory", &Config::memory,
             {.help = "most memory for buffers and queues", .min = "16M"});
}

std::string ToolHelpText(const Tool& tool);

// Prints "blk NAME: error: …" to standard error and returns 1, or returns 0 for OK.
int ExitStatusOf(std::string_view tool, const absl::Status& status);

// Reads the options of `tool_name` into `config`. Nothing when help was asked for and printed, or
// something was wrong and said; *exit_status is set then.
std::optional<std::vector<std::string>> ParseToolOptions(std::string_view tool_name,
                                                         const ParamRows& rows,
                                                         CommonOptions* common, void* config,
                                                         std::span<const std::string> arguments,
                                                         OptionSyntax syntax, int* exit_status);
template <typename Config>
std::optional<std::vector<std::string>> ParseTool(std::string_view tool_name, const ParamRows& rows,
                                                  Config* config,
                                                  std::span<const std::string> arguments,
                                                  int* exit_status, OptionSyntax syntax = {}) {
  return ParseToolOptions(tool_name, rows, config, config, arguments, syntax, exit_status);
}

// As many loops as the process may use processors, unless `wanted` says how many.
int LoopCount(int wanted);

}  // namespace blk
