#include "src/tools/nbdkit.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "src/core/daemon.h"
#include "src/core/trace.h"
#include "src/tools/nbdkit_options.h"
#include "src/tools/nbdkit_plugins.h"
#include "src/tools/nbdkit_trace.h"
#include "src/tools/serve_engine.h"

namespace blk {
namespace {

// Without a plugin: what help and version say, or that there is none.
int WithoutPlugin(const NbdkitOptions& options) {
  if (options.help) {
    std::fputs(NbdkitUsage().c_str(), stdout);
    return EXIT_SUCCESS;
  }
  if (options.version) {
    std::printf("nbdkit %s\n", std::string(kNbdkitVersion).c_str());
    return EXIT_SUCCESS;
  }
  if (options.dump_plugin) {
    std::fputs(
        "nbdkit: use 'nbdkit plugin --dump-plugin' or\n"
        "'nbdkit /path/to/plugin.so --dump-plugin' or\n"
        "if you want to find out about the server use --dump-config\n",
        stderr);
    return EXIT_FAILURE;
  }
  std::fputs(
      "nbdkit: no plugins given on the command line.\n"
      "Use 'nbdkit --help' or read the nbdkit(1) manual page for documentation.\n",
      stderr);
  return EXIT_FAILURE;
}

// `text` as one word of a shell command.
std::string ShellQuote(std::string_view text) {
  return absl::StrCat("'", absl::StrReplaceAll(text, {{"'", "'\\''"}}), "'");
}

// The command of --run. What it may want to know are variables of its shell, not of the
// environment.
Command RunCommandFor(const NbdkitOptions& options, const ServeEndpoint& endpoint) {
  std::string port = endpoint.port ? absl::StrCat(endpoint.port) : "";
  nbd::Uri uri = endpoint.uri;
  // By the name that certificates of this machine are made out to.
  if (absl::StartsWith(uri.host, "127.") || uri.host == "::1") uri.host = "localhost";
  return ShellCommand(absl::StrCat(
      "uri=", ShellQuote(uri.ToString()), "\nnbd=\"$uri\"\nexportname=",
      ShellQuote(endpoint.uri.export_name), "\nunixsocket=", ShellQuote(endpoint.unix_path),
      "\nport=", ShellQuote(port), "\ntls=", endpoint.tls,
      "\ntls_certificates=", ShellQuote(options.tls_certificates.value_or("")),
      "\ntls_psk=", ShellQuote(options.tls_psk.value_or("")), "\n", options.run));
}

// Prints as nbdkit does for what goes wrong before clients come.
int Fail(std::string_view message) {
  LogError(message);
  return EXIT_FAILURE;
}

int Refuse(std::string_view text) {
  std::fprintf(stderr, "nbdkit: %s\n", std::string(text).c_str());
  return EXIT_FAILURE;
}

bool CombinationIsRight(const NbdkitOptions& options) {
  const bool port = options.port.has_value(), unix_socket = options.unix_socket.has_value();
  return !((port && options.single) || (port && unix_socket) ||
           (options.single && options.has_run) || (options.single && unix_socket) ||
           (options.single && options.vsock) || (options.single && options.dump_plugin) ||
           (unix_socket && options.vsock));
}

// The TLS that the options mean, in *tls; an exit status when they cannot be had. As nbdkit, which
// goes on without TLS unless it is required, or a key file is named.
std::optional<int> PrepareTls(const NbdkitOptions& options, TlsConfig* tls) {
  using Tls = NbdkitOptions::Tls;
  const bool required = options.tls == Tls::kRequire;
  if (required && options.oldstyle)
    return Refuse("cannot use oldstyle protocol (-o) and require TLS");
  tls->tls = nbd::TlsMode::kOff;
  if (options.tls == Tls::kOff) return std::nullopt;
  TlsConfig wanted;
  if (options.tls) wanted.tls = required ? nbd::TlsMode::kRequire : nbd::TlsMode::kOn;
  wanted.tls_psk = options.tls_psk.value_or("");
  if (!options.tls_psk) {  // which would take precedence
    wanted.tls_certificates = options.tls_certificates.value_or("");
    wanted.tls_verify_peer = options.tls_verify_peer;
  }
  const auto ready = PrepareServerTls(wanted);
  if (ready.ok()) {
    *tls = wanted;
    return std::nullopt;
  }
  LogDebug("TLS: ", ready.status().message());
  if (options.tls_psk) return Refuse(ready.status().message());
  constexpr std::string_view kAdvice =
      "Try setting ‘--tls-certificates=/path/to/certificates’ or read\n"
      "the \"TLS\" section in nbdkit(1).";
  if (required)
    return Refuse(absl::StrCat("--tls=require but could not load TLS certificates.\n", kAdvice));
  if (options.tls)
    Refuse(absl::StrCat("warning: --tls=on but could not load TLS certificates.\n",
                        "TLS will be disabled and TLS connections will be rejected.\n", kAdvice));
  return std::nullopt;
}

// -D: those of the log of calls are for us, others for who looks (DebugFlag).
NbdkitTrace TraceOf(const NbdkitOptions& options, const NbdkitStack& stack) {
  NbdkitTrace trace;
  for (std::string_view flag : options.debug_flags) {
    auto [name, value] = std::pair<std::string_view, std::string_view>(
        absl::StrSplit(flag, absl::MaxSplits('=', 1)));
    if (name == "nbdkit.backend.controlpath") trace.control = value != "0";
    if (name == "nbdkit.backend.datapath") trace.data = value != "0";
    const std::string_view owner = name.substr(0, name.find('.'));
    const std::string_view own_name = name.substr(owner.size() + 1);
    bool used = owner == "nbdkit" || owner == stack.plugin_name;
    for (const Spec* filter : stack.filters) used |= owner == filter->name();
    const std::vector<std::string_view> known = absl::StrSplit(NbdkitDebugFlags(owner), ' ');
    if (!used) {
      Refuse(absl::StrCat("warning: debug flag -D ", name, " was not used"));
    } else if (std::find(known.begin(), known.end(), own_name) == known.end()) {
      Refuse(absl::StrCat("warning: -D ", name, ": ", owner,
                          " does not contain a global variable called ", owner, "_debug_",
                          absl::StrReplaceAll(own_name, {{".", "_"}})));
    } else if (value != "0") {
      SetDebugFlag(name);
    }
  }
  return trace;
}

// `words` after the plugin, for planning: a bare first word is the script of plugins that have no
// magic key.
absl::StatusOr<std::vector<std::string>> ConfigWords(const NbdkitStack& stack,
                                                     std::span<const std::string> words) {
  std::vector<std::string> result = stack.presets;
  const bool magic = stack.plugin->params().magic() != nullptr;
  for (size_t i = 0; i < words.size(); ++i) {
    const bool bare = !magic && !SplitKeyValue(words[i]);
    if (bare && i > 0)
      return absl::InvalidArgumentError(
          absl::StrCat("expecting key=value on the command line but got: ", words[i]));
    result.push_back(bare ? absl::StrCat("script=", words[i]) : words[i]);
  }
  return result;
}

absl::StatusOr<ServePlace> PlaceFor(const NbdkitOptions& options, std::vector<int> activated) {
  ServePlace place;
  place.activated = std::move(activated);
  place.unix_socket = options.unix_socket;
  // As nbdkit has it since 1.36, so that no port is taken that somebody else may want.
  const bool anywhere = !options.unix_socket && !options.port && !options.address && !options.vsock;
  if (options.has_run && anywhere) place.unix_socket = "-";
  place.private_prefix = "/tmp/nbdkit";
  place.keep_socket = true;
  place.port = options.port;
  place.address = options.address;
  place.family = options.ipv4_only ? AF_INET : options.ipv6_only ? AF_INET6 : AF_UNSPEC;
  place.every_interface = true;
  place.single = options.single;
  place.selinux_label = options.selinux_label;
  if (options.vsock) {
    uint32_t port = 0;
    if (!absl::SimpleAtoi(options.port.value_or("10809"), &port))
      return absl::InvalidArgumentError(
          absl::StrCat("--vsock: -p ", *options.port, " is not the number of a port"));
    place.vsock_port = port;
  }
  return place;
}

ServerOptions ServerOptionsFor(const NbdkitOptions& options, const NbdkitStack& stack) {
  ServerOptions server;
  server.name = stack.plugin_name;
  server.read_only = options.read_only;
  server.keepalive = options.keepalive;
  // nbdkit wakes sleeping requests at once when it ends; real work is waited for in any case.
  server.stop_grace_ns = 1'000'000'000;
  server.handshake.oldstyle = options.oldstyle;
  server.handshake.structured_replies = options.structured_replies;
  server.handshake.meta_contexts = options.meta_contexts;
  server.handshake.handshake_flags =
      static_cast<uint16_t>(server.handshake.handshake_flags & options.mask_handshake);
  if (options.threads.value_or(0) > 0)
    server.requests_in_flight_max =
        std::min<size_t>(*options.threads, limits::kRequestsInFlightMax);
  return server;
}

absl::StatusOr<Identity> IdentityFor(const NbdkitOptions& options) {
  Identity identity;
  if (options.user) {
    auto user = FindUser(*options.user);
    if (!user.ok())
      return absl::NotFoundError(
          absl::StrCat("-u option: ", *options.user, " is not a valid user name or uid"));
    identity.user = *user;
  }
  if (options.group) {
    auto group = FindGroup(*options.group);
    if (!group.ok())
      return absl::NotFoundError(
          absl::StrCat("-g option: ", *options.group, " is not a valid group name or gid"));
    identity.group = *group;
  }
  return identity;
}

absl::StatusOr<ServePlan> PlanFor(const NbdkitOptions& options, const NbdkitStack& stack,
                                  const NbdkitTrace& trace, std::vector<int> activated) {
  ServePlan plan;
  BLK_ASSIGN_OR_RETURN(std::vector<std::string> words,
                       ConfigWords(stack, std::span(options.words).subspan(1)));
  BLK_ASSIGN_OR_RETURN(
      plan.stack, PlanOldCommandLine(AllSpecs(), options.filters, stack.plugin->name(), words));
  BLK_ASSIGN_OR_RETURN(plan.identity, IdentityFor(options));
  plan.background = !options.foreground && activated.empty();
  BLK_ASSIGN_OR_RETURN(plan.place, PlaceFor(options, std::move(activated)));
  plan.server = ServerOptionsFor(options, stack);
  if (options.timeout) {
    BLK_ASSIGN_OR_RETURN(Nanoseconds timeout, ParseDuration(*options.timeout));
    plan.server.handshake_seconds_max =
        static_cast<int>(std::chrono::ceil<std::chrono::seconds>(timeout).count());
  }
  if (options.verbose) plan.layer_hook = MakeNbdkitTraceHook(trace, stack.plugin_name);
  plan.keep_errors = options.verbose;
  plan.log = options.log;
  plan.log_name = "nbdkit";
  plan.export_name = options.export_name;
  plan.print_uri = options.print_uri;
  plan.uri_hints = [](const std::string& uri) {
    const std::string quoted = ShellQuote(uri);
    return absl::StrCat("Shell-quoted URI: ", quoted,
                        "\nCommand to query the NBD endpoint:\n  nbdinfo ", quoted, "\n");
  };
  plan.pidfile = options.pidfile;
  plan.keep_pidfile = true;
  plan.exit_with_parent = options.exit_with_parent;
  plan.lock_memory = options.swap;
  if (options.has_run) {
    plan.run = [options](const ServeEndpoint& endpoint) {
      return RunCommandFor(options, endpoint);
    };
    plan.wait_for_run = true;
    plan.run_ended = [](const ExitStatus& status) {
      if (status.signal)
        Refuse(absl::StrCat("external command was killed by signal ", status.signal));
    };
  }
  return plan;
}

// `PLUGIN [CONFIG...] --dump-plugin`
int DumpPlugin(const NbdkitOptions& options, const NbdkitStack& stack) {
  std::optional<StackDump> configured;
  if (options.words.size() > 1) {
    auto dump = [&]() -> absl::StatusOr<StackDump> {
      BLK_ASSIGN_OR_RETURN(std::vector<std::string> words,
                           ConfigWords(stack, std::span(options.words).subspan(1)));
      BLK_ASSIGN_OR_RETURN(StackPlan plan, PlanOldCommandLine(AllSpecs(), options.filters,
                                                              stack.plugin->name(), words));
      return DumpStack(std::move(plan));
    }();
    if (!dump.ok()) return Fail(dump.status().message());
    configured = *std::move(dump);
  }
  std::fputs(NbdkitDump(stack, configured ? &*configured : nullptr).c_str(), stdout);
  return EXIT_SUCCESS;
}

// A script on standard input, which -s gives to the client.
bool WantsStandardInput(const NbdkitOptions& options, const NbdkitStack& stack) {
  if (stack.plugin->name() != "sh") return false;
  return std::ranges::any_of(
      options.words, [](const std::string& word) { return word == "-" || word == "script=-"; });
}

void LogEnvironment() {
  for (char** entry = environ; *entry != nullptr; ++entry) LogDebug(*entry);
}

}  // namespace

int NbdkitMain(std::span<const std::string> arguments) {
  const pid_t parent = getppid();
  SetLogPrefix("nbdkit: ");
  std::string notice;
  auto activated = TakeActivatedSockets(&notice);
  if (!activated.ok()) return Refuse(activated.status().message());
  if (!notice.empty()) Refuse(notice);
  NbdkitOptions options;
  if (auto ended = ParseNbdkitOptions(arguments, !activated->empty(), &options)) return *ended;
  if (options.words.empty()) return WithoutPlugin(options);
  SetVerbose(options.verbose);
  SetLogTarget(options.log, "nbdkit");
  TlsConfig tls;
  if (auto ended = PrepareTls(options, &tls)) return *ended;
  LogDebug("nbdkit ", kNbdkitVersion, " (blk)");

  options.words[0] = NbdkitPluginName(options.words[0]);
  for (std::string& filter : options.filters) filter = NbdkitFilterName(filter);
  auto stack = FindNbdkitStack(options.filters, options.words[0]);
  if (!stack.ok()) return Refuse(stack.status().message());
  if (options.help || options.version) {
    std::fputs((options.help ? NbdkitHelp(*stack) : NbdkitVersions(*stack)).c_str(), stdout);
    return EXIT_SUCCESS;
  }
  if (!CombinationIsRight(options))
    return Refuse(
        "--dump-plugin, -p, --run, -s, -U or --vsock options cannot be used in this combination");
  const NbdkitTrace trace = TraceOf(options, *stack);
  if (DebugFlag("nbdkit.environ")) LogEnvironment();
  if (options.dump_plugin) return DumpPlugin(options, *stack);
  if (options.single && WantsStandardInput(options, *stack))
    return Fail("sh: a script on standard input cannot be used with -s, which serves there");
  auto plan = PlanFor(options, *stack, trace, *std::move(activated));
  if (!plan.ok()) return Fail(plan.status().message());
  plan->parent = parent;
  plan->tls = tls;
  plan->sandbox = SandboxMode::kOff;  // nbdkit's users may rely on what no layer declares
  absl::StatusOr<int> ended = RunServer(*std::move(plan));
  return ended.ok() ? *ended : Fail(ended.status().message());
}

}  // namespace blk
