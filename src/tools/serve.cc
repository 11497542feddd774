#include "src/tools/serve.h"

#include <unistd.h>

#include "src/backends/registry.h"
#include "src/backends/stack.h"
#include "src/core/daemon.h"
#include "src/core/trace.h"
#include "src/core/users.h"
#include "src/tools/serve_engine.h"

namespace blk {
namespace {

struct ServeConfig : CommonOptions, TlsConfig {
  std::vector<std::string> filters;
  std::optional<std::string> unix_socket;
  std::optional<std::string> port;
  std::optional<std::string> address;
  bool ipv4 = false, ipv6 = false;
  std::optional<uint32_t> vsock_port;
  bool single = false;
  bool foreground = false;
  bool background = false;
  std::string pidfile;
  bool read_only = false;
  std::string export_name;
  std::string run;
  bool exit_with_parent = false;
  int threads = 0;
  bool oldstyle = false, newstyle = false;
  bool structured_replies = true;
  bool meta_contexts = true;
  bool extended_headers = true;
  uint32_t mask_handshake = 0xffff;
  int handshake_seconds = limits::kHandshakeSecondsMax;
  bool print_uri = false;
  bool shm = true;
  SandboxMode sandbox = SandboxMode::kAuto;
  std::string user, group;
  bool swap = false;
};

const ParamTable<ServeConfig>& ServeRows() {
  static const auto& table = *[] {
    auto* rows = new ParamTable<ServeConfig>;
    using C = ServeConfig;
    rows->Param("filter", &C::filters, {.help = "stack a filter; the first is nearest the client"})
        .Param(
            "unix", &C::unix_socket,
            {.help = "listen on a Unix socket; `-`: a private one", .letter = 'U', .word = "PATH"})
        .Param("port", &C::port, {.help = "listen on this TCP port", .letter = 'p', .word = "PORT"})
        .Param("ip-addr", &C::address,
               {.help = "listen on this address instead of loopback",
                .aliases = {"ipaddr"},
                .letter = 'i',
                .word = "ADDRESS"})
        .Param("ipv4-only", &C::ipv4, {.help = "no IPv6", .letter = '4'})
        .Param("ipv6-only", &C::ipv6, {.help = "no IPv4", .letter = '6'})
        .Param("vsock", &C::vsock_port, {.help = "listen on this AF_VSOCK port"})
        .Param("single", &C::single,
               {.help = "serve one connection on standard input and output",
                .aliases = {"stdin"},
                .letter = 's'})
        .Param("foreground", &C::foreground,
               {.help = "stay in the foreground (so unless --fork)", .letter = 'f'})
        .Param("fork", &C::background, {.help = "go to the background when ready"})
        .Param("pidfile", &C::pidfile,
               {.help = "write the process id there when ready", .letter = 'P', .word = "PATH"})
        .Param("readonly", &C::read_only,
               {.help = "refuse writes", .aliases = {"read-only"}, .letter = 'r'})
        .Param("export-name", &C::export_name,
               {.help = "export name that the URI for --run carries",
                .aliases = {"export", "exportname"},
                .letter = 'e',
                .word = "NAME"})
        .Param(
            "run", &C::run,
            {.help = "run a shell command with $uri, $unixsocket, $port and $exportname, and end "
                     "with it",
             .word = "COMMAND"})
        .Param("exit-with-parent", &C::exit_with_parent, {.help = "end when the parent ends"})
        .Param("threads", &C::threads,
               {.help = "event loops; 0: one for each processor", .letter = 't', .min = "0"})
        .Param("oldstyle", &C::oldstyle, {.help = "use the oldstyle handshake", .letter = 'o'})
        .Param("newstyle", &C::newstyle,
               {.help = "use the newstyle handshake (always so)", .letter = 'n'})
        .Param("sr", &C::structured_replies, {.help = "offer structured replies"})
        .Param("mc", &C::meta_contexts, {.help = "offer metadata contexts"})
        .Param("extended-headers", &C::extended_headers, {.help = "offer extended headers"})
        .Param("mask-handshake", &C::mask_handshake,
               {.help = "offer only these handshake flags", .word = "MASK"})
        .Param("timeout", &C::handshake_seconds,
               {.help = "longest handshake", .unit = "seconds", .min = "1"})
        .Param("shm", &C::shm,
               {.help = "take shared memory that blk clients on Unix sockets offer"})
        .Param("print-uri", &C::print_uri, {.help = "print the URI when ready"});
    rows->Param("user", &C::user,
                {.help = "become this user once sockets, files and keys are open",
                 .letter = 'u',
                 .word = "USER"})
        .Param(
            "group", &C::group,
            {.help = "become this group (default: that of --user)", .letter = 'g', .word = "GROUP"})
        .Param("swap", &C::swap, {.help = "lock our memory, so that it is never swapped out"});
    AddTlsOptions(*rows).Param(
        "sandbox", &C::sandbox,
        {{"auto", SandboxMode::kAuto}, {"on", SandboxMode::kOn}, {"off", SandboxMode::kOff}},
        {.help = "may do only what the disk needs: as far as the kernel can; or fail; or anything",
         .if_bare = "on"});
    return &AddCommonOptions(*rows);
  }();
  return table;
}

absl::Status CheckCombination(const ServeConfig& config, bool activated) {
  auto fail = [](std::string_view text) { return absl::InvalidArgumentError(text); };
  int places = config.unix_socket.has_value() + (config.port || config.address) + config.single +
               config.vsock_port.has_value();
  if (places > 1)
    return fail("choose one of -U, -p/-i, --vsock and -s: they say where the server listens");
  if (config.single && !config.run.empty()) return fail("--run needs a socket; it excludes -s");
  if (config.ipv4 && config.ipv6) return fail("-4 and -6 exclude each other");
  if (activated && (places > 0 || !config.run.empty() || config.print_uri))
    return fail(
        "with socket activation (LISTEN_FDS) the sockets are given; it excludes -U, -p, -i, "
        "--vsock, -s, --run and --print-uri");
  if (config.background && (activated || config.single || config.foreground ||
                            config.exit_with_parent || !config.run.empty()))
    return fail("--fork excludes -f, -s, --run, --exit-with-parent and socket activation");
  return absl::OkStatus();
}

// The program of --run: a shell command with what it needs to know in the environment.
Command ProgramFor(const std::string& script, const ServeEndpoint& endpoint) {
  Command command = ShellCommand(script);
  std::string uri = endpoint.uri.ToString();
  command.environment = {{"uri", uri},
                         {"nbd", uri},
                         {"unixsocket", endpoint.unix_path},
                         {"port", endpoint.port ? absl::StrCat(endpoint.port) : ""},
                         {"exportname", endpoint.uri.export_name},
                         {"tls", endpoint.tls},
                         {"tls_certificates", endpoint.uri.tls_certificates},
                         {"tls_psk", endpoint.uri.tls_psk_file}};
  PutOurselvesOnPath(&command);
  return command;
}

ServerOptions OptionsFor(const ServeConfig& config) {
  ServerOptions options;
  options.read_only = config.read_only;
  options.shm = config.shm;
  options.handshake_seconds_max = config.handshake_seconds;
  options.handshake.oldstyle = config.oldstyle;
  options.handshake.structured_replies = config.structured_replies;
  options.handshake.extended_headers = config.extended_headers;
  options.handshake.meta_contexts = config.meta_contexts;
  options.handshake.handshake_flags =
      static_cast<uint16_t>(options.handshake.handshake_flags & config.mask_handshake);
  return options;
}

ServePlace PlaceFor(const ServeConfig& config, std::vector<int> activated) {
  ServePlace place;
  place.unix_socket = config.unix_socket;
  place.port = config.port;
  place.address = config.address;
  place.family = config.ipv4 ? AF_INET : config.ipv6 ? AF_INET6 : AF_UNSPEC;
  place.vsock_port = config.vsock_port;
  place.single = config.single;
  place.activated = std::move(activated);
  const bool somewhere =
      config.unix_socket || config.port || config.address || config.vsock_port || config.single;
  if (!config.run.empty() && !somewhere) place.unix_socket = "-";
  return place;
}

absl::StatusOr<Identity> IdentityFor(const ServeConfig& config) {
  Identity identity;
  if (!config.user.empty()) {
    BLK_ASSIGN_OR_RETURN(identity.user, FindUser(config.user));
  }
  if (!config.group.empty()) {
    BLK_ASSIGN_OR_RETURN(identity.group, FindGroup(config.group));
  } else if (identity.user) {
    const auto own = GroupOfUser(*identity.user);
    if (!own.ok()) return Annotate(own.status(), "--user without --group");
    identity.group = *own;
  }
  return identity;
}

ServePlan PlanFor(const ServeConfig& config, StackPlan stack, std::vector<int> activated) {
  ServePlan plan;
  plan.lock_memory = config.swap;
  plan.stack = std::move(stack);
  plan.place = PlaceFor(config, std::move(activated));
  plan.server = OptionsFor(config);
  plan.tls = config;
  plan.sandbox = config.sandbox;
  plan.loops = config.threads;
  plan.export_name = config.export_name;
  plan.print_uri = config.print_uri;
  plan.background = config.background;
  if (!config.pidfile.empty()) plan.pidfile = config.pidfile;
  plan.exit_with_parent = config.exit_with_parent;
  if (!config.run.empty()) {
    plan.run = [script = config.run](const ServeEndpoint& endpoint) {
      return ProgramFor(script, endpoint);
    };
  }
  return plan;
}

int ServeMain(std::span<const std::string> arguments) {
  const pid_t parent = getppid();
  ServeConfig config;
  int exit_status = 0;
  auto words = ParseTool("serve", ServeRows(), &config, arguments, &exit_status);
  if (!words) return exit_status;
  auto fail = [](const absl::Status& status) { return ExitStatusOf("serve", status); };
  if (words->empty())
    return fail(absl::InvalidArgumentError(
        "which disk? Name a backend, such as `blk serve memory 1G`; `blk list` shows them all"));
  std::string notice;
  auto activated = TakeActivatedSockets(&notice);
  if (!activated.ok()) return fail(activated.status());
  if (!notice.empty()) LogError(notice);
  if (absl::Status status = CheckCombination(config, !activated->empty()); !status.ok())
    return fail(status);
  auto stack = PlanCommandLine(AllSpecs(), config.filters, *words);
  if (!stack.ok()) return fail(stack.status());
  const auto identity = IdentityFor(config);
  if (!identity.ok()) return fail(identity.status());
  ServePlan plan = PlanFor(config, *std::move(stack), *std::move(activated));
  plan.identity = *identity;
  plan.parent = parent;
  absl::StatusOr<int> ended = RunServer(std::move(plan));
  return ended.ok() ? *ended : fail(ended.status());
}

}  // namespace

absl::StatusOr<ServeArguments> ParseServeArguments(std::span<const std::string> arguments) {
  ServeConfig config;
  BLK_ASSIGN_OR_RETURN(std::vector<std::string> words,
                       ParseOptions(ServeRows(), &config, "blk serve", arguments));
  if (words.empty()) return absl::InvalidArgumentError("`[ serve ]` names no backend");
  ServeArguments result;
  BLK_ASSIGN_OR_RETURN(result.plan, PlanCommandLine(AllSpecs(), config.filters, words));
  result.export_name = config.export_name;
  result.read_only = config.read_only;
  return result;
}

Tool ServeTool() {
  return {.name = "serve",
          .summary = "expose a disk over NBD",
          .synopsis = "[OPTIONS] BACKEND [[KEY=]VALUE ...]",
          .examples = {{"blk serve memory 1T", "a sparse RAM disk on nbd://localhost"},
                       {"blk serve -U - memory 1G --run 'blk info \"$uri\"'",
                        "a private server that ends with the command"},
                       {"blk serve --filter=offset file disk.img offset=1M range=64M",
                        "a window of a file"}},
          .rows = []() -> const ParamRows& { return ServeRows(); },
          .run = ServeMain};
}

}  // namespace blk
