#pragma once
// TLS 1.2 and 1.3 over any Stream, with certificates (X.509) or pre-shared keys. The files and
// folders are those of nbdkit-tls(1) and of the NBD URI document.
//
// Owner: core. A TlsContext is made once, then used by all loops; a stream belongs to one loop.
// OpenSSL does the cryptography; nothing outside src/core/tls*.cc includes it. Its configuration
// files are never read, sessions are never resumed and never renegotiated, and what a peer sends
// costs bounded memory.
#include <map>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/core/stream.h"
#include "src/core/task.h"

struct ssl_ctx_st;

namespace blk {

struct TlsServerOptions {
  // A folder with server-cert.pem and server-key.pem; ca-cert.pem and, if there, ca-crl.pem to
  // verify clients. "": the first default folder that has a server certificate.
  std::string certificates = {};
  std::string psk_file = {};  // instead of certificates
  bool verify_peer = false;   // clients must have a certificate of ca-cert.pem
};

struct TlsClientOptions {
  // A folder with ca-cert.pem (and ca-crl.pem); client-cert.pem and client-key.pem if the server
  // asks. "": a default folder; without one, the CAs that the system trusts.
  std::string certificates = {};
  std::string psk_file = {};  // instead of certificates
  std::string username = {};  // in the PSK file; "": who runs this program
  std::string hostname = {};  // the server's certificate must be for it; "": for any name
  bool verify_peer = true;    // false: anybody may be the server
};

class TlsContext {
 public:
  // Reads the files: call it where blocking is allowed. NotFound when no folder was named and no
  // default folder has a certificate; other errors name the file and what is wrong with it.
  static absl::StatusOr<std::shared_ptr<const TlsContext>> ForServer(const TlsServerOptions&);
  static absl::StatusOr<std::shared_ptr<const TlsContext>> ForClient(const TlsClientOptions&);
  ~TlsContext();
  TlsContext(const TlsContext&) = delete;

  // Puts TLS over *stream, which from then on is the secure one and owns the plain one, and shakes
  // hands. Time is not bounded: cancel either stream. After an error (EPERM: one side does not
  // trust the other, or there is no common ground; ECONNRESET) the stream is only good for closing.
  static Task<absl::Status> Upgrade(std::shared_ptr<const TlsContext> context, StreamPtr* stream);

  bool uses_psk() const { return !keys_.empty(); }

 private:
  friend class TlsStream;
  explicit TlsContext(bool server);
  absl::Status UseServerCertificates(const std::string& folder, bool verify_peer);
  absl::Status UseClientCertificates(const TlsClientOptions& options);
  absl::Status UseCertificate(const std::string& certificate, const std::string& key);
  absl::Status TrustFolder(const std::string& folder);
  void UsePsk();
  // Copies the user's key; its size, or 0 when there is none, and then the handshake fails.
  unsigned PutKey(std::string_view user, unsigned char* out, unsigned bytes_max) const;

  const bool server_;
  ssl_ctx_st* context_;
  std::map<std::string, std::string, std::less<>> keys_;  // raw keys by user
  std::string username_;                                  // whose key a client uses
  std::string hostname_;
};

// Reads the lines of a PSK file: `USER:HEXKEY`, or `#HEXUSER:HEXKEY` for names that hold a colon.
// Empty lines and comments (a # and no colon) are skipped. `what` names the source in errors, which
// never quote a key.
absl::StatusOr<std::map<std::string, std::string, std::less<>>> ParsePskFile(std::string_view text,
                                                                             std::string_view what);

// For closing any stream over which secrets went: reads what still comes, for a second at most.
// After ShutdownWrite().
Task<void> Drain(Stream* stream);

// Where certificates are looked for when no folder was named: nbdkit's folders for a server,
// libnbd's for a client; those of /etc for root, those of $HOME for others.
std::vector<std::string> DefaultCertificateFolders(bool server);

}  // namespace blk
