#include "src/core/users.h"

#include <vector>

#include "absl/strings/str_split.h"
#include "src/core/error.h"
#include "src/core/file_text.h"

namespace blk {

absl::StatusOr<std::string> UserName(uid_t uid) {
  constexpr size_t kListBytesMax = 64u << 20;
  constexpr size_t kName = 0, kNumber = 2;
  BLK_ASSIGN_OR_RETURN(const std::string text, ReadFileText("/etc/passwd", kListBytesMax));
  for (std::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<std::string_view> fields = absl::StrSplit(line, ':');
    if (fields.size() > kNumber && fields[kNumber] == absl::StrCat(uid))
      return std::string(fields[kName]);
  }
  return absl::NotFoundError(absl::StrCat("user ", uid, " is not in /etc/passwd"));
}

}  // namespace blk
