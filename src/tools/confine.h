#pragma once
// The sandbox of a server, as its options want it. Owner: tools. Before threads.
#include "src/core/sandbox.h"

namespace blk {

enum class SandboxMode { kAuto, kOn, kOff };

// Only what `rules` allow from now on. kOn: EOPNOTSUPP when the kernel cannot bound everything.
absl::Status Confine(SandboxMode mode, const SandboxRules& rules);

}  // namespace blk
