#pragma once
// New secrets for TLS, for people who have none: a certificate authority with a server's and a
// client's certificate, or a pre-shared key. Owner: core/tls. Any thread; nothing is written here.
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"

namespace blk {

struct NewFile {
  std::string name;  // as a folder for --tls-certificates has it
  std::string text;
  bool secret = false;  // only its owner may read it
};

struct NewCertificates {
  std::vector<std::string> hosts;  // names and addresses of the server
  std::string client;              // name of the client
  int days = 3650;
};

// ca-cert.pem, server-cert.pem, client-cert.pem and their keys (ECDSA, P-256).
absl::StatusOr<std::vector<NewFile>> MakeCertificates(const NewCertificates& wanted);

// A line of a PSK file: USER:HEXKEY with 32 random bytes. InvalidArgument for users that such a
// line cannot hold.
absl::StatusOr<std::string> MakePskLine(std::string_view user);

}  // namespace blk
