#include "src/tools/serve_engine.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <syslog.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>

#include "src/core/daemon.h"
#include "src/core/descriptor.h"
#include "src/core/trace.h"
#include "src/tools/tool.h"

namespace blk {
namespace {

absl::Status ListenOnUnix(const ServePlace& place, ServeEndpoint* endpoint) {
  std::string path = *place.unix_socket;
  if (path == "-") {
    std::string directory = absl::StrCat(place.private_prefix, "XXXXXX");
    if (!mkdtemp(directory.data()))
      return ErrnoError(errno, "cannot make a private directory in /tmp");
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
  endpoint->keep_socket = place.keep_socket && endpoint->private_directory.empty();
  endpoint->unix_path = path;
  LogDebug("bound to unix socket ", path);
  endpoint->uri.transport = nbd::Uri::Transport::kUnix;
  endpoint->uri.socket = path;
  return absl::OkStatus();
}

// The addresses of loopback, or of every interface, by their numbers: /etc/hosts may say anything.
// A port of every interface that is taken for one family is still listened on for the other.
absl::StatusOr<std::vector<int>> ListenOnBothFamilies(const ServePlace& place, std::string port) {
  const char* const addresses[] = {place.every_interface ? "0.0.0.0" : "127.0.0.1",
                                   place.every_interface ? "::" : "::1"};
  std::vector<int> all;
  absl::Status failure;
  for (const char* address : addresses) {
    const int family = *address == ':' ? AF_INET6 : AF_INET;
    if (place.family != AF_UNSPEC && place.family != family) continue;
    auto fds = ListenTcp(address, port);
    if (fds.ok()) {
      all.insert(all.end(), fds->begin(), fds->end());
      if (port == "0") port = absl::StrCat(LocalPort(fds->front()));
    } else if (ErrnoOf(fds.status()) != EADDRNOTAVAIL) {  // a machine without IPv6
      failure = fds.status();
    }
  }
  if (!all.empty() && (failure.ok() || place.every_interface)) return all;
  for (int fd : all) close(fd);
  if (failure.ok()) failure = absl::NotFoundError("there is no address to listen on");
  return failure;
}

absl::Status ListenOnTcp(const ServePlace& place, ServeEndpoint* endpoint) {
  std::string port = place.port.value_or("10809");
  auto fds = place.address ? ListenTcp(*place.address, port, place.family)
                           : ListenOnBothFamilies(place, port);
  if (!fds.ok()) return fds.status();
  endpoint->fds = *std::move(fds);
  endpoint->port = LocalPort(endpoint->fds.front());
  LogDebug("bound to IP address ",
           place.address.value_or(place.every_interface ? "<any>" : "<loopback>"), ":",
           endpoint->port, " (", endpoint->fds.size(), " socket(s))");
  std::string host =
      place.address.value_or(place.family == AF_INET6 && !place.every_interface ? "::1" : "");
  if (host.empty() || host == "0.0.0.0" || host == "::") host = "localhost";
  endpoint->uri.host = host;
  endpoint->uri.port = endpoint->port;
  return absl::OkStatus();
}

absl::Status ListenSomewhere(const ServePlace& place, ServeEndpoint* endpoint) {
  endpoint->fds = place.activated;
  if (place.single || !endpoint->fds.empty()) return absl::OkStatus();
  if (place.vsock_port) {
    BLK_ASSIGN_OR_RETURN(int fd, ListenVsock(*place.vsock_port));
    endpoint->fds.push_back(fd);
    endpoint->uri.transport = nbd::Uri::Transport::kVsock;
    endpoint->uri.vsock_cid = 1;
    endpoint->uri.port = *place.vsock_port;
    return absl::OkStatus();
  }
  return place.unix_socket ? ListenOnUnix(place, endpoint) : ListenOnTcp(place, endpoint);
}

// The kernel takes the label of the sockets to come from there; "" is none again.
absl::Status LabelSockets(const std::string& label) {
  int fd = open("/proc/thread-self/attr/sockcreate", O_RDWR | O_CLOEXEC);
  ssize_t done = fd < 0 ? -1 : write(fd, label.data(), label.size());
  int error = errno;
  if (fd >= 0) close(fd);
  if (done < 0) return ErrnoError(error, absl::StrCat("--selinux-label=", label));
  return absl::OkStatus();
}

absl::Status Listen(const ServePlace& place, ServeEndpoint* endpoint) {
  if (place.selinux_label.empty()) return ListenSomewhere(place, endpoint);
  BLK_RETURN_IF_ERROR(LabelSockets(place.selinux_label));
  absl::Status status = ListenSomewhere(place, endpoint);
  (void)LabelSockets("");
  return status;
}

// With --single, standard input and output are the client's: no program that is started, and
// nothing that is printed, may use them.
absl::Status TakeStandardStreams(Descriptor* input, Descriptor* output) {
  input->Reset(fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
  output->Reset(fcntl(STDOUT_FILENO, F_DUPFD_CLOEXEC, STDERR_FILENO + 1));
  if (!input->valid() || !output->valid())
    return ErrnoError(errno, "--single: standard input and output");
  const Descriptor null(open("/dev/null", O_RDWR | O_CLOEXEC));
  if (!null.valid() || dup2(null.get(), STDIN_FILENO) < 0 || dup2(null.get(), STDOUT_FILENO) < 0)
    return ErrnoError(errno, "cannot open /dev/null");
  return absl::OkStatus();
}

// A server that is being started: what was made so far, in the order in which it goes again.
struct Job {
  ServePlan plan;
  ServeEndpoint endpoint;
  Descriptor single_input, single_output;
  LayerPtr layer;
  std::unique_ptr<Process> process;
  std::optional<SignalWatcher> signals;
  ReadyNotifier* notifier = nullptr;
  LoopPool* loops = nullptr;
  int exit_status = 0;
  bool signalled = false;
};

Task<void> StopOnSignal(Job* job, Server* server) {
  auto signal = co_await job->signals->Next();
  if (!signal.ok()) co_return;
  LogDebug("ended by signal ", *signal);
  job->signalled = true;
  if (job->process) job->process->CancelWait();
  server->Stop();
}

Task<void> WaitForProgram(Job* job, Server* server) {
  auto status = co_await job->process->Wait();
  if (status.ok()) {
    job->exit_status = status->shell_code();
    if (job->plan.run_ended) job->plan.run_ended(*status);
  } else if (ErrnoOf(status.status()) != ECANCELED) {
    LogError(absl::StrCat("--run: ", status.status().message()));
    job->exit_status = 1;
  }
  server->Stop();
  job->signals->Cancel();
}

Task<absl::Status> Serve(Job* job) {
  const ServePlan& plan = job->plan;
  LayerExports exports(job->layer);
  Server server(job->loops, &exports, plan.server);
  job->layer->AttachServer(&server);
  BLK_CO_RETURN_IF_ERROR(co_await job->layer->Start());
  TaskScope scope;
  scope.Spawn(StopOnSignal(job, &server));
  for (int fd : job->endpoint.fds) server.Listen(fd);
  if (plan.place.single) server.ServeOne(job->single_input.Release(), job->single_output.Release());
  if (plan.print_uri) {
    const std::string uri = job->endpoint.uri.ToString();
    std::printf("%s\n%s", uri.c_str(), plan.uri_hints ? plan.uri_hints(uri).c_str() : "");
    std::fflush(stdout);
  }
  absl::Status status = job->notifier->Ready();
  if (plan.background && plan.log == LogTarget::kDefault)
    SetLogTarget(LogTarget::kSyslog, plan.log_name);
  if (job->process) scope.Spawn(WaitForProgram(job, &server));
  if (!status.ok()) server.Stop();
  absl::Status ended = co_await server.Run();
  if (!job->process || !plan.wait_for_run || job->signalled || !status.ok()) {
    job->signals->Cancel();
    if (job->process) job->process->CancelWait();
  }
  co_await scope.Join();
  job->process.reset();
  absl::Status stopped = co_await job->layer->Stop();
  if (status.ok()) status = ended.ok() ? stopped : ended;
  co_return status;
}

// What the layers declared, and what the server itself still has to do: remove its socket, write
// and remove its pidfile.
SandboxRules RulesFor(const Job& job, SandboxRules rules) {
  const ServeEndpoint& endpoint = job.endpoint;
  if (!endpoint.unix_path.empty() && !endpoint.keep_socket)
    rules.remove.push_back(endpoint.unix_path);
  if (!endpoint.private_directory.empty()) rules.remove.push_back(endpoint.private_directory);
  if (job.plan.pidfile) rules.create.push_back(*job.plan.pidfile);
  return rules;
}

// After the last program of our own was started.
absl::Status EnterSandboxOf(const Job& job, const SandboxRules& needs) {
  if (job.plan.sandbox == SandboxMode::kOff) return absl::OkStatus();
  // Inside, no new connection to the system's log can be made.
  if (job.plan.background) openlog(job.plan.log_name.c_str(), LOG_PID | LOG_NDELAY, LOG_DAEMON);
  if (!needs.programs) BLK_RETURN_IF_ERROR(Spawner::Close());
  return Confine(job.plan.sandbox, RulesFor(job, needs));
}

// From the layers to the moment before loops run.
absl::Status Prepare(Job* job) {
  ServePlan& plan = job->plan;
  if (plan.place.single)
    BLK_RETURN_IF_ERROR(TakeStandardStreams(&job->single_input, &job->single_output));
  BLK_ASSIGN_OR_RETURN(job->layer, BuildStack(std::move(plan.stack), plan.layer_hook));
  BLK_ASSIGN_OR_RETURN(const ServerTls tls, PrepareServerTls(plan.tls));
  plan.server.tls = tls.context;
  plan.server.handshake.tls = tls.mode;
  if (plan.lock_memory && mlockall(MCL_CURRENT | MCL_FUTURE) < 0)
    return ErrnoError(errno, "--swap: cannot lock our memory");
  job->signals.emplace(
      {SIGINT, SIGTERM, SIGQUIT, SIGHUP});  // from here on there is something to remove
  BLK_RETURN_IF_ERROR(Listen(plan.place, &job->endpoint));
  job->endpoint.uri.export_name = plan.export_name;
  job->endpoint.tls = TlsVariable(tls);
  DescribeTls(plan.tls, tls, &job->endpoint.uri);
  if (plan.run) {
    // As the user that we still are. It may connect at once: the socket listens, and loops follow.
    auto process = StartProcess(plan.run(job->endpoint));
    if (!process.ok()) return Annotate(process.status(), "--run");
    job->process = *std::move(process);
  }
  return DropPrivileges(plan.identity);
}

}  // namespace

ServeEndpoint::~ServeEndpoint() {
  if (!unix_path.empty() && !keep_socket) unlink(unix_path.c_str());
  if (!private_directory.empty()) rmdir(private_directory.c_str());
}

void SetLogTarget(LogTarget target, const std::string& name) {
  static std::string& ident = *new std::string;  // openlog keeps the pointer
  if (target == LogTarget::kSyslog) {
    ident = name;
    openlog(ident.c_str(), LOG_PID | LOG_NDELAY, LOG_DAEMON);
    SetErrorSink([](std::string_view message) {
      syslog(LOG_ERR, "%.*s", static_cast<int>(message.size()), message.data());
    });
  } else if (target == LogTarget::kNull) {
    SetErrorSink([](std::string_view) {});
  } else {
    SetErrorSink(nullptr);
  }
}

absl::StatusOr<int> RunServer(ServePlan plan) {
  BLK_ASSIGN_OR_RETURN(ReadyNotifier notifier,
                       ReadyNotifier::Start({.background = plan.background,
                                             .pidfile = plan.pidfile.value_or(""),
                                             .keep_pidfile = plan.keep_pidfile,
                                             .keep_errors = plan.keep_errors}));
  // The spawner stayed with the process that we were forked from.
  if (plan.background) BLK_RETURN_IF_ERROR(Spawner::Start());
  Job job;
  job.plan = std::move(plan);
  job.notifier = &notifier;
  SandboxRules needs;
  AddNeeds(job.plan.stack.Needs(job.plan.server.read_only),
           &needs);  // building the stack uses its plan up
  BLK_RETURN_IF_ERROR(Prepare(&job));
  // After the change of user, which would forget it.
  if (job.plan.exit_with_parent && !EndWithParent(job.plan.parent, SIGTERM).ok()) return 0;
  LoopPool loops(LoopCount(job.plan.loops));
  job.loops = &loops;
  BLK_RETURN_IF_ERROR(EnterSandboxOf(job, needs));
  BLK_RETURN_IF_ERROR(loops.RunMain(Serve(&job)));
  return job.exit_status;
}

}  // namespace blk
