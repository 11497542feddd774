#pragma once
// The two halves of the sandbox. Owner: core/sandbox.
#include <string>

#include "absl/status/statusor.h"
#include "src/core/sandbox.h"

namespace blk::sandbox {

// Bounds the files, with Landlock. A text about it; Unimplemented when the kernel has none.
absl::StatusOr<std::string> BoundPaths(const SandboxRules& rules);
// Bounds the system calls, with seccomp. The same.
absl::StatusOr<std::string> BoundCalls(const SandboxRules& rules);

}  // namespace blk::sandbox
