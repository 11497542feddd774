// Where <FILE and <(SCRIPT) get their bytes in a real process.
//
// Threads: blocking; called before loops run. Errors carry an errno and name the file, or say how
// the script ended with the last line it wrote to stderr.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "src/backends/data/evaluate.h"

namespace blk {

// Opens for reading. What can seek is skipped over without reading.
absl::StatusOr<std::unique_ptr<DataInput>> OpenDataFile(std::string name);

// Starts the script in bash where there is one, else in sh. It is stopped when the input is
// destroyed. What it writes to stderr goes to ours when it has ended.
absl::StatusOr<std::unique_ptr<DataInput>> OpenDataScript(std::string script);

}  // namespace blk
