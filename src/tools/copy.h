#pragma once
// `blk copy`: moves the content of one disk to another.
#include "src/tools/tool.h"

namespace blk {

Tool CopyTool();

}  // namespace blk
