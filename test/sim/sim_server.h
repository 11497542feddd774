#pragma once
// The production server over simulated streams: handshake, then session, on one device. One loop.
#include <string>
#include <vector>

#include "src/backends/nbd_connect.h"
#include "src/core/scope.h"
#include "src/proto/handshake_server.h"
#include "test/sim/sim_stream.h"

namespace blk::sim {

class SimServer final {
 public:
  SimServer(SimLoop* loop, Device* device) : loop_(*loop), device_(*device) {}

  // A connection with these faults: the server takes one end, the client's handshake the other.
  Task<absl::StatusOr<NbdConnection>> Connect(StreamFaults faults, NbdConnectOptions options);
  // Waits for the end of every connection. After `patience_ns` those that are left are aborted.
  Task<void> Join(int64_t patience_ns);
  int aborted() const { return aborted_; }

 private:
  class Connection;

  Task<void> Serve(StreamPtr stream);

  SimLoop& loop_;
  Device& device_;
  TaskScope scope_;
  std::vector<Connection*> connections_;
  int aborted_ = 0;
};

}  // namespace blk::sim
