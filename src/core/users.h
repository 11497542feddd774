#pragma once
// Users of this machine by /etc/passwd: a static program cannot load the machine's name service
// modules. Blocking; any thread.
#include <sys/types.h>

#include <string>

#include "absl/status/statusor.h"

namespace blk {

// The name of a user; NotFound.
absl::StatusOr<std::string> UserName(uid_t uid);
// The group that it logs in with; NotFound.
absl::StatusOr<gid_t> GroupOfUser(uid_t uid);

}  // namespace blk
