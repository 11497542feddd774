#pragma once
// The TLS options of a server: --tls, --tls-certificates, --tls-psk, --tls-verify-peer, as
// nbdkit(1) has them. Owner: tools. Before threads.
#include <memory>
#include <optional>
#include <string>

#include "src/core/param.h"
#include "src/core/tls.h"
#include "src/proto/handshake_server.h"
#include "src/proto/uri.h"

namespace blk {

// A server's Config inherits it.
struct TlsConfig {
  std::optional<nbd::TlsMode> tls;
  std::string tls_certificates;
  std::string tls_psk;
  bool tls_verify_peer = false;
};

template <typename Config>
ParamTable<Config>& AddTlsOptions(ParamTable<Config>& table) {
  return table
      .Param("tls", &Config::tls,
             {{"off", nbd::TlsMode::kOff},
              {"on", nbd::TlsMode::kOn},
              {"require", nbd::TlsMode::kRequire}},
             {.help = "encrypt: never, as the client wants, always (default: on when there is a "
                      "certificate or a key)"})
      .Param("tls-certificates", &Config::tls_certificates,
             {.help = "folder with server-cert.pem, server-key.pem and ca-cert.pem", .word = "DIR"})
      .Param("tls-psk", &Config::tls_psk,
             {.help = "pre-shared keys, lines of USER:HEXKEY", .word = "FILE"})
      .Param("tls-verify-peer", &Config::tls_verify_peer,
             {.help = "clients must have a certificate of ca-cert.pem"});
}

struct ServerTls {
  nbd::TlsMode mode = nbd::TlsMode::kOff;
  std::shared_ptr<const TlsContext> context;  // null when off
};

// Reads certificates or keys. When nothing was asked for, TLS is on if a default folder has a
// certificate. Asked for and not there, or not readable: an error.
absl::StatusOr<ServerTls> PrepareServerTls(const TlsConfig& config);

// What a client on this machine needs to know, for --print-uri and --run: nothing unless TLS is
// required.
void DescribeTls(const TlsConfig& config, const ServerTls& tls, nbd::Uri* uri);

// $tls for --run: "" off, "1" on, "2" required.
std::string TlsVariable(const ServerTls& tls);

}  // namespace blk
