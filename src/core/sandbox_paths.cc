#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_join.h"
#include "src/core/descriptor.h"
#include "src/core/sandbox_parts.h"

namespace blk::sandbox {
namespace {

// landlock(7). Written out, since the headers of the machine that compiles may be older than the
// kernel that runs.
constexpr uint64_t kWriteFile = 1 << 1, kReadFile = 1 << 2, kReadFolder = 1 << 3,
                   kRemoveFolder = 1 << 4, kRemoveFile = 1 << 5, kMakeFolder = 1 << 7,
                   kMakeFile = 1 << 8, kMakeSocket = 1 << 9, kMakeFifo = 1 << 10,
                   kMakeLink = 1 << 12, kMove = 1 << 13, kTruncate = 1 << 14,
                   kDeviceControl = 1 << 15;
constexpr uint64_t kOfFiles = (1 << 0) | kWriteFile | kReadFile | kTruncate | kDeviceControl;
constexpr uint64_t kRead = kReadFile | kReadFolder;
constexpr uint64_t kWrite = kRead | kWriteFile | kTruncate | kDeviceControl;
constexpr uint64_t kAnything = kWrite | kRemoveFolder | kRemoveFile | kMakeFolder | kMakeFile |
                               kMakeSocket | kMakeFifo | kMakeLink | kMove;
constexpr uint64_t kBindTcp = 1 << 0, kConnectTcp = 1 << 1;
constexpr uint64_t kScopeAbstractSocket = 1 << 0, kScopeSignal = 1 << 1;
constexpr int kVersionQuestion = 1 << 0;
constexpr int kRulePathBeneath = 1;

constexpr long kCreateRuleset = 444, kAddRule = 445, kRestrictSelf = 446;

struct RulesetAttributes {
  uint64_t files = 0;
  uint64_t network = 0;  // since version 4
  uint64_t scopes = 0;   // since version 6
};
struct [[gnu::packed]] PathAttributes {
  uint64_t allowed = 0;
  int32_t folder = -1;
};

// What each version of Landlock can bound.
uint64_t FileRightsOf(int version) {
  constexpr int kBitsOfVersion[] = {0, 13, 14, 15, 15, 16};
  return (uint64_t{1} << kBitsOfVersion[std::min(version, 5)]) - 1;
}

// Files of the system that resolving a host name and verifying its certificate read.
constexpr const char* kNetworkFiles[] = {"/etc/resolv.conf",
                                         "/etc/hosts",
                                         "/etc/nsswitch.conf",
                                         "/etc/gai.conf",
                                         "/etc/host.conf",
                                         "/etc/services",
                                         "/etc/ssl",
                                         "/etc/pki",
                                         "/usr/lib/ssl",
                                         "/etc/ca-certificates",
                                         "/usr/share/ca-certificates",
                                         "/usr/local/share/ca-certificates"};

std::string FolderOf(const std::string& path) {
  const size_t slash = path.find_last_not_of('/') == std::string::npos
                           ? std::string::npos
                           : path.rfind('/', path.find_last_not_of('/'));
  if (slash == std::string::npos) return path.starts_with('/') ? "/" : ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

bool Exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

class Ruleset {
 public:
  explicit Ruleset(uint64_t rights) : rights_(rights) {}

  absl::Status Start(const RulesetAttributes& attributes, size_t attribute_bytes) {
    fd_.Reset(static_cast<int>(syscall(kCreateRuleset, &attributes, attribute_bytes, 0)));
    return fd_.valid() ? absl::OkStatus() : ErrnoError(errno, "sandbox: Landlock");
  }

  // For what does not exist its folder stands. What we may not even look at we need not allow.
  absl::Status Allow(const std::string& path, uint64_t rights) {
    const Descriptor place(open(path.c_str(), O_PATH | O_CLOEXEC));
    if (!place.valid() && errno == ENOENT) return Allow(FolderOf(path), rights);
    struct stat status;
    if (!place.valid() || fstat(place.get(), &status) != 0) return absl::OkStatus();
    if (!S_ISDIR(status.st_mode)) rights &= kOfFiles;
    PathAttributes attributes{.allowed = rights & rights_, .folder = place.get()};
    if (attributes.allowed == 0) return absl::OkStatus();
    if (syscall(kAddRule, fd_.get(), kRulePathBeneath, &attributes, 0) == 0)
      return absl::OkStatus();
    return ErrnoError(errno, absl::StrCat("sandbox: cannot allow ", path));
  }

  absl::Status Enter() {
    if (syscall(kRestrictSelf, fd_.get(), 0) == 0) return absl::OkStatus();
    return ErrnoError(errno, "sandbox: Landlock");
  }

 private:
  const uint64_t rights_;
  Descriptor fd_;
};

absl::Status AllowAll(const SandboxRules& rules, Ruleset* ruleset) {
  BLK_RETURN_IF_ERROR(ruleset->Allow("/dev/null", kWrite));
  for (const std::string& path : rules.read) BLK_RETURN_IF_ERROR(ruleset->Allow(path, kRead));
  for (const std::string& path : rules.write) BLK_RETURN_IF_ERROR(ruleset->Allow(path, kWrite));
  for (const std::string& path : rules.create) {
    // What exists already is all that is written; else anything in the folder might be it.
    const uint64_t entries = kMakeFile | kMakeSocket | kRemoveFile;
    BLK_RETURN_IF_ERROR(ruleset->Allow(FolderOf(path), entries));
    BLK_RETURN_IF_ERROR(ruleset->Allow(path, kWrite & ~kReadFolder));
  }
  for (const std::string& path : rules.temporary)
    BLK_RETURN_IF_ERROR(ruleset->Allow(path, kAnything));
  for (const std::string& path : rules.remove)
    BLK_RETURN_IF_ERROR(ruleset->Allow(FolderOf(path), kRemoveFile | kRemoveFolder));
  if (!rules.network) return absl::OkStatus();
  for (const char* path : kNetworkFiles) {
    if (Exists(path)) BLK_RETURN_IF_ERROR(ruleset->Allow(path, kRead));
  }
  return absl::OkStatus();
}

std::string Describe(const SandboxRules& rules, int version) {
  std::string text = absl::StrCat("files by Landlock ", version);
  const auto add = [&text](std::string_view what, const std::vector<std::string>& paths) {
    if (!paths.empty()) absl::StrAppend(&text, ", ", what, " ", absl::StrJoin(paths, " "));
  };
  add("read", rules.read);
  add("write", rules.write);
  add("create", rules.create);
  add("temporary files in", rules.temporary);
  add("remove", rules.remove);
  absl::StrAppend(&text, rules.network ? ", network" : ", no network",
                  rules.programs ? ", programs" : ", no programs");
  return text;
}

}  // namespace

absl::StatusOr<std::string> BoundPaths(const SandboxRules& rules) {
  const long version = syscall(kCreateRuleset, nullptr, 0, kVersionQuestion);
  if (version < 1)
    return absl::UnimplementedError("files not bounded: this kernel has no Landlock");
  const uint64_t rights = FileRightsOf(static_cast<int>(version));
  RulesetAttributes attributes{.files = rights};
  size_t attribute_bytes = sizeof attributes.files;
  if (version >= 4) {
    attribute_bytes += sizeof attributes.network;
    if (!rules.network) attributes.network = kBindTcp | kConnectTcp;
  }
  if (version >= 6) {
    attribute_bytes += sizeof attributes.scopes;
    attributes.scopes = kScopeAbstractSocket | kScopeSignal;
  }
  Ruleset ruleset(rights);
  BLK_RETURN_IF_ERROR(ruleset.Start(attributes, attribute_bytes));
  BLK_RETURN_IF_ERROR(AllowAll(rules, &ruleset));
  BLK_RETURN_IF_ERROR(ruleset.Enter());
  return Describe(rules, static_cast<int>(version));
}

}  // namespace blk::sandbox
