#pragma once
// `nbdkit -v`: a line for each call of each layer, as nbdkit writes them and as scripts look for
// them.
#include "src/backends/stack.h"

namespace blk {

struct NbdkitTrace {
  bool control = true;  // -D nbdkit.backend.controlpath
  bool data = true;     // -D nbdkit.backend.datapath
};

// For BuildStack. `plugin`: the name that stands at the beginning of the lines.
LayerHook MakeNbdkitTraceHook(NbdkitTrace trace, std::string plugin);

}  // namespace blk
