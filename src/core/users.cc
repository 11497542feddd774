#include "src/core/users.h"

#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "src/core/error.h"
#include "src/core/file_text.h"

namespace blk {

namespace {

constexpr size_t kName = 0, kNumber = 2, kGroup = 3;  // fields of a line

absl::StatusOr<std::vector<std::string>> Find(uid_t uid) {
  constexpr size_t kListBytesMax = 64u << 20;
  BLK_ASSIGN_OR_RETURN(const std::string text, ReadFileText("/etc/passwd", kListBytesMax));
  for (std::string_view line : absl::StrSplit(text, '\n')) {
    std::vector<std::string> fields = absl::StrSplit(line, ':');
    if (fields.size() > kGroup && fields[kNumber] == absl::StrCat(uid)) return fields;
  }
  return absl::NotFoundError(absl::StrCat("user ", uid, " is not in /etc/passwd"));
}

}  // namespace

absl::StatusOr<std::string> UserName(uid_t uid) {
  BLK_ASSIGN_OR_RETURN(const auto fields, Find(uid));
  return fields[kName];
}

absl::StatusOr<gid_t> GroupOfUser(uid_t uid) {
  BLK_ASSIGN_OR_RETURN(const auto fields, Find(uid));
  gid_t group = 0;
  if (absl::SimpleAtoi(fields[kGroup], &group)) return group;
  return absl::NotFoundError(absl::StrCat("the group of user ", uid, " in /etc/passwd is none"));
}

}  // namespace blk
