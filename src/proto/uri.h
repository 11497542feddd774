// NBD URIs: text <-> where the server is, which export is wanted and how TLS is set up.
// Schemes: nbd, nbds, nbd+unix, nbds+unix, nbd+vsock, nbds+vsock. nbd+ssh is known and refused in
// words.
//
// Owner: proto. Threads: any; pure functions. Nothing is resolved, opened or connected here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace blk::nbd {

struct Uri {
  enum class Transport : uint8_t { kTcp, kUnix, kVsock };

  Transport transport = Transport::kTcp;
  bool tls = false;                // an nbds scheme: TLS is required
  std::string host = "localhost";  // kTcp: a name, IPv4 or IPv6 address without its brackets
  uint32_t port = 10809;           // kTcp: 1 to 65535; kVsock: any
  uint32_t vsock_cid = 2;          // kVsock: 2 is the host of a virtual machine
  std::string socket;              // kUnix: the path
  std::string export_name;         // "" is the server's default export

  std::string tls_certificates;  // a directory
  std::string tls_psk_file;
  std::string tls_hostname;  // what the certificate must name, when not the host
  std::string tls_username;
  std::optional<bool> tls_verify_peer;  // unset: the client's default

  // The canonical text: every part percent-encoded as nbdkit prints its $uri, the port always
  // present, parameters in the order above. Parsing it gives an equal Uri.
  std::string ToString() const;
  bool operator==(const Uri&) const = default;
};

// Whether `text` starts with one of the NBD schemes and a colon (also nbd+ssh), in any case: then
// it is meant as an NBD URI even if ParseUri finds fault with it.
bool LooksLikeNbdUri(std::string_view text);

// Fails with InvalidArgument (Unimplemented for nbd+ssh) and a text that quotes `text` and says
// what to write instead. One slash before the export name belongs to the syntax: nbd://h/a names
// "a", nbd://h//a names "/a". Parameters that are not known are ignored, except misspelt tls-...
// ones, which would silently weaken a connection.
absl::StatusOr<Uri> ParseUri(std::string_view text);

// Encodes all bytes but letters, digits and "-_.~/".
std::string PercentEncode(std::string_view text);
// nullopt when a % is not followed by two hexadecimal digits, or when a NUL byte comes out.
std::optional<std::string> PercentDecode(std::string_view text);

}  // namespace blk::nbd
