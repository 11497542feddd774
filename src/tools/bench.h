#pragma once
// `blk bench`: a load generator for disks and NBD servers.
#include "src/tools/tool.h"

namespace blk {

Tool BenchTool();

}  // namespace blk
