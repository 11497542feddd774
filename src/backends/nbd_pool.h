#pragma once
// NbdDevice: an export of an NBD server as a Device, over one or several connections.
//
// Every loop that uses the device gets connections of its own, as soon as it asks, if the server
// allows several (multi-conn); otherwise all loops share the first one, which lives on the loop
// that opened the device.
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "src/core/device.h"
#include "src/core/sync.h"
#include "src/proto/handshake_client.h"
#include "src/proto/session_client.h"

namespace blk {

// A connection that has been negotiated, and what the server said of the export.
struct NbdConnection {
  std::unique_ptr<nbd::ClientSession> session;  // started
  Facts facts;
  nbd::ServerExport told;  // in the server's own words
};
using NbdConnect = std::function<Task<absl::StatusOr<NbdConnection>>()>;  // on the current loop

class NbdDevice final : public Device {
 public:
  // `first` was made on the current loop. `connect` makes more of the same kind.
  NbdDevice(NbdConnection first, NbdConnect connect, int connections_max);
  ~NbdDevice() override;

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override;
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override;
  Task<absl::Status> DoFlush(const Call& call) override;
  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override;
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override;
  Task<absl::Status> DoCache(const Call& call, uint64_t offset, uint64_t length) override;
  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override;
  Task<absl::Status> DoClose() override;

 private:
  // The connections of one loop; used there only.
  struct Group {
    Loop* loop = nullptr;
    std::vector<std::unique_ptr<nbd::ClientSession>> sessions;
    bool connected = false;  // as many as there should be
    Mutex connecting;
  };
  using Operation = std::function<Task<absl::Status>(nbd::ClientSession*)>;

  Group* GroupHere();
  static nbd::ClientSession* Pick(Group& group);
  nbd::ClientSession* SessionHere();  // null: connect first
  Task<absl::Status> Connected(Group* group);
  Task<absl::Status> RunSlowly(Operation operation);
  template <typename Op>
  Task<absl::Status> Run(Op operation);
  Task<absl::Status> InPieces(uint64_t offset, uint64_t length,
                              std::function<Task<absl::Status>(uint64_t, uint64_t)> operation);

  const NbdConnect connect_;
  const bool wide_;  // extended headers: 64-bit lengths
  const int connections_max_;
  std::mutex mutex_;
  absl::flat_hash_map<Loop*, std::unique_ptr<Group>> groups_;  // guarded by mutex_
  int connections_ = 1;                                        // guarded by mutex_
  Group* first_ = nullptr;
};

}  // namespace blk
