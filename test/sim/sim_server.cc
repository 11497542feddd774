#include "test/sim/sim_server.h"

#include <algorithm>

#include "src/proto/session_server.h"

namespace blk::sim {

class SimServer::Connection final : public nbd::ServerHandshakeHost {
 public:
  Connection(SimLoop* loop, Device* device, StreamPtr stream)
      : loop_(*loop), device_(*device), stream_(std::move(stream)) {}

  Task<absl::Status> Run() {
    BufferedReader reader(stream_.get());
    auto handshake = co_await nbd::RunServerHandshake(reader, *this, {});
    if (!handshake.ok()) co_return handshake.status();
    if (!handshake->transmission) co_return absl::OkStatus();
    MemoryBudget budget(1 << 20);
    nbd::ServerSessionOptions options;
    options.style = handshake->style;
    options.transmission_flags = handshake->export_info.flags;
    options.contexts = std::move(handshake->contexts);
    options.connection = 1;
    options.requests_in_flight_max = 1 + loop_.Below(24);
    options.budget = &budget;
    nbd::ServerSession session(&reader, &device_, std::move(options));
    session_ = &session;
    absl::Status status = co_await session.Run();
    session_ = nullptr;
    stream_->ShutdownWrite();
    co_return status;
  }
  void Abort() {
    if (session_) {
      session_->Abort();
    } else {
      stream_->Cancel();
    }
  }

  Task<absl::StatusOr<nbd::ExportCatalog>> ListExports() override {
    return absl::StatusOr<nbd::ExportCatalog>(nbd::ExportCatalog{});
  }
  Task<absl::StatusOr<nbd::ExportInfo>> OpenExport(std::string name) override {
    const Facts& facts = device_.facts();
    nbd::ExportInfo info;
    info.size_bytes = device_.size();
    info.flags = nbd::TransmissionFlagsFor(facts, nbd::ReplyStyle::kExtended);
    info.block_sizes = {facts.block.minimum, facts.block.preferred, facts.block.maximum};
    info.canonical_name = std::move(name);
    info.contexts = facts.contexts;
    return absl::StatusOr<nbd::ExportInfo>(std::move(info));
  }
  Task<void> CloseExport() override { return {}; }

 private:
  SimLoop& loop_;
  Device& device_;
  StreamPtr stream_;
  nbd::ServerSession* session_ = nullptr;
};

Task<void> SimServer::Serve(StreamPtr stream) {
  Connection connection(&loop_, &device_, std::move(stream));
  connections_.push_back(&connection);
  (void)co_await connection.Run();  // how it ends is judged by what the client sees
  std::erase(connections_, &connection);
}

Task<absl::StatusOr<NbdConnection>> SimServer::Connect(StreamFaults faults,
                                                       NbdConnectOptions options) {
  auto [ours, theirs] = MakeSimStreams(&loop_, faults);
  scope_.Spawn(Serve(std::move(ours)));
  return ConnectNbdOver(std::move(theirs), std::move(options));
}

Task<void> SimServer::Join(int64_t patience_ns) {
  Loop::TimerId timer = loop_.StartTimer(loop_.NowNs() + patience_ns, [this] {
    for (Connection* connection : connections_) {
      ++aborted_;
      connection->Abort();
    }
  });
  co_await scope_.Join();
  loop_.CancelTimer(timer);
}

}  // namespace blk::sim
