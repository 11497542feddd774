// The server's half of the NBD handshake: from the greeting to the transmission phase, complete,
// over any byte Stream. Fixed newstyle with every option of the protocol document and of the
// EXTENDED_HEADERS extension; oldstyle on request.
//
// Owner: proto. Threads: one loop, the stream's. One handshake a connection. Nothing that a client
// sends can do more than end its own handshake: data, counts and options are bounded by limits.h,
// and a violation that the document has a reply for gets that reply, with a text. Time is not
// bounded here: the session cancels the stream.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/core/stream.h"
#include "src/core/task.h"
#include "src/proto/codec.h"
#include "src/proto/nbd.h"

namespace blk::nbd {

// What the handshake says about an opened export.
struct ExportInfo {
  uint64_t size_bytes = 0;
  // Transmission flags as if everything were negotiated. The handshake adds HAS_FLAGS and clears
  // what this client has not negotiated: SEND_DF, BLOCK_STATUS_PAYLOAD.
  uint16_t flags = 0;
  BlockSizes block_sizes;
  bool announce_block_sizes = true;  // to clients that ask
  // Refuse clients that do not promise to obey block_sizes. The document advises against it.
  bool block_sizes_required = false;
  std::string canonical_name;
  std::string description;
  std::vector<std::string> contexts;  // names of metadata contexts, such as "base:allocation"
};

struct ExportCatalog {
  std::vector<ListedExport> exports;
};

// Queues replies to the option in hand, for ServerHandshakeHost::PrivateOption.
class OptionReplier {
 public:
  virtual ~OptionReplier() = default;
  virtual void Reply(uint32_t type, std::string_view data) = 0;
  // Sends what is queued. Afterwards the stream may be written to directly until PrivateOption
  // returns.
  virtual Task<absl::Status> Flush() = 0;
  virtual BufferedReader& reader() = 0;
};

// What a handshake needs from the program; implemented by the serving code. The handshake awaits
// one call at a time. The text of an error that these return is sent to the client: say nothing
// that is not for strangers.
class ServerHandshakeHost {
 public:
  virtual ~ServerHandshakeHost() = default;

  // The exports that this client may see (NBD_OPT_LIST). PermissionDenied becomes
  // NBD_REP_ERR_POLICY, ESHUTDOWN NBD_REP_ERR_SHUTDOWN, anything else NBD_REP_ERR_PLATFORM.
  virtual Task<absl::StatusOr<ExportCatalog>> ListExports() = 0;

  // Opens the export for this connection and holds it; what was held before is closed first. "" is
  // the default export. At the end of a handshake that reached transmission the last export opened
  // is the one to serve; after any other end the host closes what it holds. Errors: ENOENT or
  // NotFound, and all that is not listed: NBD_REP_ERR_UNKNOWN; PermissionDenied, EPERM, EACCES:
  // NBD_REP_ERR_POLICY; ESHUTDOWN: NBD_REP_ERR_SHUTDOWN; Unauthenticated before TLS (an export for
  // TLS only): NBD_REP_ERR_TLS_REQD.
  virtual Task<absl::StatusOr<ExportInfo>> OpenExport(std::string name) = 0;

  // Closes what OpenExport holds, if anything; TLS has just been set up or the handshake needs no
  // export any more.
  virtual Task<void> CloseExport() = 0;

  // Upgrades the connection after NBD_OPT_STARTTLS was acknowledged; asked only when TLS is on or
  // required. The host owns both streams and opens exports as over TLS from now on. An error ends
  // the connection.
  virtual Task<absl::StatusOr<Stream*>> StartTls(Stream* plain);

  // True makes every option but ABORT fail with NBD_REP_ERR_SHUTDOWN.
  virtual bool ShuttingDown() { return false; }

  // An option that the NBD document does not define. True: it was answered (the last reply queued
  // is final). False: it is unknown and gets NBD_REP_ERR_UNSUP. An error ends the connection. Not
  // asked before TLS when TLS is required.
  virtual Task<absl::StatusOr<bool>> PrivateOption(uint32_t option, std::string data,
                                                   OptionReplier& replier);
};

enum class TlsMode : uint8_t {
  kOff,      // NOTLS: STARTTLS gets NBD_REP_ERR_POLICY
  kOn,       // SELECTIVETLS: the client chooses
  kRequire,  // FORCEDTLS: nothing but STARTTLS and ABORT before TLS
};

struct ServerHandshakeOptions {
  bool oldstyle = false;  // send the oldstyle greeting with the default export, and no more
  uint16_t handshake_flags = kFlagFixedNewstyle | kFlagNoZeroes;  // --mask-handshake clears some
  bool structured_replies = true;  // false (--no-sr) declines extended headers too
  bool extended_headers = true;
  bool meta_contexts = true;  // false: --no-mc
  TlsMode tls = TlsMode::kOff;
  std::string log_name = {};  // of the connection, before debug messages; "" logs nothing
};

struct ServerHandshakeResult {
  // False: the client left, by ABORT or by closing between two options. Nothing else is set then
  // but `tls`.
  bool transmission = false;
  bool tls = false;
  bool oldstyle = false;
  ReplyStyle style = ReplyStyle::kSimple;
  std::string export_name;            // as the client gave it
  ExportInfo export_info;             // flags are those that the client was told
  std::vector<MetaContext> contexts;  // selected for this export, with the ids that were announced
};

// Runs the handshake on `reader` and its stream. Bytes that the client sent after its last option
// stay in the reader's buffer for the session. Errors end the connection without a further word:
// the stream failed, or the client broke a rule for which no reply exists; the text is for the
// server's log. `reader` and `host` must outlive the task.
Task<absl::StatusOr<ServerHandshakeResult>> RunServerHandshake(BufferedReader& reader,
                                                               ServerHandshakeHost& host,
                                                               ServerHandshakeOptions options);

}  // namespace blk::nbd
