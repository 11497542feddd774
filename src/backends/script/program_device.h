#pragma once
// The device of program_layer.h: one open handle of a program. Parallel-safe as far as the program
// says (its thread model is enforced around this).
#include <memory>
#include <string>

#include "src/backends/script/method.h"
#include "src/core/layer.h"

namespace blk::script {

// What a caller does for all devices and for the layer: answers become statuses, failures are
// logged, demands go to the session (may be null).
struct Asker {
  std::shared_ptr<MethodCaller> caller;
  Session* session = nullptr;

  // The answer, which may be kMissing or kFalse.
  Task<absl::StatusOr<Answer>> Ask(MethodCall call) const;
  // The same where neither makes sense.
  Task<absl::Status> Demand(MethodCall call) const;
};

// What "" opens, "" if the program does not say.
Task<absl::StatusOr<std::string>> DefaultExport(const Asker& asker, const OpenArgs& args);

// Calls `open` and asks for all facts; `default_name` is what "" opens. A handle whose facts cannot
// be had is closed again.
Task<absl::StatusOr<DevicePtr>> OpenProgramDevice(Asker asker, OpenArgs args,
                                                  std::string default_name);

// Who a client is, for a program: `unix PID UID GID`, `ADDRESS:PORT`, or "" outside a server.
std::string PeerWord(const Peer* peer);

}  // namespace blk::script
