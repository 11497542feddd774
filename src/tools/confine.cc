#include "src/tools/confine.h"

#include "src/core/trace.h"

namespace blk {

absl::Status Confine(SandboxMode mode, const SandboxRules& rules) {
  if (mode == SandboxMode::kOff) return absl::OkStatus();
  BLK_ASSIGN_OR_RETURN(const SandboxReport report, EnterSandbox(rules));
  LogDebug("sandbox: ", report.text);
  if (mode == SandboxMode::kAuto || (report.paths && report.calls)) return absl::OkStatus();
  return ErrnoErrorAsIs(EOPNOTSUPP, absl::StrCat("--sandbox=on cannot be had: ", report.text,
                                                 "; --sandbox=auto takes what there is"));
}

}  // namespace blk
