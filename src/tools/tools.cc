// The list of subcommands.
#include "src/tools/bench.h"
#include "src/tools/copy.h"
#include "src/tools/inspect.h"
#include "src/tools/list.h"
#include "src/tools/serve.h"
#include "src/tools/tls.h"
#include "src/tools/tool.h"

namespace blk {

const std::vector<Tool>& Tools() {
  static const auto& tools = *new std::vector<Tool>{
      ServeTool(), CopyTool(),  MapTool(), InfoTool(), DumpTool(),
      HashTool(),  BenchTool(), TlsTool(), ListTool(), HelpTool(),
  };
  return tools;
}

}  // namespace blk
