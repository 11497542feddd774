#include "src/tools/nbdkit_options.h"

#include <getopt.h>

#include <cerrno>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "src/core/units.h"

namespace blk {
namespace {

constexpr size_t kUsageColumns = 58;

// What an option without a letter is to getopt.
enum Code : int {
  kDumpConfig = 256,
  kDumpPlugin,
  kExitWithParent,
  kFilter,
  kHelp,
  kKeepalive,
  kLog,
  kLongOptions,
  kMaskHandshake,
  kNoMc,
  kNoSr,
  kPrintUri,
  kRun,
  kSelinuxLabel,
  kShortOptions,
  kSwap,
  kTimeout,
  kTls,
  kTlsCertificates,
  kTlsPsk,
  kTlsVerifyPeer,
  kVsock,
};

struct Row {
  const char* name;
  int code;  // the letter, or a Code
  bool has_value;
  const char* usage = nullptr;  // in the synopsis
  bool newer = false;           // than 1.32: works, but is not in the lists
};

constexpr Row kRows[] = {
    {"ipv4-only", '4', false, "[-4|--ipv4-only]"},
    {"ipv6-only", '6', false, "[-6|--ipv6-only]"},
    {"debug", 'D', true, "[-D|--debug PLUGIN|FILTER|nbdkit.FLAG=N]"},
    {"dump-config", kDumpConfig, false},
    {"dump-plugin", kDumpPlugin, false},
    {"exit-with-parent", kExitWithParent, false, "[--exit-with-parent]"},
    {"export", 'e', true},
    {"export-name", 'e', true},
    {"exportname", 'e', true, "[-e|--exportname EXPORTNAME]"},
    {"filter", kFilter, true, "[--filter=FILTER ...]"},
    {"foreground", 'f', false, "[-f|--foreground]"},
    {"no-fork", 'f', false},
    {"group", 'g', true, "[-g|--group GROUP]"},
    {"help", kHelp, false},
    {"ip-addr", 'i', true},
    {"ipaddr", 'i', true, "[-i|--ipaddr IPADDR]"},
    {"keep-alive", kKeepalive, false, nullptr, true},
    {"keepalive", kKeepalive, false, nullptr, true},
    {"log", kLog, true, "[--log=stderr|syslog|null]"},
    {"long-options", kLongOptions, false, nullptr, true},
    {"mask-handshake", kMaskHandshake, true, "[--mask-handshake=MASK]"},
    {"new-style", 'n', false},
    {"newstyle", 'n', false, "[-n|--newstyle]"},
    {"no-mc", kNoMc, false, nullptr, true},
    {"no-meta-contexts", kNoMc, false, nullptr, true},
    {"no-sr", kNoSr, false, "[--no-sr]"},
    {"no-structured-replies", kNoSr, false, nullptr, true},
    {"old-style", 'o', false},
    {"oldstyle", 'o', false, "[-o|--oldstyle]"},
    {"pid-file", 'P', true},
    {"pidfile", 'P', true, "[-P|--pidfile PIDFILE]"},
    {"port", 'p', true, "[-p|--port PORT]"},
    {"print-uri", kPrintUri, false, nullptr, true},
    {"read-only", 'r', false},
    {"readonly", 'r', false, "[-r|--readonly]"},
    {"run", kRun, true, "[--run 'COMMAND ARGS ...']"},
    {"selinux-label", kSelinuxLabel, true, "[--selinux-label=LABEL]"},
    {"short-options", kShortOptions, false, nullptr, true},
    {"single", 's', false, "[-s|--single]"},
    {"stdin", 's', false},
    {"swap", kSwap, false, "[--swap]"},
    {"threads", 't', true, "[-t|--threads THREADS]"},
    {"timeout", kTimeout, true, nullptr, true},
    {"tls", kTls, true, "[--tls=off|on|require]"},
    {"tls-certificates", kTlsCertificates, true, "[--tls-certificates=/path/to/certificates]"},
    {"tls-psk", kTlsPsk, true, "[--tls-psk=/path/to/pskfile]"},
    {"tls-verify-peer", kTlsVerifyPeer, false, "[--tls-verify-peer]"},
    {"unix", 'U', true, "[-U|--unix SOCKET|-]"},
    {"user", 'u', true, "[-u|--user USER]"},
    {"verbose", 'v', false, "[-v|--verbose]"},
    {"version", 'V', false},
    {"vsock", kVsock, false, "[--vsock]"},
};

constexpr const char* kLetters = "46D:e:fg:i:nop:P:rst:u:U:vV";

std::vector<option> LongOptions() {
  std::vector<option> table;
  for (const Row& row : kRows)
    table.push_back({row.name, row.has_value ? required_argument : no_argument, nullptr, row.code});
  table.push_back({nullptr, 0, nullptr, 0});
  return table;
}

void PrintLongOptions() {
  for (const Row& row : kRows)
    if (!row.newer) std::printf("--%s\n", row.name);
}

void PrintShortOptions() {
  for (const char* letter = kLetters; *letter; ++letter)
    if (*letter != ':') std::printf("-%c\n", *letter);
}

int Refuse(std::string_view text) {
  std::fprintf(stderr, "nbdkit: %s\n", std::string(text).c_str());
  return EXIT_FAILURE;
}

int RefuseActivated(std::string_view option) {
  return Refuse(absl::StrCat("cannot use socket activation with ", option, " flag"));
}

// Reads one command line.
class Parser {
 public:
  Parser(bool activated, NbdkitOptions* options) : activated_(activated), options_(*options) {}

  std::optional<int> Run(std::span<const std::string> arguments) {
    std::vector<char*> argv;
    for (const std::string& argument : arguments)
      argv.push_back(const_cast<char*>(argument.c_str()));  // getopt permutes, but does not write
    argv.push_back(nullptr);
    const int argc = static_cast<int>(argv.size()) - 1;
    const std::vector<option> table = LongOptions();
    optind = 0;  // glibc: begin anew
    int code;
    while ((code = getopt_long(argc, argv.data(), kLetters, table.data(), nullptr)) != -1)
      if (auto ended = Take(code)) return ended;
    for (int i = optind; i < argc; ++i) options_.words.emplace_back(argv[static_cast<size_t>(i)]);
    return std::nullopt;
  }

 private:
  std::optional<int> Take(int code) {
    if (auto taken = TakeInformation(code)) return *taken < 0 ? std::nullopt : taken;
    if (TakeSwitch(code)) return std::nullopt;
    return TakeValue(code, optarg ? optarg : "");
  }

  // Options that print something, or ask for it. Negative: taken, and the command line goes on.
  std::optional<int> TakeInformation(int code) {
    switch (code) {
      case kDumpConfig:
        PrintConfig();
        return EXIT_SUCCESS;
      case kLongOptions:
        PrintLongOptions();
        return EXIT_SUCCESS;
      case kShortOptions:
        PrintShortOptions();
        return EXIT_SUCCESS;
      case kDumpPlugin:
        options_.dump_plugin = true;
        return -1;
      case kHelp:
        options_.help = true;
        return -1;
      case 'V':
        options_.version = true;
        return -1;
      case '?':
        std::fputs(NbdkitUsage().c_str(), stdout);
        return EXIT_FAILURE;
      default:
        return std::nullopt;
    }
  }

  bool TakeSwitch(int code) {
    switch (code) {
      case '4':
      case '6':  // the last one counts
        options_.ipv4_only = code == '4';
        options_.ipv6_only = code == '6';
        return true;
      case 'f':
        return options_.foreground = true;
      case 'n':
        options_.oldstyle = false;
        return true;
      case 'o':
        return options_.oldstyle = true;
      case 'r':
        return options_.read_only = true;
      case 'v':
        return options_.verbose = true;
      case kExitWithParent:
        return options_.exit_with_parent = options_.foreground = true;
      case kKeepalive:
        return options_.keepalive = true;
      case kNoMc:
        options_.meta_contexts = false;
        return true;
      case kNoSr:
        options_.structured_replies = false;
        return true;
      case kPrintUri:
        return options_.print_uri = true;
      case kSwap:
        return options_.swap = true;
      case kTlsVerifyPeer:
        return options_.tls_verify_peer = true;
      case kVsock:
        return options_.vsock = true;
      default:
        return false;
    }
  }

  std::optional<int> TakeValue(int code, const char* value) {
    switch (code) {
      case 'D':
        return TakeDebugFlag(value);
      case 'e':
        options_.export_name = value;
        return std::nullopt;
      case 'g':
        options_.group = value;
        return std::nullopt;
      case 'P':
        options_.pidfile = value;
        return std::nullopt;
      case 't':
        return TakeNumber("threads", value, UINT32_MAX, &options_.threads);
      case 'u':
        options_.user = value;
        return std::nullopt;
      case kFilter:
        options_.filters.push_back(value);
        return std::nullopt;
      case kLog:
        return TakeLog(value);
      case kMaskHandshake: {
        std::optional<unsigned> mask;
        auto ended = TakeNumber("mask-handshake", value, UINT32_MAX, &mask);
        if (mask) options_.mask_handshake = *mask;
        return ended;
      }
      case kSelinuxLabel:
        options_.selinux_label = value;
        return std::nullopt;
      case kTimeout:
        options_.timeout = value;
        return std::nullopt;
      case kTls:
        return TakeTls(value);
      case kTlsCertificates:
        options_.tls_certificates = value;
        return std::nullopt;
      case kTlsPsk:
        options_.tls_psk = value;
        return std::nullopt;
      default:
        return TakePlace(code, value);
    }
  }

  // Where the server listens, which socket activation has decided already.
  std::optional<int> TakePlace(int code, const char* value) {
    switch (code) {
      case kRun:
        if (activated_) return RefuseActivated("--run");
        options_.run = value;
        options_.has_run = options_.foreground = true;
        return std::nullopt;
      case 'i':
        if (activated_) return RefuseActivated("-i");
        options_.address = value;
        return std::nullopt;
      case 'p':
        if (activated_) return RefuseActivated("-p");
        options_.port = value;
        return std::nullopt;
      case 's':
        if (activated_) return RefuseActivated("-s");
        options_.single = options_.foreground = true;
        return std::nullopt;
      case 'U':
        if (activated_) return RefuseActivated("-U");
        options_.unix_socket = value;
        return std::nullopt;
    }
    std::abort();  // a row of the table without a case
  }

  std::optional<int> TakeNumber(std::string_view what, const char* text, uint64_t maximum,
                                std::optional<unsigned>* number) {
    auto parsed = ParseNbdkitNumber(what, text, maximum);
    if (!parsed) return EXIT_FAILURE;
    *number = static_cast<unsigned>(*parsed);
    return std::nullopt;
  }

  std::optional<int> TakeLog(std::string_view value) {
    if (value == "stderr") {
      options_.log = LogTarget::kStderr;
    } else if (value == "syslog") {
      options_.log = LogTarget::kSyslog;
    } else if (value == "null") {
      options_.log = LogTarget::kNull;
    } else {
      return Refuse("--log must be \"stderr\", \"syslog\" or \"null\"");
    }
    return std::nullopt;
  }

  std::optional<int> TakeTls(std::string_view value) {
    using Tls = NbdkitOptions::Tls;
    if (value == "require" || value == "required" || value == "force") {
      options_.tls = Tls::kRequire;
      return std::nullopt;
    }
    absl::StatusOr<bool> on = ParseBool(value);
    if (!on.ok()) return Refuse(absl::StrCat("error: could not decipher boolean (", value, ")"));
    options_.tls = *on ? Tls::kOn : Tls::kOff;
    return std::nullopt;
  }

  // NAME.FLAG=N
  std::optional<int> TakeDebugFlag(std::string_view value) {
    size_t dot = value.find('.');
    size_t equals = value.find('=', dot == std::string_view::npos ? 0 : dot);
    if (dot == std::string_view::npos || dot == 0 || equals == std::string_view::npos ||
        equals <= dot + 1 || equals + 1 == value.size())
      return Refuse("-D (Debug Flag) must have the format NAME.FLAG=N");
    options_.debug_flags.emplace_back(value);
    return std::nullopt;
  }

  static void PrintConfig();

  const bool activated_;
  NbdkitOptions& options_;
};

// The folders are those where this program would look for plugins, if it had any outside itself.
void Parser::PrintConfig() {
  std::string binary = "nbdkit";
  if (char* path = realpath("/proc/self/exe", nullptr)) {
    binary = path;
    std::free(path);
  }
  std::vector<std::string_view> version = absl::StrSplit(kNbdkitVersion, '.');
  std::printf(
      "binary=%s\nbindir=/usr/bin\nexit_with_parent=yes\n"
      "filterdir=/usr/lib/x86_64-linux-gnu/nbdkit/filters\nhost_cpu=x86_64\nhost_os=linux-gnu\n"
      "libdir=/usr/lib/x86_64-linux-gnu\nmandir=/usr/share/man\nname=nbdkit\n"
      "plugindir=/usr/lib/x86_64-linux-gnu/nbdkit/plugins\n"
      "root_tls_certificates_dir=/etc/pki/nbdkit\nsbindir=/usr/bin\nselinux=no\nsysconfdir=/etc\n"
      "tls=yes\nversion=%s\nversion_major=%s\nversion_minor=%s\nzstd=yes\n",
      binary.c_str(), std::string(kNbdkitVersion).c_str(), std::string(version[0]).c_str(),
      std::string(version[1]).c_str());
}

}  // namespace

std::optional<uint64_t> ParseNbdkitNumber(std::string_view what, const std::string& text,
                                          uint64_t maximum) {
  auto fail = [&](std::string_view why) {
    Refuse(absl::StrCat("error: ", what, ": ", why));
    return std::nullopt;
  };
  std::string_view digits = text;
  while (!digits.empty() && std::isspace(static_cast<unsigned char>(digits[0])))
    digits.remove_prefix(1);
  if (absl::StartsWith(digits, "-")) return fail("negative numbers are not allowed");
  errno = 0;
  char* end = nullptr;
  uint64_t number = std::strtoull(text.c_str(), &end, 0);
  if (errno == 0 && number > maximum) errno = ERANGE;
  if (errno != 0)
    return fail(absl::StrCat("could not parse number: \"", text, "\": ", std::strerror(errno)));
  if (end == text.c_str()) return fail("empty string where we expected a number");
  if (*end != 0)
    return fail(absl::StrCat("could not parse number: \"", text, "\": trailing garbage"));
  return number;
}

std::string NbdkitUsage() {
  std::string text = "nbdkit";
  size_t columns = text.size();
  for (const Row& row : kRows) {
    if (!row.usage) continue;
    size_t bytes = std::strlen(row.usage);
    if (columns + 1 + bytes > kUsageColumns) {
      absl::StrAppend(&text, "\n       ", row.usage);
      columns = 7 + bytes;
    } else {
      absl::StrAppend(&text, " ", row.usage);
      columns += 1 + bytes;
    }
  }
  absl::StrAppend(&text, "\n       PLUGIN [[KEY=]VALUE [KEY=VALUE [...]]]\n");
  for (const char* other : {"--dump-config", "PLUGIN --dump-plugin", "--help", "[-V|--version]"})
    absl::StrAppend(&text, "\nnbdkit ", other, "\n");
  return text + "\nPlease read the nbdkit(1) manual page for full usage.\n";
}

std::optional<int> ParseNbdkitOptions(std::span<const std::string> arguments, bool activated,
                                      NbdkitOptions* options) {
  return Parser(activated, options).Run(arguments);
}

}  // namespace blk
