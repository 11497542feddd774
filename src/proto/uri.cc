#include "src/proto/uri.h"

#include <arpa/inet.h>

#include <array>
#include <charconv>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "src/proto/nbd.h"

namespace blk::nbd {
namespace {

struct Scheme {
  std::string_view name;
  Uri::Transport transport;
  bool tls;
};
constexpr std::array<Scheme, 6> kSchemes{{
    {"nbd", Uri::Transport::kTcp, false},
    {"nbds", Uri::Transport::kTcp, true},
    {"nbd+unix", Uri::Transport::kUnix, false},
    {"nbds+unix", Uri::Transport::kUnix, true},
    {"nbd+vsock", Uri::Transport::kVsock, false},
    {"nbds+vsock", Uri::Transport::kVsock, true},
}};

std::string_view SchemeName(const Uri& uri) {
  for (const Scheme& scheme : kSchemes) {
    if (scheme.transport == uri.transport && scheme.tls == uri.tls) return scheme.name;
  }
  return "nbd";
}

absl::Status Wrong(std::string_view what) { return absl::InvalidArgumentError(what); }

// The text before the first of `separators` (all of it if there is none); `rest` keeps the
// separator.
std::string_view TakeUntil(std::string_view separators, std::string_view& rest) {
  const std::string_view taken = rest.substr(0, rest.find_first_of(separators));
  rest.remove_prefix(taken.size());
  return taken;
}

bool ParseNumber(std::string_view text, uint32_t& value) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, value);
  return error == std::errc() && stop == end;
}

absl::Status DecodeInto(std::string_view what, std::string_view text, std::string& out) {
  std::optional<std::string> decoded = PercentDecode(text);
  if (!decoded) {
    return Wrong(absl::StrCat(
        "the ", what,
        " has a % without two hexadecimal digits, or %00; write a percent sign as %25"));
  }
  out = *std::move(decoded);
  return absl::OkStatus();
}

// A network interface's name, as far as it can stand in a URI unencoded.
bool IsZone(std::string_view text) {
  for (const char c : text) {
    const bool plain = absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '-' || c == '_' ||
                       c == '.' || c == '~';
    if (!plain) return false;
  }
  return !text.empty();
}

// "[::1]" or "[fe80::1%25eth0]" (RFC 6874), brackets included.
absl::Status ParseIpv6(std::string_view literal, Uri& uri) {
  std::string address(literal.substr(1, literal.size() - 2));
  const size_t zone = address.find('%');
  if (zone != std::string::npos && address.compare(zone, 3, "%25") == 0) address.erase(zone + 1, 2);
  in6_addr unused;
  const bool zone_fits = zone == std::string::npos || IsZone(address.substr(zone + 1));
  if (!zone_fits || inet_pton(AF_INET6, address.substr(0, zone).c_str(), &unused) != 1) {
    return Wrong(absl::StrCat("\"", literal, "\" is not an IPv6 address"));
  }
  uri.host = std::move(address);
  return absl::OkStatus();
}

absl::Status ParseHost(std::string_view host, Uri& uri) {
  if (uri.transport == Uri::Transport::kVsock) {
    if (host.empty() || ParseNumber(host, uri.vsock_cid)) return absl::OkStatus();
    return Wrong(absl::StrCat(
        "\"", host, "\" is not a vsock context id; write a number, as in nbd+vsock://2:10809"));
  }
  if (uri.transport == Uri::Transport::kUnix) {
    if (host.empty()) return absl::OkStatus();
    return Wrong(
        "a Unix socket has no host; write nbd+unix:///EXPORT?socket=PATH with three slashes");
  }
  if (host.empty()) return absl::OkStatus();  // stays localhost, as libnbd has it
  if (host.front() == '[') return ParseIpv6(host, uri);
  if (absl::Status status = DecodeInto("host", host, uri.host); !status.ok()) return status;
  for (const char c : uri.host) {
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c)) || c == ' ' || c == ':') {
      return Wrong("the host has a space, a colon or a control character in it");
    }
  }
  return absl::OkStatus();
}

absl::Status ParsePort(std::string_view port, Uri& uri) {
  if (port.empty()) return absl::OkStatus();
  if (uri.transport == Uri::Transport::kUnix) return Wrong("a Unix socket has no port");
  const bool number = ParseNumber(port, uri.port);
  const bool fits = uri.transport == Uri::Transport::kVsock || (uri.port >= 1 && uri.port <= 65535);
  if (number && fits) return absl::OkStatus();
  return Wrong(absl::StrCat("\"", port, "\" is not a port; write a number from 1 to 65535"));
}

// [USER@]HOST[:PORT]
absl::Status ParseAuthority(std::string_view authority, Uri& uri) {
  if (const size_t at = authority.rfind('@'); at != std::string_view::npos) {
    if (absl::Status status = DecodeInto("user", authority.substr(0, at), uri.tls_username);
        !status.ok())
      return status;
    authority.remove_prefix(at + 1);
  }
  size_t host_end = 0;
  if (authority.starts_with('[')) {
    const size_t bracket = authority.find(']');
    if (bracket == std::string_view::npos) return Wrong("an IPv6 address lacks its closing ]");
    host_end = bracket + 1;
  } else {
    host_end = std::min(authority.find(':'), authority.size());
  }
  const std::string_view rest = authority.substr(host_end);
  if (!rest.empty() && rest.front() != ':')
    return Wrong("only :PORT may follow the ] of an IPv6 address");
  if (absl::Status status = ParseHost(authority.substr(0, host_end), uri); !status.ok())
    return status;
  if (rest.find(':', 1) != std::string_view::npos)
    return Wrong("an IPv6 address must stand in brackets, as in nbd://[::1]");
  return ParsePort(rest.empty() ? rest : rest.substr(1), uri);
}

absl::Status ParseVerifyPeer(std::string_view value, Uri& uri) {
  const std::string lower = absl::AsciiStrToLower(value);
  if (lower == "1" || lower == "true" || lower == "yes" || lower == "on" || lower == "t" ||
      lower == "y") {
    uri.tls_verify_peer = true;
  } else if (lower == "0" || lower == "false" || lower == "no" || lower == "off" || lower == "f" ||
             lower == "n") {
    uri.tls_verify_peer = false;
  } else {
    return Wrong(absl::StrCat("tls-verify-peer=", value, " is neither true nor false"));
  }
  return absl::OkStatus();
}

absl::Status ParseParameter(std::string_view parameter, Uri& uri) {
  std::string_view rest = parameter;
  const std::string_view key = TakeUntil("=", rest);
  if (!rest.empty()) rest.remove_prefix(1);
  std::string value;
  if (absl::Status status = DecodeInto(absl::StrCat("parameter ", key), rest, value); !status.ok())
    return status;
  if (key == "socket") {
    uri.socket = std::move(value);
  } else if (key == "tls-certificates") {
    uri.tls_certificates = std::move(value);
  } else if (key == "tls-psk-file") {
    uri.tls_psk_file = std::move(value);
  } else if (key == "tls-hostname") {
    uri.tls_hostname = std::move(value);
  } else if (key == "tls-username") {
    uri.tls_username = std::move(value);
  } else if (key == "tls-verify-peer") {
    return ParseVerifyPeer(value, uri);
  } else if (key.starts_with("tls-")) {
    return Wrong(absl::StrCat("unknown parameter ", key,
                              "; there are tls-certificates, tls-psk-file, tls-hostname, "
                              "tls-username and tls-verify-peer"));
  }
  return absl::OkStatus();
}

absl::Status ParseQuery(std::string_view query, Uri& uri) {
  while (!query.empty()) {
    if (absl::Status status = ParseParameter(TakeUntil("&;", query), uri); !status.ok())
      return status;
    if (!query.empty()) query.remove_prefix(1);
  }
  return absl::OkStatus();
}

absl::Status CheckWhole(const Uri& uri) {
  const bool is_unix = uri.transport == Uri::Transport::kUnix;
  if (is_unix && uri.socket.empty())
    return Wrong("the socket is missing; write nbd+unix:///EXPORT?socket=PATH");
  if (!is_unix && !uri.socket.empty())
    return Wrong("socket= needs the scheme nbd+unix: nbd+unix:///EXPORT?socket=PATH");
  if (uri.export_name.size() > kStringBytesMax) {
    return Wrong(absl::StrCat("the export name has ", uri.export_name.size(), " bytes; NBD allows ",
                              kStringBytesMax));
  }
  return absl::OkStatus();
}

// What follows "scheme:".
absl::Status ParseRest(std::string_view rest, Uri& uri) {
  if (!rest.starts_with("//"))
    return Wrong("// must follow the scheme, as in nbd://localhost/EXPORT");
  rest.remove_prefix(2);
  if (rest.find('#') != std::string_view::npos)
    return Wrong("NBD URIs have no #fragment; write # as %23");
  if (absl::Status status = ParseAuthority(TakeUntil("/?", rest), uri); !status.ok()) return status;
  std::string_view path = TakeUntil("?", rest);
  if (path.starts_with('/')) path.remove_prefix(1);
  if (absl::Status status = DecodeInto("export name", path, uri.export_name); !status.ok())
    return status;
  if (absl::Status status = ParseQuery(rest.empty() ? rest : rest.substr(1), uri); !status.ok())
    return status;
  return CheckWhole(uri);
}

// A "/" is plain in an export name but would end the authority.
std::string EncodeAuthorityPart(std::string_view text) {
  return absl::StrReplaceAll(PercentEncode(text), {{"/", "%2F"}});
}

std::string Ipv6Literal(std::string_view address) {
  return absl::StrCat("[", absl::StrReplaceAll(address, {{"%", "%25"}}), "]");
}

std::string Quoted(std::string_view text, std::string_view fault) {
  return absl::StrCat("\"", text, "\": ", fault);
}

int HexValue(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

}  // namespace

bool LooksLikeNbdUri(std::string_view text) {
  const size_t colon = text.find(':');
  if (colon == std::string_view::npos) return false;
  const std::string scheme = absl::AsciiStrToLower(text.substr(0, colon));
  if (scheme == "nbd+ssh" || scheme == "nbds+ssh") return true;
  for (const Scheme& known : kSchemes) {
    if (known.name == scheme) return true;
  }
  return false;
}

absl::StatusOr<Uri> ParseUri(std::string_view text) {
  const size_t colon = text.find(':');
  if (!LooksLikeNbdUri(text)) {
    return Wrong(Quoted(
        text, "not an NBD URI; they begin with nbd://, nbds://, nbd+unix:// or nbd+vsock://"));
  }
  const std::string name = absl::AsciiStrToLower(text.substr(0, colon));
  for (const Scheme& scheme : kSchemes) {
    if (scheme.name != name) continue;
    Uri uri;
    uri.transport = scheme.transport;
    uri.tls = scheme.tls;
    const absl::Status status = ParseRest(text.substr(colon + 1), uri);
    if (!status.ok()) return Wrong(Quoted(text, status.message()));
    return uri;
  }
  return absl::UnimplementedError(
      Quoted(text,
             "NBD over ssh is not supported; forward the server's socket with \"ssh -L\" and give "
             "nbd+unix:///?socket=PATH"));
}

std::string Uri::ToString() const {
  std::string out = absl::StrCat(SchemeName(*this), "://");
  if (!tls_username.empty()) absl::StrAppend(&out, EncodeAuthorityPart(tls_username), "@");
  if (transport == Transport::kTcp) {
    const bool ipv6 = host.find(':') != std::string::npos;
    absl::StrAppend(&out, ipv6 ? Ipv6Literal(host) : EncodeAuthorityPart(host), ":", port);
  } else if (transport == Transport::kVsock) {
    absl::StrAppend(&out, vsock_cid, ":", port);
  }
  if (!export_name.empty()) absl::StrAppend(&out, "/", PercentEncode(export_name));
  char separator = '?';
  const auto add = [&](std::string_view key, std::string_view value) {
    if (value.empty()) return;
    out.push_back(separator);
    absl::StrAppend(&out, key, "=", PercentEncode(value));
    separator = '&';
  };
  add("socket", socket);
  add("tls-certificates", tls_certificates);
  add("tls-psk-file", tls_psk_file);
  add("tls-hostname", tls_hostname);
  if (tls_verify_peer.has_value()) add("tls-verify-peer", *tls_verify_peer ? "true" : "false");
  return out;
}

std::string PercentEncode(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  constexpr std::string_view kPlain = "-_.~/";
  std::string out;
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (absl::ascii_isalnum(byte) || kPlain.find(c) != std::string_view::npos) {
      out.push_back(c);
    } else {
      out.append({'%', kDigits[byte >> 4], kDigits[byte & 15]});
    }
  }
  return out;
}

std::optional<std::string> PercentDecode(std::string_view text) {
  std::string out;
  for (size_t i = 0; i < text.size(); ++i) {
    char c = text[i];
    if (c == '%') {
      if (text.size() - i < 3) return std::nullopt;
      const int high = HexValue(text[i + 1]);
      const int low = HexValue(text[i + 2]);
      if (high < 0 || low < 0) return std::nullopt;
      c = static_cast<char>(high * 16 + low);
      i += 2;
    }
    if (c == '\0') return std::nullopt;
    out.push_back(c);
  }
  return out;
}

}  // namespace blk::nbd
