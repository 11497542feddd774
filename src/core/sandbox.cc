#include "src/core/sandbox.h"

#include <sys/prctl.h>

#include <cerrno>
#include <cstdlib>
#include <ctime>

#include "src/core/sandbox_parts.h"

namespace blk {
namespace {

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define BLK_SANITIZED
#endif
#endif
#ifdef BLK_SANITIZED
constexpr bool kSanitized = true;  // they open, map and start what no layer declares
#else
constexpr bool kSanitized = false;
#endif

// Large files go to the first, sockets (whose paths must be short) to the second.
std::vector<std::string> TemporaryFolders() {
  const char* folder = getenv("TMPDIR");
  return {folder == nullptr || *folder == '\0' ? "/var/tmp" : folder, "/tmp"};
}

// Notes in `text` what became of one half; whether it is in force.
absl::StatusOr<bool> Note(const absl::StatusOr<std::string>& applied, std::string* text) {
  if (!text->empty()) text->append("; ");
  text->append(applied.ok() ? *applied : std::string(applied.status().message()));
  if (applied.ok() || absl::IsUnimplemented(applied.status())) return applied.ok();
  return applied.status();
}

}  // namespace

void AddNeeds(std::span<const Need> needs, SandboxRules* rules) {
  for (const Need& need : needs) {
    switch (need.kind) {
      case Need::Kind::kReadPath:
        rules->read.push_back(need.what);
        break;
      case Need::Kind::kReadWritePath:
        rules->write.push_back(need.what);
        break;
      case Need::Kind::kCreatePath:
        rules->create.push_back(need.what);
        break;
      case Need::Kind::kNetwork:
        rules->network = true;
        break;
      case Need::Kind::kTemporaryFile:
        if (!need.what.empty()) {
          rules->temporary.push_back(need.what);
        } else {
          for (std::string& folder : TemporaryFolders())
            rules->temporary.push_back(std::move(folder));
        }
        break;
      case Need::Kind::kProgram:
        rules->programs = true;
        break;
    }
  }
}

absl::StatusOr<SandboxReport> EnterSandbox(const SandboxRules& rules) {
  SandboxReport report;
  if (kSanitized) {
    report.text = "none: this program was built with a sanitizer";
    return report;
  }
  tzset();  // reads files, and the log may print times later
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0)
    return ErrnoError(errno, "sandbox: cannot give up new privileges");
  BLK_ASSIGN_OR_RETURN(report.paths, Note(sandbox::BoundPaths(rules), &report.text));
  BLK_ASSIGN_OR_RETURN(report.calls, Note(sandbox::BoundCalls(rules), &report.text));
  return report;
}

}  // namespace blk
