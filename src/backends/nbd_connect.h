#pragma once
// Reaching an NBD server: a URI becomes a stream, a stream becomes a negotiated connection. On the
// current loop.
#include <memory>
#include <string>
#include <vector>

#include "src/backends/nbd_pool.h"
#include "src/core/stream.h"
#include "src/core/tls.h"
#include "src/proto/handshake_client.h"
#include "src/proto/uri.h"

namespace blk {

struct NbdConnectOptions {
  nbd::Uri uri;
  bool structured_replies = true;
  bool extended_headers = true;
  bool go = true;
  std::vector<std::string> contexts = {std::string(kBaseAllocation)};
  int connect_seconds_max = 30;                             // of the handshake
  nbd::ClientTls tls = nbd::ClientTls::kOff;                // required whenever the URI says so
  std::shared_ptr<const TlsContext> tls_context = nullptr;  // PrepareTls() makes it
  // Offered to the server over a Unix socket; null: all payloads go through the socket.
  std::shared_ptr<Arena> arena = nullptr;
};

// Whether a server that was reached hung up within the handshake, as some do on options that they
// do not know.
bool IsHangUp(const absl::Status& failure);
// The next attempt asks for less; false when there was nothing to leave out.
bool AskForLess(NbdConnectOptions* options);

// Reads what TLS needs from the files that the URI names, unless that was done or there is no TLS.
// May block; connecting does it too, but late.
absl::Status PrepareTls(NbdConnectOptions* options);

// The transport alone, in clear.
Task<absl::StatusOr<StreamPtr>> OpenNbdStream(nbd::Uri uri);

// Connects and enters the transmission phase of the URI's export. Some servers hang up on options
// that they do not know: with those it connects again and asks for less.
Task<absl::StatusOr<NbdConnection>> ConnectNbd(NbdConnectOptions options);
// The same over a stream that is connected already, and once.
Task<absl::StatusOr<NbdConnection>> ConnectNbdOver(StreamPtr stream, NbdConnectOptions options);

// What a device on this export can do.
Facts FactsOfExport(const nbd::ServerExport& server_export);

struct StackPlan;
// If the backend of `plan` is nbd: how many connections it may make, unless the plan says so, and
// which further contexts it asks for.
// `arena`, if given, is the one that the tool takes its buffers from; `shm` false: none at all.
void AdjustNbdPlan(StackPlan* plan, int connections, const std::vector<std::string>& contexts,
                   std::shared_ptr<Arena> arena, bool shm);

// How to reach the server that `plan` is about, when its backend is nbd with no filter over it.
std::optional<NbdConnectOptions> NbdServerOf(const StackPlan& plan);

// A conversation that stays in the handshake, for listing and describing exports, until an export
// is entered.
class NbdHandshake {
 public:
  static Task<absl::StatusOr<std::unique_ptr<NbdHandshake>>> Open(NbdConnectOptions options);
  static Task<absl::StatusOr<std::unique_ptr<NbdHandshake>>> OpenOver(StreamPtr stream,
                                                                      NbdConnectOptions options);
  nbd::ClientHandshake& handshake() { return *handshake_; }
  // Enters the transmission phase of an export, and offers the arena before. After a refusal the
  // conversation goes on; after success only Close() may be called, which then does nothing.
  Task<absl::StatusOr<NbdConnection>> Enter(std::string export_name);
  Task<void> Close();

 private:
  NbdConnectOptions options_;
  StreamPtr stream_;
  std::unique_ptr<nbd::TlsUpgrade> upgrade_;
  std::unique_ptr<BufferedReader> reader_;
  std::unique_ptr<nbd::ClientHandshake> handshake_;
};

}  // namespace blk
