#include "src/core/file_text.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "src/core/descriptor.h"
#include "src/core/error.h"

namespace blk {

absl::StatusOr<std::string> ReadFileText(const std::string& path, size_t bytes_max) {
  const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NOCTTY));
  if (file.get() < 0) return ErrnoError(errno, absl::StrCat("cannot read ", path));
  std::string text;
  for (;;) {
    char piece[16384];
    const ssize_t got = read(file.get(), piece, sizeof piece);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoError(errno, absl::StrCat("cannot read ", path));
    if (got == 0) return text;
    text.append(piece, static_cast<size_t>(got));
    if (text.size() > bytes_max)
      return ErrnoError(EFBIG, absl::StrCat(path, " has more than ", bytes_max, " bytes"));
  }
}

}  // namespace blk
