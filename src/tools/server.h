#pragma once
// Server: listens, accepts, and runs each connection (handshake, then session) on the loop with the
// fewest of them. Opens no backend itself: it serves whatever Exports lists and opens.
//
// Threads: create it, add listeners and Run() on loop 0; Stop() from any loop.
#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "src/core/layer.h"
#include "src/core/scope.h"
#include "src/core/sync.h"
#include "src/core/tls.h"
#include "src/proto/handshake_server.h"

namespace blk {

// What a server offers. Any loop, several calls at a time.
class Exports {
 public:
  virtual ~Exports() = default;
  virtual Task<absl::Status> Preconnect(const Peer& peer) = 0;
  virtual Task<absl::StatusOr<ExportList>> List(const OpenArgs& args) = 0;
  virtual Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) = 0;
};

// The exports of one stack of layers.
class LayerExports final : public Exports {
 public:
  explicit LayerExports(LayerPtr layer) : layer_(std::move(layer)) {}
  Task<absl::Status> Preconnect(const Peer& peer) override { return layer_->Preconnect(peer); }
  Task<absl::StatusOr<ExportList>> List(const OpenArgs& args) override {
    return layer_->ListExports(args);
  }
  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    return layer_->Open(std::move(args));
  }

 private:
  LayerPtr layer_;
};

struct ServerOptions {
  // With a name, errors are logged as nbdkit does: `NAME[CONNECTION]: error: …`, those of requests
  // too.
  std::string name;
  nbd::ServerHandshakeOptions handshake;
  std::shared_ptr<const TlsContext> tls;  // needed unless handshake.tls is off
  bool read_only = false;
  bool shm = true;  // take shared memory that clients on Unix sockets offer
  int handshake_seconds_max = limits::kHandshakeSecondsMax;
  size_t requests_in_flight_max = limits::kRequestsInFlightMax;  // of a connection
  bool keepalive = false;                                        // of TCP connections
  int connections_max = limits::kConnectionsMax;
  // How long requests in flight may go on after Stop() before they are cut off.
  int64_t stop_grace_ns = 10'000'000'000;
};

class Server final : public ServerControl {
 public:
  Server(LoopPool* loops, Exports* exports, ServerOptions options);
  ~Server() override;

  // Takes a listening descriptor and accepts on it until Stop().
  void Listen(int fd);
  // One connection on two descriptors (serve -s); Run() returns when it ends.
  void ServeOne(int read_fd, int write_fd);

  // Until Stop() was called (or the one connection has ended) and every connection has ended.
  Task<absl::Status> Run();

  // No more connections; requests in flight are answered, then the clients are disconnected; after
  // the grace they are cut off. Any loop, idempotent.
  void Stop();
  bool stopping() const { return stopping_.load(); }
  void ShutdownServer() override { Stop(); }

 private:
  class Connection;

  Task<void> AcceptLoop(int fd);
  Task<void> RunConnection(int read_fd, int write_fd);
  Task<void> StopConnections();
  Task<void> ShutdownAll(bool hard);
  bool AllEnded();
  size_t LeastLoadedLoop();

  LoopPool* const loops_;
  Exports* const exports_;
  const ServerOptions options_;
  std::atomic<bool> stopping_{false};
  std::atomic<uint64_t> last_connection_{0};
  std::vector<std::unique_ptr<std::atomic<int>>> load_;  // connections of each loop
  std::vector<std::unique_ptr<Watch>> listen_watches_;
  std::vector<int> listen_fds_;
  TaskScope scope_;  // of loop 0
  bool stop_finished_ = false;
  Event stopped_;
  std::mutex mutex_;
  std::set<Connection*> connections_;  // guarded by mutex_
};

}  // namespace blk
