// Passwords and keys given as parameters, by nbdkit's rules, so that they need not show in the list
// of processes.
//
// Owner: core. ReadSecret blocks (a terminal, a file): call it while parameters are read, before
// loops run.
#pragma once

#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace blk {

// A value that no message, dump or help text prints.
struct Secret {
  std::string text;
};

// What `value` stands for: `-` asks on the terminal without echo; `+FILE` is the first line of a
// file; `-FD` the first line read from an inherited descriptor above 2, which is closed; anything
// else is the secret itself. The line's end is not part of it. Failures name the file or
// descriptor, never the secret.
absl::StatusOr<Secret> ReadSecret(std::string_view value);

}  // namespace blk
