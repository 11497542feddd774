#include "src/core/identity.h"

#include <grp.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "src/core/process.h"

namespace blk {
namespace {

// The number in the third field of the line of `file` that begins with `name:`. By hand: in a
// static program getpwnam would load modules of the C library that it was not built with.
std::optional<uint32_t> NumberInFile(const char* file, std::string_view name) {
  std::unique_ptr<FILE, int (*)(FILE*)> lines(std::fopen(file, "re"), std::fclose);
  if (!lines) return std::nullopt;
  char* line = nullptr;  // getline's
  size_t room = 0;
  std::optional<uint32_t> number;
  while (!number && getline(&line, &room, lines.get()) > 0) {
    std::vector<std::string_view> fields = absl::StrSplit(std::string_view(line), ':');
    uint32_t value = 0;
    if (fields.size() > 2 && fields[0] == name && absl::SimpleAtoi(fields[2], &value))
      number = value;
  }
  std::free(line);
  return number;
}

absl::StatusOr<uint32_t> Find(const char* file, std::string_view what, const std::string& name) {
  uint32_t number = 0;
  if (absl::SimpleAtoi(name, &number) && number != UINT32_MAX) return number;
  if (auto found = NumberInFile(file, name)) return *found;
  return absl::NotFoundError(
      absl::StrCat(name, " is neither a ", what, " in ", file, " nor a number"));
}

}  // namespace

absl::StatusOr<uid_t> FindUser(const std::string& name) {
  return Find("/etc/passwd", "user", name);
}
absl::StatusOr<gid_t> FindGroup(const std::string& name) {
  return Find("/etc/group", "group", name);
}

absl::Status DropPrivileges(const Identity& identity) {
  if (identity.empty()) return absl::OkStatus();
  BLK_RETURN_IF_ERROR(Spawner::BecomeForPrograms(identity));
  if (setgroups(identity.group ? 1 : 0, identity.group ? &*identity.group : nullptr) < 0)
    return ErrnoError(errno, "cannot leave our groups");
  if (identity.group && setgid(*identity.group) < 0)
    return ErrnoError(errno, absl::StrCat("cannot become group ", *identity.group));
  if (identity.user && setuid(*identity.user) < 0)
    return ErrnoError(errno, absl::StrCat("cannot become user ", *identity.user));
  return absl::OkStatus();
}

}  // namespace blk
