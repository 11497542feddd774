#include "src/tools/serve.h"

#include <unistd.h>

#include <csignal>
#include <cstring>

#include "src/backends/registry.h"
#include "src/backends/stack.h"
#include "src/core/daemon.h"
#include "src/core/process.h"
#include "src/core/trace.h"
#include "src/proto/uri.h"
#include "src/tools/server.h"

namespace blk {
namespace {

struct ServeConfig : CommonOptions {
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
    return &AddCommonOptions(*rows);
  }();
  return table;
}

// Where the server listens, and what a client needs to know.
struct Endpoint {
  std::vector<int> fds;
  std::string unix_path;
  std::string private_directory;  // removed at the end
  int port = 0;
  nbd::Uri uri;

  ~Endpoint() {
    if (!unix_path.empty()) unlink(unix_path.c_str());
    if (!private_directory.empty()) rmdir(private_directory.c_str());
  }
};

absl::Status ListenOnUnix(const std::string& wanted, Endpoint* endpoint) {
  std::string path = wanted;
  if (wanted == "-") {
    char directory[] = "/tmp/blkXXXXXX";
    if (!mkdtemp(directory)) return ErrnoError(errno, "cannot make a private directory in /tmp");
    endpoint->private_directory = directory;
    path = absl::StrCat(directory, "/socket");
  }
  BLK_ASSIGN_OR_RETURN(int fd, ListenUnix(path));
  endpoint->fds.push_back(fd);
  if (path[0] != '/') {
    char* absolute = realpath(path.c_str(), nullptr);
    if (absolute) path = absolute;
    std::free(absolute);
  }
  endpoint->unix_path = path;
  endpoint->uri.transport = nbd::Uri::Transport::kUnix;
  endpoint->uri.socket = path;
  return absl::OkStatus();
}

absl::Status ListenOnTcp(const ServeConfig& config, Endpoint* endpoint) {
  const int family = config.ipv4 ? AF_INET : config.ipv6 ? AF_INET6 : AF_UNSPEC;
  std::string port = config.port.value_or("10809");
  if (config.address) {
    BLK_ASSIGN_OR_RETURN(endpoint->fds, ListenTcp(*config.address, port, family));
  } else {
    // Loopback, by its numbers: /etc/hosts may say anything.
    absl::Status failure;
    for (const char* address : {"127.0.0.1", "::1"}) {
      if ((family == AF_INET && *address == ':') || (family == AF_INET6 && *address != ':'))
        continue;
      auto fds = ListenTcp(address, port);
      if (fds.ok()) {
        endpoint->fds.insert(endpoint->fds.end(), fds->begin(), fds->end());
        if (port == "0") port = absl::StrCat(LocalPort(fds->front()));
      } else if (ErrnoOf(fds.status()) != EADDRNOTAVAIL) {  // a machine without IPv6
        failure = fds.status();
      }
    }
    if (!failure.ok()) return failure;
    if (endpoint->fds.empty())
      return absl::NotFoundError("there is no loopback address to listen on");
  }
  endpoint->port = LocalPort(endpoint->fds.front());
  endpoint->uri.host = config.address.value_or(config.ipv6 ? "::1" : "localhost");
  if (endpoint->uri.host == "0.0.0.0" || endpoint->uri.host == "::" || endpoint->uri.host.empty())
    endpoint->uri.host = "localhost";
  endpoint->uri.port = endpoint->port;
  return absl::OkStatus();
}

// `activated`: sockets that a superserver opened for us; they replace all others.
absl::Status Listen(const ServeConfig& config, std::vector<int> activated, Endpoint* endpoint) {
  endpoint->uri.export_name = config.export_name;
  endpoint->fds = std::move(activated);
  if (config.single || !endpoint->fds.empty()) return absl::OkStatus();
  if (config.vsock_port) {
    BLK_ASSIGN_OR_RETURN(int fd, ListenVsock(*config.vsock_port));
    endpoint->fds.push_back(fd);
    endpoint->uri.transport = nbd::Uri::Transport::kVsock;
    endpoint->uri.vsock_cid = 1;
    endpoint->uri.port = *config.vsock_port;
    return absl::OkStatus();
  }
  if (config.unix_socket) return ListenOnUnix(*config.unix_socket, endpoint);
  if (!config.run.empty() && !config.port && !config.address) return ListenOnUnix("-", endpoint);
  return ListenOnTcp(config, endpoint);
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

Task<void> StopOnSignal(SignalWatcher* signals, Server* server) {
  auto signal = co_await signals->Next();
  if (!signal.ok()) co_return;
  LogDebug("ended by signal ", *signal);
  server->Stop();
}

Command RunCommandFor(const ServeConfig& config, const Endpoint& endpoint) {
  Command command = ShellCommand(config.run);
  std::string uri = endpoint.uri.ToString();
  command.environment = {{"uri", uri},
                         {"nbd", uri},
                         {"unixsocket", endpoint.unix_path},
                         {"port", endpoint.port ? absl::StrCat(endpoint.port) : ""},
                         {"exportname", config.export_name}};
  PutOurselvesOnPath(&command);
  return command;
}

Task<void> WaitForCommand(Process* process, Server* server, int* exit_status) {
  auto status = co_await process->Wait();
  if (status.ok()) {
    *exit_status = status->shell_code();
  } else if (ErrnoOf(status.status()) != ECANCELED) {
    LogError(absl::StrCat("--run: ", status.status().message()));
    *exit_status = 1;
  }
  server->Stop();
}

struct ServeJob {
  const ServeConfig& config;
  Endpoint& endpoint;
  LayerPtr layer;
  SignalWatcher& signals;
  ReadyNotifier& notifier;
  LoopPool* loops;
  int exit_status = 0;
};

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

Task<absl::Status> Serve(ServeJob* job) {
  BLK_CO_RETURN_IF_ERROR(co_await job->layer->Start());
  LayerExports exports(job->layer);
  Server server(job->loops, &exports, OptionsFor(job->config));
  TaskScope scope;
  scope.Spawn(StopOnSignal(&job->signals, &server));
  for (int fd : job->endpoint.fds) server.Listen(fd);
  if (job->config.single) server.ServeOne(dup(STDIN_FILENO), dup(STDOUT_FILENO));
  if (job->config.print_uri) {
    std::printf("%s\n", job->endpoint.uri.ToString().c_str());
    std::fflush(stdout);
  }
  absl::Status status = job->notifier.Ready();
  std::unique_ptr<Process> process;
  if (status.ok() && !job->config.run.empty()) {
    auto started = StartProcess(RunCommandFor(job->config, job->endpoint));
    if (started.ok()) {
      process = *std::move(started);
      scope.Spawn(WaitForCommand(process.get(), &server, &job->exit_status));
    } else {
      status = Annotate(started.status(), "--run");
    }
  }
  if (!status.ok()) server.Stop();
  absl::Status ended = co_await server.Run();
  job->signals.Cancel();
  if (process) process->CancelWait();
  co_await scope.Join();
  process.reset();
  absl::Status stopped = co_await job->layer->Stop();
  if (status.ok()) status = ended.ok() ? stopped : ended;
  co_return status;
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
  auto plan = PlanCommandLine(AllSpecs(), config.filters, *words);
  if (!plan.ok()) return fail(plan.status());
  auto notifier = ReadyNotifier::Start({config.background, config.pidfile});
  if (!notifier.ok()) return fail(notifier.status());
  if (config.background) {  // the spawner stayed with the process that we were forked from
    if (absl::Status status = Spawner::Start(); !status.ok()) return fail(status);
  }
  auto layer = BuildStack(*std::move(plan));
  if (!layer.ok()) return fail(layer.status());
  Endpoint endpoint;
  if (absl::Status status = Listen(config, *std::move(activated), &endpoint); !status.ok())
    return fail(status);
  SignalWatcher signals({SIGINT, SIGTERM, SIGQUIT});
  if (config.exit_with_parent && !EndWithParent(parent, SIGTERM).ok()) return 0;
  LoopPool loops(LoopCount(config.threads));
  ServeJob job{config, endpoint, *std::move(layer), signals, *notifier, &loops};
  absl::Status status = loops.RunMain(Serve(&job));
  return status.ok() ? job.exit_status : fail(status);
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
