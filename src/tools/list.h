#pragma once
// `blk list` and `blk help`: what backends, filters and tools there are, from the rows that parse
// their parameters.
#include "src/tools/tool.h"

namespace blk {

Tool ListTool();
Tool HelpTool();

}  // namespace blk
