#pragma once
// The client's half of the NBD handshake: from the server's greeting to an export, or to what a
// server tells about its exports, over any byte Stream. Speaks with every server: fixed newstyle,
// newstyle with EXPORT_NAME only, and oldstyle; what a server lacks is done without.
//
// Owner: proto. Threads: one loop, the stream's; one call at a time. What a server sends is bounded
// by limits.h; nonsense is an error value (EPROTO), after which the connection is of no use and
// every call fails with the same error. A refusal is an error value too, with the server's own
// text, and more options may follow. Time is not bounded here: the caller cancels the stream. Some
// broken servers hang up on options that they do not know; to talk to those, connect again with
// structured_replies, extended_headers, contexts and go turned off.
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/core/stream.h"
#include "src/core/task.h"
#include "src/proto/codec.h"
#include "src/proto/nbd.h"

namespace blk::nbd {

// Makes a TLS client of a stream; the implementer owns both streams.
class TlsUpgrade {
 public:
  virtual ~TlsUpgrade() = default;
  virtual Task<absl::StatusOr<Stream*>> StartTls(Stream* plain) = 0;
};

enum class ClientTls : uint8_t {
  kOff,      // never ask
  kPrefer,   // ask first; go on in clear if the server declines
  kRequire,  // no word about exports without TLS
};

struct ClientHandshakeOptions {
  bool structured_replies = true;
  bool extended_headers = true;
  bool go = true;  // ask with INFO and GO; without them only EXPORT_NAME enters an export
  // Metadata contexts to select for the export; empty: none.
  std::vector<std::string> contexts = {std::string(kBaseAllocation)};
  ClientTls tls = ClientTls::kOff;
  TlsUpgrade* tls_upgrade = nullptr;  // needed unless kOff; outlives the handshake
};

enum class HandshakeStyle : uint8_t { kOldstyle, kNewstyle, kNewstyleFixed };

// An export as its server describes it. Texts are the server's and may hold anything but NUL:
// escape before printing.
struct ServerExport {
  std::string name;            // as asked for
  std::string canonical_name;  // `name` unless the server told another
  std::string description;
  uint64_t size_bytes = 0;
  uint16_t flags = 0;  // transmission flags; those that cannot hold for `style` are cleared
  BlockSizes block_sizes;
  bool block_sizes_told = false;  // false: block_sizes are the document's defaults
  ReplyStyle style = ReplyStyle::kSimple;
  std::vector<MetaContext> contexts;  // selected, with the server's ids
};

class ClientHandshake {
 public:
  // `reader` and its stream outlive the handshake. After Go() succeeded, bytes that the server has
  // sent since are in the reader's buffer.
  ClientHandshake(BufferedReader& reader, ClientHandshakeOptions options)
      : reader_(reader), options_(std::move(options)) {}

  // The greeting, the flags, and TLS. Call it first, once; the stream's other end must be about to
  // greet. With kRequire it fails (EPERM) unless TLS is up.
  Task<absl::Status> Start();

  HandshakeStyle handshake_style() const { return handshake_style_; }
  bool tls() const { return tls_; }

  // Extended headers if the server has them, else structured replies, else neither, as far as the
  // options allow. The methods below do it before what depends on it.
  Task<absl::Status> NegotiateReplyStyle();
  ReplyStyle reply_style() const { return reply_style_; }  // as negotiated so far

  // All exports that the server lists. EOPNOTSUPP when it has no LIST. An oldstyle server has one,
  // without a name.
  Task<absl::StatusOr<std::vector<ListedExport>>> List();

  // The names of the contexts of export `name` that match any of `queries`; of all its contexts if
  // there are none. EOPNOTSUPP when the server has no contexts or no structured replies.
  Task<absl::StatusOr<std::vector<std::string>>> ListMetaContexts(std::string name,
                                                                  std::vector<std::string> queries);

  // Offers shared memory for payloads (docs/shared-memory.md): `bytes` of the memfd `fd`, which
  // stays the caller's. False when the server does not take it. After Start(), before Go().
  Task<absl::StatusOr<bool>> OfferArena(int fd, uint64_t bytes);

  // Describes the export and stays in the handshake. EOPNOTSUPP when the server has no INFO: Go()
  // then still works.
  Task<absl::StatusOr<ServerExport>> Info(std::string name);

  // Enters the transmission phase. A refusal (ENOENT: no such export; EPERM: policy or TLS wanted;
  // ESHUTDOWN; ...) leaves the handshake open. Servers without GO close the connection instead.
  Task<absl::StatusOr<ServerExport>> Go(std::string name);

  // Says goodbye and waits for the answer; then close the stream. For leaving without Go(). Never
  // fails.
  Task<void> Abort();

 private:
  enum class State : uint8_t { kNew, kHaggling, kEnded };

  Task<absl::Status> Greet();
  Task<absl::Status> ReadOldstyle();
  Task<absl::Status> NegotiateTls();
  Task<absl::StatusOr<std::vector<MetaContext>>> SelectContexts(const std::string& name);
  Task<absl::StatusOr<ServerExport>> Describe(uint32_t option, std::string name);
  Task<absl::StatusOr<ServerExport>> ExportName(std::string name);
  absl::StatusOr<ServerExport> Oldstyle(const std::string& name) const;
  static void Apply(InfoReply info, ServerExport& described, bool& has_export);
  absl::Status Finish(ServerExport& described) const;

  // Sends an option and reads its replies to the last; `take` gets the data of each reply of type
  // `expected`. Gives NBD_REP_ACK or an NBD_REP_ERR_..., whose text is then in refusal_.
  Task<absl::StatusOr<uint32_t>> Ask(uint32_t option, std::string data, uint32_t expected,
                                     size_t replies_max,
                                     absl::FunctionRef<absl::Status(std::string_view)> take);
  Task<absl::StatusOr<uint32_t>> Ask(uint32_t option);
  Task<absl::StatusOr<uint32_t>> Await(uint32_t option, uint32_t expected, size_t replies_max,
                                       absl::FunctionRef<absl::Status(std::string_view)> take);
  Task<absl::StatusOr<OptionReplyHeader>> ReadReply(uint32_t option, std::string& data);
  Task<absl::Status> Send(std::string bytes);
  absl::Status Usable() const;
  absl::Status Refused(uint32_t option, uint32_t reply) const;
  // Remembers that the connection is of no use any more.
  absl::Status Broken(absl::Status why);

  BufferedReader& reader_;
  const ClientHandshakeOptions options_;
  State state_ = State::kNew;
  absl::Status broken_;
  HandshakeStyle handshake_style_ = HandshakeStyle::kNewstyle;
  bool no_zeroes_ = false;
  bool tls_ = false;
  bool reply_style_known_ = false;
  ReplyStyle reply_style_ = ReplyStyle::kSimple;
  ServerExport oldstyle_export_;
  std::string refusal_;
};

}  // namespace blk::nbd
