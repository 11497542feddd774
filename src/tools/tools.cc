// The list of subcommands.
#include "src/tools/copy.h"
#include "src/tools/serve.h"
#include "src/tools/tool.h"

namespace blk {

const std::vector<Tool>& Tools() {
  static const auto& tools = *new std::vector<Tool>{
      ServeTool(),
      CopyTool(),
  };
  return tools;
}

}  // namespace blk
