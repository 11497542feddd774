// nbd: an export of another NBD server. Parallel-safe: each loop has connections of its own.
#include <fcntl.h>

#include <cerrno>

#include "src/backends/nbd_captive.h"
#include "src/backends/nbd_connect.h"
#include "src/backends/stack.h"
#include "src/core/spec.h"
#include "src/core/sync.h"

namespace blk {

const Spec& NbdSpec();

namespace {

struct Config {
  std::optional<std::string> uri;
  std::optional<std::string> socket;
  std::optional<std::string> hostname;
  std::string port = "10809";
  std::optional<uint32_t> vsock;
  std::string command;  // of a server that is ours
  std::vector<std::string> arguments;
  std::optional<int> socket_fd;
  std::string export_name;
  bool dynamic_export = false;
  bool shared = false;
  int connections = 4;
  int retry = 0;
  bool structured_replies = true;
  bool extended_headers = true;
  int timeout = 30;
  std::vector<std::string> contexts;
  bool shm = true;
  std::optional<nbd::ClientTls> tls;
  std::string tls_certificates, tls_psk, tls_username, tls_hostname;
  bool tls_verify = true;
  std::shared_ptr<Arena> arena;  // a tool's; else one is made for the layer
};

// For the requests in flight of one device; more of them go through the socket.
constexpr uint64_t kArenaBytes = 32 << 20;

absl::StatusOr<nbd::Uri> UriOf(const Config& config) {
  int ways = config.uri.has_value() + config.socket.has_value() + config.hostname.has_value() +
             config.vsock.has_value() + !config.command.empty() + config.socket_fd.has_value();
  if (ways != 1)
    return absl::InvalidArgumentError(
        "say where the server is by exactly one of uri=, socket=, hostname=, vsock=, command= and "
        "socket-fd=");
  nbd::Uri uri;
  if (config.uri) {
    BLK_ASSIGN_OR_RETURN(uri, nbd::ParseUri(*config.uri));
  } else if (config.socket) {
    uri.transport = nbd::Uri::Transport::kUnix;
    uri.socket = *config.socket;
  } else if (!config.command.empty()) {
    uri.transport = nbd::Uri::Transport::kUnix;  // its socket is known when it was started
  } else if (config.socket_fd) {
    uri.host = absl::StrCat("socket-fd=", *config.socket_fd);  // for messages
  } else {
    BLK_ASSIGN_OR_RETURN(uri.port, ParseUnsigned(config.port));
    if (config.vsock) {
      uri.transport = nbd::Uri::Transport::kVsock;
      uri.vsock_cid = *config.vsock;
    } else {
      uri.host = *config.hostname;
    }
  }
  if (!config.export_name.empty()) uri.export_name = config.export_name;
  const auto prefer = [](const std::string& given, std::string& text) {
    if (!given.empty()) text = given;
  };
  prefer(config.tls_certificates, uri.tls_certificates);
  prefer(config.tls_psk, uri.tls_psk_file);
  prefer(config.tls_username, uri.tls_username);
  prefer(config.tls_hostname, uri.tls_hostname);
  if (!config.tls_verify) uri.tls_verify_peer = false;
  if (uri.tls && config.tls.value_or(nbd::ClientTls::kRequire) != nbd::ClientTls::kRequire)
    return absl::InvalidArgumentError("the scheme nbds requires TLS; leave out tls=");
  return uri;
}

// What every client of a shared connection gets; the layer closes the connection itself.
class SharedDevice final : public Filter {
 public:
  explicit SharedDevice(DevicePtr below) : Filter(below, below->facts(), /*passes_data=*/true) {}

 protected:
  Task<absl::Status> DoClose() override { return absl::OkStatus(); }
};

class NbdLayer final : public Layer {
 public:
  NbdLayer(NbdConnectOptions options, Config config)
      : options_(std::move(options)), config_(std::move(config)) {}

  absl::Status Ready() override {
    if (config_.socket_fd && fcntl(*config_.socket_fd, F_SETFD, FD_CLOEXEC) < 0)
      return ErrnoError(errno, absl::StrCat("socket-fd=", *config_.socket_fd));
    return PrepareTls(&options_);
  }

  Task<absl::Status> Start() override {
    if (config_.command.empty()) co_return absl::OkStatus();
    std::vector<std::string> argv = {config_.command};
    argv.insert(argv.end(), config_.arguments.begin(), config_.arguments.end());
    BLK_CO_ASSIGN_OR_RETURN(captive_, co_await CaptiveServer::Start(std::move(argv)));
    options_.uri.socket = captive_->socket_path();
    co_return absl::OkStatus();
  }

  Task<absl::StatusOr<ExportList>> ListExports(const OpenArgs&) override {
    ExportList list;
    if (!config_.dynamic_export) {
      list.exports.push_back({options_.uri.export_name, ""});
      list.default_name = options_.uri.export_name;
      co_return list;
    }
    BLK_CO_ASSIGN_OR_RETURN(auto server, co_await NbdHandshake::Open(options_));
    auto exports = co_await server->handshake().List();
    co_await server->Close();
    if (!exports.ok()) co_return exports.status();
    for (nbd::ListedExport& entry : *exports)
      list.exports.push_back({std::move(entry.name), std::move(entry.description)});
    co_return list;
  }

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    if (!config_.shared) co_return co_await Connect(std::move(args));
    MutexGuard guard = co_await sharing_.Lock();
    if (!shared_) {
      BLK_CO_ASSIGN_OR_RETURN(shared_, co_await Connect(std::move(args)));
    }
    co_return std::make_shared<SharedDevice>(shared_);
  }

  Task<absl::Status> Stop() override {
    absl::Status status;
    if (DevicePtr device = std::exchange(shared_, nullptr)) status = co_await device->Close();
    if (!captive_) co_return status;
    absl::Status stopped = co_await captive_->Stop();
    co_return status.ok() ? stopped : status;
  }

 private:
  Task<absl::StatusOr<DevicePtr>> Connect(OpenArgs args) {
    NbdConnectOptions options = options_;
    if (config_.dynamic_export) options.uri.export_name = args.export_name;
    if (config_.shm && !options.arena && options.uri.transport == nbd::Uri::Transport::kUnix) {
      auto arena = Arena::Create(kArenaBytes);
      if (arena.ok()) options.arena = *std::move(arena);  // without it the socket will do
    }
    if (config_.socket_fd) co_return co_await ConnectOnce(std::move(options));
    auto connect = [options] { return ConnectNbd(options); };
    auto first = co_await connect();
    for (int i = 0; i < config_.retry && !first.ok(); ++i) {  // for servers that start just now
      BLK_CO_RETURN_IF_ERROR(co_await Loop::Current()->Sleep(1'000'000'000));
      first = co_await connect();
    }
    if (!first.ok() && captive_) co_return co_await captive_->Explain(first.status());
    if (!first.ok()) co_return first.status();
    co_return std::make_shared<NbdDevice>(*std::move(first), connect, config_.connections);
  }

  // Over the descriptor that was handed to us: there is no second one.
  Task<absl::StatusOr<DevicePtr>> ConnectOnce(NbdConnectOptions options) {
    if (std::exchange(socket_used_, true))
      co_return ErrnoErrorAsIs(ENOTCONN, "the connection of socket-fd= has ended");
    BLK_CO_ASSIGN_OR_RETURN(NbdConnection first,
                            co_await ConnectNbdOver(MakeSocketStream(*config_.socket_fd), options));
    auto none = []() -> Task<absl::StatusOr<NbdConnection>> {
      return absl::StatusOr<NbdConnection>(ErrnoErrorAsIs(ENOTCONN, "there is one socket only"));
    };
    co_return std::make_shared<NbdDevice>(std::move(first), none, /*connections=*/1);
  }

  NbdConnectOptions options_;  // complete after Start()
  const Config config_;
  std::unique_ptr<CaptiveServer> captive_;
  bool socket_used_ = false;
  Mutex sharing_;
  DevicePtr shared_;  // guarded by sharing_; with shared=true
};

absl::StatusOr<NbdConnectOptions> OptionsOf(const Config& config) {
  NbdConnectOptions options;
  BLK_ASSIGN_OR_RETURN(options.uri, UriOf(config));
  options.structured_replies = config.structured_replies;
  options.extended_headers = config.extended_headers;
  options.connect_seconds_max = config.timeout;
  for (const std::string& context : config.contexts) options.contexts.push_back(context);
  if (config.shm) options.arena = config.arena;
  const bool named = !config.tls_certificates.empty() || !config.tls_psk.empty() ||
                     !config.tls_username.empty() || !config.tls_hostname.empty() ||
                     !config.tls_verify;
  options.tls = config.tls.value_or(named ? nbd::ClientTls::kPrefer : nbd::ClientTls::kOff);
  return options;
}

absl::StatusOr<LayerPtr> MakeNbd(Config config) {
  if (!config.command.empty() || config.socket_fd) config.shared = true;
  if (config.shared && config.dynamic_export)
    return absl::InvalidArgumentError("shared=true and dynamic-export=true exclude each other");
  BLK_ASSIGN_OR_RETURN(NbdConnectOptions options, OptionsOf(config));
  return std::make_shared<NbdLayer>(std::move(options), std::move(config));
}

}  // namespace

void AdjustNbdPlan(StackPlan* plan, int connections, const std::vector<std::string>& contexts,
                   std::shared_ptr<Arena> arena, bool shm) {
  if (plan->layers.back().spec != &NbdSpec()) return;
  auto* config = static_cast<Config*>(plan->layers.back().config.get());
  if (config->connections == Config().connections) config->connections = connections;
  if (!shm) config->shm = false;
  config->arena = std::move(arena);
  config->contexts.insert(config->contexts.end(), contexts.begin(), contexts.end());
}

std::optional<NbdConnectOptions> NbdServerOf(const StackPlan& plan) {
  if (plan.layers.size() != 1 || plan.layers[0].spec != &NbdSpec()) return std::nullopt;
  const auto& config = *static_cast<const Config*>(plan.layers[0].config.get());
  if (!config.command.empty() || config.socket_fd) return std::nullopt;
  auto options = OptionsOf(config);
  if (!options.ok()) return std::nullopt;  // opening it will say why
  return *std::move(options);
}

const Spec& NbdSpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<Config>("nbd", "an export of another NBD server")
          .Param("uri", &Config::uri, {.help = "NBD URI of the server", .magic = true})
          .Param(
              "socket", &Config::socket,
              {.help = "Unix socket", .word = "PATH", .path = PathUse::kReadWrite, .later = true})
          .Param("hostname", &Config::hostname, {.help = "TCP host"})
          .Param("port", &Config::port, {.help = "TCP or vsock port", .word = "PORT"})
          .Param("vsock", &Config::vsock, {.help = "vsock context id"})
          .Param("command", &Config::command,
                 {.help = "start this NBD server, by socket activation", .word = "PROGRAM"})
          .Param("arg", &Config::arguments, {.help = "an argument of the command"})
          .Param("socket-fd", &Config::socket_fd,
                 {.help = "descriptor of a connected socket", .min = "0"})
          .Param("export", &Config::export_name, {.help = "export name", .word = "NAME"})
          .Param("dynamic-export", &Config::dynamic_export,
                 {.help = "pass the client's export name on"})
          .Param("shared", &Config::shared, {.help = "all clients share one connection"})
          .Param("connections", &Config::connections,
                 {.help = "most connections, when the server allows several",
                  .min = "1",
                  .max = "128"})
          .Param("retry", &Config::retry,
                 {.help = "how often to try again, once a second, to reach the server", .min = "0"})
          .Param("timeout", &Config::timeout,
                 {.help = "longest handshake", .unit = "seconds", .min = "1"})
          .Param("structured-replies", &Config::structured_replies,
                 {.help = "ask for structured replies"})
          .Param("extended-headers", &Config::extended_headers,
                 {.help = "ask for extended headers"})
          .Param("context", &Config::contexts,
                 {.help = "further metadata context to ask for", .word = "NAME"})
          .Param("shm", &Config::shm,
                 {.help = "offer a blk server on a Unix socket shared memory for payloads"})
          .Param("tls", &Config::tls,
                 {{"off", nbd::ClientTls::kOff},
                  {"on", nbd::ClientTls::kPrefer},
                  {"require", nbd::ClientTls::kRequire}},
                 {.help = "encrypt: never, if the server can, or else fail (default: require for "
                          "nbds, on when another tls parameter is given)"})
          .Param("tls-certificates", &Config::tls_certificates,
                 {.help = "folder with ca-cert.pem, client-cert.pem and client-key.pem",
                  .word = "DIR",
                  .path = PathUse::kRead})
          .Param("tls-psk", &Config::tls_psk,
                 {.help = "pre-shared keys, lines of USER:HEXKEY",
                  .word = "FILE",
                  .path = PathUse::kRead})
          .Param("tls-username", &Config::tls_username, {.help = "whose pre-shared key"})
          .Param("tls-hostname", &Config::tls_hostname,
                 {.help = "name that the server's certificate must have"})
          .Param("tls-verify", &Config::tls_verify, {.help = "verify the server's certificate"})
          .PrintedExample("nbd://localhost", "the default export of a server on this machine")
          .PrintedExample("nbd(socket=/tmp/sock,export=disk)", "over a Unix socket")
          .PrintedExample("nbd(command=qemu-nbd,arg=-f,arg=qcow2,arg=disk.qcow2)",
                          "a server that is started for it")
          .Needs(Need::Kind::kNetwork)
          .NeedsOf([](const Config& config) {
            std::vector<Need> needs;
            if (!config.command.empty())
              needs = {{Need::Kind::kProgram, config.command}, {Need::Kind::kTemporaryFile, ""}};
            return needs;
          })
          .Make([](Config config) { return MakeNbd(std::move(config)); }));
  return spec;
}

}  // namespace blk
