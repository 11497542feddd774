#include "src/core/tls_make.h"

#include <arpa/inet.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>

#include <array>
#include <functional>

#include "absl/strings/escaping.h"
#include "src/core/error.h"
#include "src/core/tls.h"
#include "src/core/tls_openssl.h"

namespace blk {
namespace {

using Key = tls::Handle<EVP_PKEY, EVP_PKEY_free>;
using Certificate = tls::Handle<X509, X509_free>;
using Extension = tls::Handle<X509_EXTENSION, X509_EXTENSION_free>;
using Number = tls::Handle<BIGNUM, BN_free>;
using Memory = tls::Handle<BIO, BIO_free>;

constexpr size_t kPskBytes = 32;
constexpr int kSerialBits = 127;
constexpr long kDaySeconds = 24 * 60 * 60;

absl::Status Failed(std::string_view what) {
  return absl::InternalError(absl::StrCat("cannot make ", what, ": ", tls::TakeReason()));
}

// Who signs: itself, or an authority.
struct Issuer {
  X509* certificate;
  EVP_PKEY* key;
};

using Extensions = std::vector<std::pair<int, std::string>>;

bool AddExtensions(X509* certificate, X509* issuer, const Extensions& extensions) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  for (const auto& [id, value] : extensions) {
    const Extension extension(X509V3_EXT_conf_nid(nullptr, &context, id, value.c_str()));
    if (extension == nullptr || X509_add_ext(certificate, extension.get(), -1) != 1) return false;
  }
  return true;
}

bool SetName(X509* certificate, std::string_view name) {
  const auto* bytes = reinterpret_cast<const unsigned char*>(name.data());
  return X509_NAME_add_entry_by_NID(X509_get_subject_name(certificate), NID_commonName,
                                    MBSTRING_UTF8, bytes, static_cast<int>(name.size()), -1,
                                    0) == 1;
}

// Clocks differ, so it was valid a day ago already.
absl::StatusOr<Certificate> Sign(EVP_PKEY* key, std::string_view name, int days,
                                 const Extensions& extensions, const Issuer* issuer) {
  Certificate made(X509_new());
  X509* const own = made.get();
  const Issuer signer = issuer == nullptr ? Issuer{own, key} : *issuer;
  const Number serial(BN_new());
  const bool fine = BN_rand(serial.get(), kSerialBits, BN_RAND_TOP_ANY, BN_RAND_BOTTOM_ANY) == 1 &&
                    BN_to_ASN1_INTEGER(serial.get(), X509_get_serialNumber(own)) != nullptr &&
                    X509_set_version(own, X509_VERSION_3) == 1 &&
                    X509_gmtime_adj(X509_getm_notBefore(own), -kDaySeconds) != nullptr &&
                    X509_time_adj_ex(X509_getm_notAfter(own), days, 0, nullptr) != nullptr &&
                    X509_set_pubkey(own, key) == 1 && SetName(own, name) &&
                    X509_set_issuer_name(own, X509_get_subject_name(signer.certificate)) == 1 &&
                    AddExtensions(own, signer.certificate, extensions) &&
                    X509_sign(own, signer.key, EVP_sha256()) > 0;
  if (!fine) return Failed(absl::StrCat("the certificate of ", name));
  return made;
}

std::string TextOf(const std::function<int(BIO*)>& write) {
  const Memory memory(BIO_new(BIO_s_mem()));
  BLK_CHECK(memory != nullptr && write(memory.get()) == 1);
  char* data = nullptr;
  const long size = BIO_get_mem_data(memory.get(), &data);
  return std::string(data, static_cast<size_t>(size));
}

void AddFiles(std::string_view role, X509* certificate, EVP_PKEY* key,
              std::vector<NewFile>* files) {
  files->push_back({absl::StrCat(role, "-cert.pem"),
                    TextOf([&](BIO* out) { return PEM_write_bio_X509(out, certificate); }), false});
  files->push_back({absl::StrCat(role, "-key.pem"), TextOf([&](BIO* out) {
                      return PEM_write_bio_PKCS8PrivateKey(out, key, nullptr, nullptr, 0, nullptr,
                                                           nullptr);
                    }),
                    true});
}

// "DNS:a,IP:127.0.0.1"; the syntax has no quoting, so other characters are refused.
absl::StatusOr<std::string> AlternativeNames(const std::vector<std::string>& hosts) {
  std::string names;
  for (const std::string& host : hosts) {
    std::array<unsigned char, 16> unused;
    const bool address = inet_pton(AF_INET, host.c_str(), unused.data()) == 1 ||
                         inet_pton(AF_INET6, host.c_str(), unused.data()) == 1;
    constexpr std::string_view kOfNames =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._*";
    if (!address && (host.empty() || host.find_first_not_of(kOfNames) != std::string::npos))
      return absl::InvalidArgumentError(
          absl::StrCat("\"", host, "\" is neither a host name nor an address"));
    absl::StrAppend(&names, names.empty() ? "" : ",", address ? "IP:" : "DNS:", host);
  }
  return names;
}

}  // namespace

absl::StatusOr<std::vector<NewFile>> MakeCertificates(const NewCertificates& wanted) {
  tls::StartOpenSsl();
  if (wanted.hosts.empty()) return absl::InvalidArgumentError("the server has no name");
  BLK_ASSIGN_OR_RETURN(const std::string names, AlternativeNames(wanted.hosts));
  const auto new_key = [] { return Key(EVP_EC_gen("P-256")); };
  const Key ca_key = new_key(), server_key = new_key(), client_key = new_key();
  if (ca_key == nullptr || server_key == nullptr || client_key == nullptr) return Failed("keys");
  const Extensions for_ca = {{NID_basic_constraints, "critical,CA:TRUE,pathlen:0"},
                             {NID_key_usage, "critical,keyCertSign,cRLSign"},
                             {NID_subject_key_identifier, "hash"}};
  const auto for_use = [](std::string_view purpose) {
    return Extensions{{NID_basic_constraints, "critical,CA:FALSE"},
                      {NID_key_usage, "critical,digitalSignature"},
                      {NID_ext_key_usage, std::string(purpose)},
                      {NID_subject_key_identifier, "hash"},
                      {NID_authority_key_identifier, "keyid:always"}};
  };
  Extensions for_server = for_use("serverAuth");
  for_server.emplace_back(NID_subject_alt_name, names);
  const std::string ca_name = absl::StrCat("NBD authority of ", wanted.hosts[0]);
  BLK_ASSIGN_OR_RETURN(const Certificate ca,
                       Sign(ca_key.get(), ca_name, wanted.days, for_ca, nullptr));
  const Issuer issuer{ca.get(), ca_key.get()};
  BLK_ASSIGN_OR_RETURN(const Certificate server,
                       Sign(server_key.get(), wanted.hosts[0], wanted.days, for_server, &issuer));
  BLK_ASSIGN_OR_RETURN(const Certificate client, Sign(client_key.get(), wanted.client, wanted.days,
                                                      for_use("clientAuth"), &issuer));
  std::vector<NewFile> files;
  AddFiles("ca", ca.get(), ca_key.get(), &files);
  AddFiles("server", server.get(), server_key.get(), &files);
  AddFiles("client", client.get(), client_key.get(), &files);
  return files;
}

absl::StatusOr<std::string> MakePskLine(std::string_view user) {
  tls::StartOpenSsl();
  std::array<unsigned char, kPskBytes> key;
  if (RAND_bytes(key.data(), static_cast<int>(key.size())) != 1) return Failed("a key");
  const std::string hex =
      absl::BytesToHexString({reinterpret_cast<const char*>(key.data()), key.size()});
  std::string line = absl::StrCat(user, ":", hex, "\n");
  const auto keys = ParsePskFile(line, "user");
  if (user.empty() || !keys.ok() || !keys->contains(user))
    return absl::InvalidArgumentError(
        absl::StrCat("\"", user, "\" cannot be a user: no colon, no line end, no # in front"));
  return line;
}

}  // namespace blk
