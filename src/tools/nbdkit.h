#pragma once
// blk under the name nbdkit: the command line, output, exit statuses and habits of nbdkit 1.32,
// over the same engine as `blk serve`.
#include <span>
#include <string>

namespace blk {

// main() of nbdkit. `arguments[0]` is the name it was called by.
int NbdkitMain(std::span<const std::string> arguments);

}  // namespace blk
