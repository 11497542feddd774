#pragma once
// Small files as a whole: keys, lists, configuration. Blocking; any thread.
#include <cstddef>
#include <string>

#include "absl/status/statusor.h"

namespace blk {

// All bytes of the file; EFBIG when there are more than `bytes_max`. Errors name the file.
absl::StatusOr<std::string> ReadFileText(const std::string& path, size_t bytes_max);

}  // namespace blk
