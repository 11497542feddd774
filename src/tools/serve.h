#pragma once
// `blk serve`: exposes a stack of layers over NBD, in the foreground, on loopback unless told
// otherwise.
#include "src/backends/stack.h"
#include "src/tools/tool.h"

namespace blk {

Tool ServeTool();

// What `[ serve … ]` opens without a server: the stack, and those options that still mean
// something.
struct ServeArguments {
  StackPlan plan;
  std::string export_name;
  bool read_only = false;
};
absl::StatusOr<ServeArguments> ParseServeArguments(std::span<const std::string> arguments);

}  // namespace blk
