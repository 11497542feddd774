#pragma once
// A captive server, `[ COMMAND … ]`: not here yet.
#include "src/core/process.h"

namespace blk {

class CaptiveServer {
 public:
  static Task<absl::StatusOr<std::unique_ptr<CaptiveServer>>> Start(std::vector<std::string>) {
    return absl::StatusOr<std::unique_ptr<CaptiveServer>>(
        absl::UnimplementedError("`[ COMMAND ]` does not start servers yet"));
  }
  std::string uri() const { return ""; }
  Task<absl::Status> Stop() { return absl::OkStatus(); }
};

}  // namespace blk
