// ip: lets clients in, or not, by where they come from. Parallel-safe: the rules are fixed.
//
// The allow list is looked at first, then the deny list; who is in neither is let in.
#include <arpa/inet.h>
#include <fnmatch.h>
#include <linux/vm_sockets.h>
#include <sys/socket.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_split.h"
#include "src/core/spec.h"

namespace blk {

struct PeerRule {
  enum Kind {
    kAny,
    kIp,
    kUnix,
    kPid,
    kUid,
    kGid,
    kVsock,
    kVsockCid,
    kVsockPort,
    kSubject,
    kIssuer
  } kind = kAny;
  int family = 0;  // kIp
  unsigned char address[16] = {};
  unsigned prefix_bits = 0;  // of the address that must be equal
  int64_t number = 0;        // the kinds with a number
  std::string pattern = {};  // kSubject, kIssuer: with wildcards, as the shell has them
  bool wants_tls() const { return kind == kSubject || kind == kIssuer; }
};
// Those of one `allow=` or `deny=`.
struct PeerRules {
  std::vector<PeerRule> rules;
  std::string text;
};

namespace {

absl::StatusOr<PeerRule> ParseAddress(std::string_view text) {
  const size_t slash = text.find('/');
  const std::string address(text.substr(0, slash));
  PeerRule rule{.kind = PeerRule::kIp};
  rule.family = address.find(':') == std::string::npos ? AF_INET : AF_INET6;
  if (inet_pton(rule.family, address.c_str(), rule.address) != 1)
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text,
                     "\" is no rule: give any, anyipv4, anyipv6, anyunix, anyvsock, an address, "
                     "ADDRESS/BITS, pid:, uid:, gid:, vsock-cid:, vsock-port:, dn: or "
                     "issuer-dn:"));
  rule.prefix_bits = rule.family == AF_INET ? 32 : 128;
  if (slash != std::string_view::npos) {
    BLK_ASSIGN_OR_RETURN(uint64_t bits, ParseUnsigned(text.substr(slash + 1), 0, rule.prefix_bits));
    rule.prefix_bits = static_cast<unsigned>(bits);
  }
  return rule;
}

absl::StatusOr<PeerRule> ParseRule(std::string_view text) {
  if (text == "all" || text == "any") return PeerRule{};
  if (text == "allunix" || text == "anyunix") return PeerRule{.kind = PeerRule::kUnix};
  if (text == "allvsock" || text == "anyvsock") return PeerRule{.kind = PeerRule::kVsock};
  if (text == "allipv4" || text == "anyipv4")
    return PeerRule{.kind = PeerRule::kIp, .family = AF_INET};
  if (text == "allipv6" || text == "anyipv6")
    return PeerRule{.kind = PeerRule::kIp, .family = AF_INET6};
  for (const auto& [prefix, kind] :
       {std::pair<std::string_view, PeerRule::Kind>{"dn:", PeerRule::kSubject},
        {"issuer-dn:", PeerRule::kIssuer}}) {
    if (text.starts_with(prefix))
      return PeerRule{.kind = kind, .pattern = std::string(text.substr(prefix.size()))};
  }
  constexpr std::pair<std::string_view, PeerRule::Kind> kNumbered[] = {
      {"pid:", PeerRule::kPid},
      {"uid:", PeerRule::kUid},
      {"gid:", PeerRule::kGid},
      {"vsock-cid:", PeerRule::kVsockCid},
      {"vsock-port:", PeerRule::kVsockPort}};
  for (const auto& [prefix, kind] : kNumbered) {
    if (!text.starts_with(prefix)) continue;
    BLK_ASSIGN_OR_RETURN(uint64_t number, ParseUnsigned(text.substr(prefix.size()), 0, UINT32_MAX));
    return PeerRule{.kind = kind, .number = static_cast<int64_t>(number)};
  }
  return ParseAddress(text);
}

}  // namespace

template <>
struct ParamValue<PeerRules> {
  static constexpr std::string_view kType = "peers", kWord = "RULE[,RULE...]";
  static absl::StatusOr<PeerRules> Parse(std::string_view text) {
    PeerRules list{{}, std::string(text)};
    // The names in certificates have commas of their own.
    const bool names = text.starts_with("dn:") || text.starts_with("issuer-dn:");
    for (std::string_view one : absl::StrSplit(text, names ? '\0' : ',')) {
      BLK_ASSIGN_OR_RETURN(PeerRule rule, ParseRule(one));
      list.rules.push_back(std::move(rule));
    }
    return list;
  }
  static std::string Format(const PeerRules& list) { return list.text; }
};

namespace {

struct Config {
  std::vector<PeerRules> allow, deny;
};

bool SamePrefix(const unsigned char* a, const void* b_bytes, unsigned bits) {
  const auto* b = static_cast<const unsigned char*>(b_bytes);
  if (std::memcmp(a, b, bits / 8) != 0) return false;
  const unsigned rest = bits % 8;
  return rest == 0 || ((a[bits / 8] ^ b[bits / 8]) >> (8 - rest)) == 0;
}

bool MatchesIp(const PeerRule& rule, const Peer& peer) {
  if (peer.address.ss_family == AF_INET) {
    const auto& address = reinterpret_cast<const sockaddr_in&>(peer.address);
    return rule.family == AF_INET && SamePrefix(rule.address, &address.sin_addr, rule.prefix_bits);
  }
  if (peer.address.ss_family != AF_INET6) return false;
  const auto& address = reinterpret_cast<const sockaddr_in6&>(peer.address);
  // A socket for both protocols shows IPv4 clients as ::ffff:A.B.C.D.
  if (rule.family == AF_INET && IN6_IS_ADDR_V4MAPPED(&address.sin6_addr))
    return SamePrefix(rule.address, address.sin6_addr.s6_addr + 12, rule.prefix_bits);
  return rule.family == AF_INET6 && SamePrefix(rule.address, &address.sin6_addr, rule.prefix_bits);
}

bool NameMatches(const std::string& pattern, const std::string& name) {
  return !name.empty() && fnmatch(pattern.c_str(), name.c_str(), 0) == 0;
}

bool Matches(const PeerRule& rule, const Peer& peer) {
  const int family = peer.address_bytes == 0 ? AF_UNSPEC : peer.address.ss_family;
  const bool is_unix = family == AF_UNIX, is_vsock = family == AF_VSOCK;
  const auto& vsock = reinterpret_cast<const sockaddr_vm&>(peer.address);
  switch (rule.kind) {
    case PeerRule::kAny:
      return true;
    case PeerRule::kIp:
      return MatchesIp(rule, peer);
    case PeerRule::kUnix:
      return is_unix;
    case PeerRule::kPid:
      return is_unix && peer.pid == rule.number;
    case PeerRule::kUid:
      return is_unix && peer.uid == rule.number;
    case PeerRule::kGid:
      return is_unix && peer.gid == rule.number;
    case PeerRule::kVsock:
      return is_vsock;
    case PeerRule::kVsockCid:
      return is_vsock && vsock.svm_cid == rule.number;
    case PeerRule::kVsockPort:
      return is_vsock && vsock.svm_port == rule.number;
    case PeerRule::kSubject:
      return NameMatches(rule.pattern, peer.tls_subject);
    case PeerRule::kIssuer:
      return NameMatches(rule.pattern, peer.tls_issuer);
  }
  return false;
}

bool MatchesAny(const std::vector<PeerRules>& lists, const Peer& peer) {
  for (const PeerRules& list : lists)
    for (const PeerRule& rule : list.rules)
      if (Matches(rule, peer)) return true;
  return false;
}

bool WantsTls(const std::vector<PeerRules>& lists) {
  for (const PeerRules& list : lists)
    for (const PeerRule& rule : list.rules)
      if (rule.wants_tls()) return true;
  return false;
}

class IpLayer final : public FilterLayer {
 public:
  IpLayer(LayerPtr below, Config config)
      : FilterLayer(std::move(below)),
        config_(std::move(config)),
        wants_tls_(WantsTls(config_.allow) || WantsTls(config_.deny)) {}

  Task<absl::Status> Preconnect(const Peer& peer) override {
    // What a certificate says is known later.
    if (!wants_tls_) BLK_RETURN_IF_ERROR(Check(peer));
    return below().Preconnect(peer);
  }
  Task<absl::StatusOr<ExportList>> ListExports(const OpenArgs& args) override {
    if (wants_tls_ && args.peer) BLK_RETURN_IF_ERROR(Check(*args.peer));
    return below().ListExports(args);
  }
  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    if (wants_tls_ && args.peer) BLK_RETURN_IF_ERROR(Check(*args.peer));
    return below().Open(std::move(args));
  }

 private:
  absl::Status Check(const Peer& peer) const {
    if (MatchesAny(config_.allow, peer) || !MatchesAny(config_.deny, peer)) return absl::OkStatus();
    return ErrnoErrorAsIs(EPERM, absl::StrCat("the client ", peer.text, " is not permitted"));
  }

  const Config config_;
  const bool wants_tls_;
};

}  // namespace

const Spec& IpSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("ip", "let clients in by their addresses")
          .Param("allow", &Config::allow, {.help = "who is let in, whatever deny= says"})
          .Param("deny", &Config::deny, {.help = "who of the others is not"})
          .Description(
              "A rule is any (all), anyipv4, anyipv6, anyunix, anyvsock, an IPv4 or IPv6 address, "
              "ADDRESS/BITS, pid:N, uid:N, gid:N (of clients of a Unix socket), vsock-cid:N, "
              "vsock-port:N, or with TLS dn:PATTERN or issuer-dn:PATTERN for the names in the "
              "client's certificate (--tls-verify-peer), such as dn:*,O=Example,*; these two are a "
              "parameter of their own.")
          .Example("ip(allow=127.0.0.1%2C::1,deny=all)+memory:64K")
          .Make([](Config config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<IpLayer>(std::move(below), std::move(config));
          }));
  return spec;
}

}  // namespace blk
