#include <arpa/inet.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>

#include "absl/strings/escaping.h"
#include "absl/strings/str_split.h"
#include "src/core/file_text.h"
#include "src/core/limits.h"
#include "src/core/tls.h"
#include "src/core/tls_openssl.h"
#include "src/core/users.h"

namespace blk {
namespace tls {

void StartOpenSsl() {
  static const bool started =
      OPENSSL_init_ssl(OPENSSL_INIT_NO_LOAD_CONFIG | OPENSSL_INIT_NO_ATEXIT, nullptr) == 1;
  BLK_CHECK(started);
}

std::string TakeReason() {
  const unsigned long code = ERR_peek_last_error();
  ERR_clear_error();
  const char* reason = code == 0 ? nullptr : ERR_reason_error_string(code);
  return reason == nullptr ? "unknown reason" : reason;
}

}  // namespace tls

namespace {

// Without a hash of 256 bits OpenSSL would not use a pre-shared key of TLS 1.3 at all.
constexpr char kPskSuites[] = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256";
// Of TLS 1.2, with a fresh key exchange where the peer can.
constexpr char kPskCiphers[] = "kECDHEPSK:kDHEPSK+AESGCM:kDHEPSK+CHACHA20:kPSK+AESGCM";
// AES with 128 bits first: as safe as anybody can use, and the fastest.
constexpr char kSuites[] =
    "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256";
constexpr char kCiphers[] = "ECDHE+AESGCM:ECDHE+CHACHA20:DHE+AESGCM";

constexpr size_t kKeyBytesMax = 256;  // PSK_MAX_PSK_LEN of every OpenSSL
constexpr size_t kUserBytesMax = PSK_MAX_IDENTITY_LEN;

bool Exists(const std::string& path) { return access(path.c_str(), F_OK) == 0; }

absl::Status Wrong(std::string_view file, std::string_view what) {
  return absl::InvalidArgumentError(absl::StrCat(file, ": ", what, ": ", tls::TakeReason()));
}

// A key with a pass phrase is refused; OpenSSL would ask for it on the terminal.
int NoPassPhrase(char*, int, int, void*) { return -1; }

const TlsContext& ContextOf(SSL* ssl) {
  return *static_cast<const TlsContext*>(SSL_CTX_get_app_data(SSL_get_SSL_CTX(ssl)));
}

std::string LocalUser() {
  const absl::StatusOr<std::string> name = UserName(geteuid());
  if (name.ok()) return *name;
  const char* variable = getenv("LOGNAME");
  return variable == nullptr ? "" : variable;
}

// The CAs of this system, wherever it keeps them: a static program cannot know.
void TrustSystem(SSL_CTX* context) {
  SSL_CTX_set_default_verify_paths(context);
  for (const char* file : {"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt",
                           "/etc/ssl/cert.pem"}) {
    if (Exists(file) && SSL_CTX_load_verify_file(context, file) == 1) break;
  }
  ERR_clear_error();
}

absl::StatusOr<std::string> DefaultServerCertificates() {
  for (std::string& folder : DefaultCertificateFolders(/*server=*/true))
    if (Exists(folder + "/server-cert.pem")) return std::move(folder);
  return absl::NotFoundError(
      "TLS needs a certificate or pre-shared keys: give --tls-certificates=DIR or "
      "--tls-psk=FILE; `blk tls init DIR` makes them");
}

}  // namespace

absl::StatusOr<std::map<std::string, std::string, std::less<>>> ParsePskFile(
    std::string_view text, std::string_view what) {
  std::map<std::string, std::string, std::less<>> keys;
  size_t number = 0;
  for (std::string_view line : absl::StrSplit(text, '\n')) {
    ++number;
    if (line.ends_with('\r')) line.remove_suffix(1);
    const auto fail = [&](std::string_view fault) {
      return absl::InvalidArgumentError(absl::StrCat(what, ":", number, ": ", fault));
    };
    const size_t colon = line.find(':');
    if (line.empty() || (line[0] == '#' && colon == std::string_view::npos)) continue;
    if (colon == std::string_view::npos)
      return fail("not USER:HEXKEY; psktool(1) makes such lines");
    std::string user(line.substr(0, colon));
    const std::string_view hex = line.substr(colon + 1);
    const auto is_hex = [](std::string_view digits) {
      return digits.size() % 2 == 0 &&
             digits.find_first_not_of("0123456789abcdefABCDEF") == std::string_view::npos;
    };
    if (user.starts_with('#')) {
      if (!is_hex(user.substr(1))) return fail("the user after # is not hexadecimal");
      user = absl::HexStringToBytes(user.substr(1));
    }
    if (user.empty() || user.size() > kUserBytesMax || user.find('\0') != std::string::npos)
      return fail(absl::StrCat("a user has 1 to ", kUserBytesMax, " bytes, none of them zero"));
    if (hex.empty() || hex.size() > 2 * kKeyBytesMax || !is_hex(hex))
      return fail(absl::StrCat("a key has 1 to ", kKeyBytesMax, " bytes in hexadecimal"));
    if (!keys.try_emplace(user, absl::HexStringToBytes(hex)).second)
      return fail("this user has a key already");
  }
  if (keys.empty()) return absl::InvalidArgumentError(absl::StrCat(what, ": no keys in it"));
  return keys;
}

std::vector<std::string> DefaultCertificateFolders(bool server) {
  const char* program = server ? "nbdkit" : "libnbd";
  if (geteuid() == 0) return {absl::StrCat("/etc/pki/", program)};
  const char* home = getenv("HOME");
  if (home == nullptr || *home == '\0') return {};
  return {absl::StrCat(home, "/.pki/", program), absl::StrCat(home, "/.config/pki/", program)};
}

TlsContext::TlsContext(bool server) : server_(server) {
  tls::StartOpenSsl();
  context_ = SSL_CTX_new(server ? TLS_server_method() : TLS_client_method());
  BLK_CHECK(context_ != nullptr);
  SSL_CTX_set_app_data(context_, this);
  SSL_CTX_set_min_proto_version(context_, TLS1_2_VERSION);
  // NBD ends each request itself, so a stream that ends without a goodbye is seen anyway.
  SSL_CTX_set_options(context_, SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION | SSL_OP_NO_TICKET |
                                    SSL_OP_IGNORE_UNEXPECTED_EOF | SSL_OP_CIPHER_SERVER_PREFERENCE);
  // OpenSSL treats a pre-shared key as a session: a server refuses one without this, a client one
  // with it.
  constexpr unsigned char kSessionContext[] = {'b', 'l', 'k'};
  if (server) SSL_CTX_set_session_id_context(context_, kSessionContext, sizeof kSessionContext);
  SSL_CTX_set_session_cache_mode(context_, SSL_SESS_CACHE_OFF);
  SSL_CTX_set_num_tickets(context_, 0);
  SSL_CTX_set_mode(context_, SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_default_passwd_cb(context_, NoPassPhrase);
  SSL_CTX_set_dh_auto(context_, 1);
  BLK_CHECK(SSL_CTX_set_ciphersuites(context_, kSuites) == 1);
  BLK_CHECK(SSL_CTX_set_cipher_list(context_, kCiphers) == 1);
}

TlsContext::~TlsContext() { SSL_CTX_free(context_); }

absl::StatusOr<std::shared_ptr<const TlsContext>> TlsContext::ForServer(
    const TlsServerOptions& options) {
  // The folder comes first: starting OpenSSL takes as long as everything else a small server does,
  // and most servers have no certificates.
  std::string folder = options.certificates;
  if (options.psk_file.empty() && folder.empty()) {
    BLK_ASSIGN_OR_RETURN(folder, DefaultServerCertificates());
  }
  std::shared_ptr<TlsContext> context(new TlsContext(/*server=*/true));
  if (options.psk_file.empty()) {
    BLK_RETURN_IF_ERROR(context->UseServerCertificates(folder, options.verify_peer));
    return context;
  }
  if (options.verify_peer)
    return absl::InvalidArgumentError(
        "with pre-shared keys there are no certificates to verify; leave out --tls-verify-peer");
  BLK_ASSIGN_OR_RETURN(const std::string text,
                       ReadFileText(options.psk_file, limits::kPskFileBytesMax));
  BLK_ASSIGN_OR_RETURN(context->keys_, ParsePskFile(text, options.psk_file));
  context->UsePsk();
  return context;
}

absl::StatusOr<std::shared_ptr<const TlsContext>> TlsContext::ForClient(
    const TlsClientOptions& options) {
  std::shared_ptr<TlsContext> context(new TlsContext(/*server=*/false));
  if (options.psk_file.empty()) {
    BLK_RETURN_IF_ERROR(context->UseClientCertificates(options));
    return context;
  }
  BLK_ASSIGN_OR_RETURN(const std::string text,
                       ReadFileText(options.psk_file, limits::kPskFileBytesMax));
  BLK_ASSIGN_OR_RETURN(context->keys_, ParsePskFile(text, options.psk_file));
  context->username_ = options.username.empty() ? LocalUser() : options.username;
  if (!context->keys_.contains(context->username_))
    return absl::NotFoundError(absl::StrCat(options.psk_file, ": no key for user \"",
                                            context->username_, "\"; name another with USER@ in ",
                                            "the URI or tls-username="));
  context->UsePsk();
  return context;
}

absl::Status TlsContext::UseServerCertificates(const std::string& folder, bool verify_peer) {
  BLK_RETURN_IF_ERROR(UseCertificate(folder + "/server-cert.pem", folder + "/server-key.pem"));
  if (!verify_peer) return absl::OkStatus();
  SSL_CTX_set_verify(context_, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, nullptr);
  return TrustFolder(folder);
}

absl::Status TlsContext::UseClientCertificates(const TlsClientOptions& options) {
  hostname_ = options.hostname;
  SSL_CTX_set_verify(context_, options.verify_peer ? SSL_VERIFY_PEER : SSL_VERIFY_NONE, nullptr);
  if (!options.verify_peer) hostname_.clear();
  std::string folder = options.certificates;
  if (folder.empty()) {
    for (const std::string& candidate : DefaultCertificateFolders(/*server=*/false)) {
      if (folder.empty() && Exists(candidate + "/ca-cert.pem")) folder = candidate;
    }
  }
  if (folder.empty()) {
    TrustSystem(context_);
    return absl::OkStatus();
  }
  if (options.verify_peer) BLK_RETURN_IF_ERROR(TrustFolder(folder));
  const std::string certificate = folder + "/client-cert.pem";
  if (!Exists(certificate)) return absl::OkStatus();
  return UseCertificate(certificate, folder + "/client-key.pem");
}

absl::Status TlsContext::UseCertificate(const std::string& certificate, const std::string& key) {
  for (const std::string& file : {certificate, key}) {
    if (access(file.c_str(), R_OK) != 0)
      return ErrnoError(errno, absl::StrCat("cannot read ", file));
  }
  if (SSL_CTX_use_certificate_chain_file(context_, certificate.c_str()) != 1)
    return Wrong(certificate, "not a certificate in PEM");
  if (SSL_CTX_use_PrivateKey_file(context_, key.c_str(), SSL_FILETYPE_PEM) != 1)
    return Wrong(key, "not a key in PEM, without pass phrase, that fits the certificate");
  return absl::OkStatus();
}

// ca-cert.pem need not be a root: what is in it is trusted, as by GnuTLS.
absl::Status TlsContext::TrustFolder(const std::string& folder) {
  const std::string authorities = folder + "/ca-cert.pem";
  if (access(authorities.c_str(), R_OK) != 0)
    return ErrnoError(errno, absl::StrCat("cannot read ", authorities));
  if (SSL_CTX_load_verify_file(context_, authorities.c_str()) != 1)
    return Wrong(authorities, "no certificates in PEM");
  if (server_) {
    SSL_CTX_set_client_CA_list(context_, SSL_load_client_CA_file(authorities.c_str()));
  }
  X509_STORE* store = SSL_CTX_get_cert_store(context_);
  unsigned long flags = X509_V_FLAG_PARTIAL_CHAIN;
  const std::string revoked = folder + "/ca-crl.pem";
  if (Exists(revoked)) {
    X509_LOOKUP* lookup = X509_STORE_add_lookup(store, X509_LOOKUP_file());
    if (lookup == nullptr || X509_load_crl_file(lookup, revoked.c_str(), X509_FILETYPE_PEM) < 1)
      return Wrong(revoked, "not a revocation list in PEM");
    flags |= X509_V_FLAG_CRL_CHECK;
  }
  X509_STORE_set_flags(store, flags);
  return absl::OkStatus();
}

// Only keys: a peer that comes with a certificate instead is not trusted, since no CA is.
void TlsContext::UsePsk() {
  BLK_CHECK(SSL_CTX_set_ciphersuites(context_, kPskSuites) == 1);
  BLK_CHECK(SSL_CTX_set_cipher_list(context_, kPskCiphers) == 1);
  SSL_CTX_set_verify(context_, SSL_VERIFY_PEER, nullptr);
  if (server_) {
    SSL_CTX_set_psk_server_callback(
        context_, [](SSL* ssl, const char* user, unsigned char* key, unsigned bytes_max) {
          return user == nullptr ? 0u : ContextOf(ssl).PutKey(user, key, bytes_max);
        });
    return;
  }
  SSL_CTX_set_psk_client_callback(
      context_, [](SSL* ssl, const char*, char* user, unsigned user_bytes_max, unsigned char* key,
                   unsigned bytes_max) {
        const TlsContext& context = ContextOf(ssl);
        if (context.username_.size() >= user_bytes_max) return 0u;
        *std::copy(context.username_.begin(), context.username_.end(), user) = '\0';
        return context.PutKey(context.username_, key, bytes_max);
      });
}

unsigned TlsContext::PutKey(std::string_view user, unsigned char* out, unsigned bytes_max) const {
  const auto found = keys_.find(user);
  if (found == keys_.end() || found->second.size() > bytes_max) return 0;
  std::copy(found->second.begin(), found->second.end(), out);
  return static_cast<unsigned>(found->second.size());
}

}  // namespace blk
