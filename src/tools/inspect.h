#pragma once
// The tools that look at a disk and change nothing: `blk map`, `blk info`, `blk dump`, `blk hash`.
#include "src/core/device.h"
#include "src/tools/endpoint.h"
#include "src/tools/tool.h"

namespace blk {

Tool MapTool();
Tool InfoTool();
Tool DumpTool();
Tool HashTool();

// Parses the one disk of `words`, opens it read-only on loops, runs `job` on it and closes it.
// Returns the exit status; failures are said as the tool's.
using InspectJob = std::function<Task<absl::Status>(Device* device)>;
int InspectDisk(std::string_view tool, std::span<const std::string> words, Endpoint::Wish wish,
                InspectJob job);

}  // namespace blk
