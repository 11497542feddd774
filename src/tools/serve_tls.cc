#include "src/tools/serve_tls.h"

#include <cstdlib>

#include "src/core/trace.h"

namespace blk {
namespace {

std::string Absolute(const std::string& path) {
  char* const real = realpath(path.c_str(), nullptr);
  std::string absolute = real == nullptr ? path : real;
  std::free(real);
  return absolute;
}

}  // namespace

absl::StatusOr<ServerTls> PrepareServerTls(const TlsConfig& config) {
  const bool named = !config.tls_certificates.empty() || !config.tls_psk.empty();
  const bool wanted = named || config.tls_verify_peer || config.tls.has_value();
  if (!config.tls_certificates.empty() && !config.tls_psk.empty())
    return absl::InvalidArgumentError(
        "--tls-certificates and --tls-psk exclude each other: clients are known by one of them");
  ServerTls tls;
  tls.mode = config.tls.value_or(nbd::TlsMode::kOn);
  if (tls.mode == nbd::TlsMode::kOff) {
    if (config.tls_verify_peer)
      return absl::InvalidArgumentError("--tls-verify-peer needs TLS, but --tls=off was given");
    return tls;
  }
  auto context = TlsContext::ForServer({.certificates = config.tls_certificates,
                                        .psk_file = config.tls_psk,
                                        .verify_peer = config.tls_verify_peer});
  if (context.ok()) {
    tls.context = *std::move(context);
    return tls;
  }
  if (wanted) return context.status();
  if (!absl::IsNotFound(context.status()))
    LogError(absl::StrCat("no TLS: ", context.status().message()));
  tls.mode = nbd::TlsMode::kOff;
  return tls;
}

void DescribeTls(const TlsConfig& config, const ServerTls& tls, nbd::Uri* uri) {
  if (tls.mode != nbd::TlsMode::kRequire) return;
  uri->tls = true;
  if (!config.tls_certificates.empty()) uri->tls_certificates = Absolute(config.tls_certificates);
  if (!config.tls_psk.empty()) uri->tls_psk_file = Absolute(config.tls_psk);
}

std::string TlsVariable(const ServerTls& tls) {
  if (tls.mode == nbd::TlsMode::kOff) return "";
  return tls.mode == nbd::TlsMode::kOn ? "1" : "2";
}

}  // namespace blk
