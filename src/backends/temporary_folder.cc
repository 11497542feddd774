#include "src/backends/temporary_folder.h"

#include <cerrno>
#include <cstdlib>
#include <filesystem>

#include "src/core/error.h"
#include "src/core/trace.h"

namespace blk {

TemporaryFolder::~TemporaryFolder() {
  if (path_.empty()) return;
  std::error_code error;
  std::filesystem::remove_all(path_, error);
  if (error) LogError(absl::StrCat("cannot remove ", path_, ": ", error.message()));
}

absl::Status TemporaryFolder::Make(const std::string& parent) {
  std::string path = absl::StrCat(parent, "/blkXXXXXX");
  if (mkdtemp(path.data()) == nullptr)
    return ErrnoError(errno, absl::StrCat("cannot make a temporary folder in ", parent));
  path_ = path;
  return absl::OkStatus();
}

std::string TemporaryFolder::LargeParent() {
  const char* parent = std::getenv("TMPDIR");
  return parent != nullptr && *parent != '\0' ? parent : "/var/tmp";
}

}  // namespace blk
