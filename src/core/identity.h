#pragma once
// User and group of this process, and giving up what root may do.
//
// Owner: core. Drop() before threads of ours; the look-ups read /etc/passwd and /etc/group.
#include <sys/types.h>

#include <optional>
#include <string>

#include "src/core/error.h"

namespace blk {

struct Identity {
  std::optional<uid_t> user;
  std::optional<gid_t> group;
  bool empty() const { return !user && !group; }
};

// A name, or a number. NotFound if it is neither.
absl::StatusOr<uid_t> FindUser(const std::string& name);
absl::StatusOr<gid_t> FindGroup(const std::string& name);

// This process becomes `identity`, the group first, without supplementary groups. Programs started
// from now on are of the same identity, those that run stay what they are. For ever.
absl::Status DropPrivileges(const Identity& identity);

}  // namespace blk
