#pragma once
// nbdkit's own command line: getopt_long(3) as nbdkit uses it (options and words mix, long names
// may be shortened, letters run together), with nbdkit's messages.
//
// Threads: before any; getopt keeps global state.
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/tools/serve_engine.h"

namespace blk {

// What scripts compare with: the version whose command line this is.
inline constexpr std::string_view kNbdkitVersion = "1.32.5";

struct NbdkitOptions {
  enum class Tls { kOff, kOn, kRequire };

  bool help = false, version = false, dump_plugin = false;
  std::vector<std::string> filters;
  std::vector<std::string> words;  // the plugin and its configuration
  std::vector<std::string> debug_flags;

  bool ipv4_only = false, ipv6_only = false;
  std::optional<std::string> address, port, unix_socket;
  bool vsock = false;
  bool single = false;
  std::string run;
  bool has_run = false;  // also with an empty command
  std::string export_name;
  std::string selinux_label;

  bool foreground = false;
  std::optional<std::string> pidfile;
  std::optional<std::string> user, group;
  bool exit_with_parent = false;
  bool swap = false;
  bool verbose = false;
  LogTarget log = LogTarget::kDefault;
  bool print_uri = false;

  bool read_only = false;
  bool oldstyle = false;
  bool structured_replies = true, meta_contexts = true;
  uint32_t mask_handshake = UINT32_MAX;
  std::optional<unsigned> threads;
  bool keepalive = false;
  std::optional<std::string> timeout;

  std::optional<Tls> tls;
  std::optional<std::string> tls_certificates, tls_psk;
  bool tls_verify_peer = false;
};

// Reads the command line. A value: everything that was to be done is done (or refused, and said on
// standard error); end with this status. `activated`: sockets came by socket activation.
std::optional<int> ParseNbdkitOptions(std::span<const std::string> arguments, bool activated,
                                      NbdkitOptions* options);

// The brief help: the synopsis, made from the same table.
std::string NbdkitUsage();

// nbdkit's number syntax (nbdkit_parse_unsigned and its kin): decimal, 0x, 0. On failure the reason
// is on standard error.
std::optional<uint64_t> ParseNbdkitNumber(std::string_view what, const std::string& text,
                                          uint64_t maximum);

}  // namespace blk
