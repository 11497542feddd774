#pragma once
// What this process may still do once it serves strangers: the files that its layers declared, the
// system calls that serving needs, and nothing else. Landlock bounds the files, seccomp the calls;
// programs are started by the spawner, which stays outside.
//
// Owner: core. Before threads: every thread that is started later is inside too. There is no way
// back out.
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "src/core/spec.h"

namespace blk {

struct SandboxRules {
  std::vector<std::string> read;       // files, or folders with all that is below
  std::vector<std::string> write;      // the same, to read and write
  std::vector<std::string> create;     // files to make, write and remove
  std::vector<std::string> temporary;  // folders in which anything may be made, used and removed
  std::vector<std::string> remove;     // files, or empty folders, to remove only
  bool network = false;                // connections to others; accepting needs no permission
  bool programs = false;               // a layer starts some, by the spawner
};

// Adds what layers will use. Temporary files mean the folder that is named, or else the
// usual ones.
void AddNeeds(std::span<const Need> needs, SandboxRules* rules);

struct SandboxReport {
  bool paths = false;  // bounded
  bool calls = false;
  std::string text;  // what was applied, or why not, for people
};

// Applies as much as the kernel has; what it lacks is no error. Paths that do not exist stand for
// the folder in which they would be made. An error leaves the process with part of the bounds.
absl::StatusOr<SandboxReport> EnterSandbox(const SandboxRules& rules);

}  // namespace blk
