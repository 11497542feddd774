#pragma once
// The engine behind `blk serve` and behind the name nbdkit: listens, goes to the background, drops
// privileges, starts the layers and serves until it is told to end. The two command lines differ in
// the ServePlan that they make of their options, and in nothing after that.
//
// Threads: RunServer is called before any.
#include <sys/types.h>

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "src/backends/stack.h"
#include "src/core/identity.h"
#include "src/core/process.h"
#include "src/proto/uri.h"
#include "src/tools/confine.h"
#include "src/tools/serve_tls.h"
#include "src/tools/server.h"

namespace blk {

// Where a server listens. At most one of unix_socket, vsock_port, single, activated, or else TCP.
struct ServePlace {
  std::optional<std::string> unix_socket;  // "-": in a private folder, removed at the end
  std::string private_prefix = "/tmp/blk";
  bool keep_socket = false;  // the file of a Unix socket stays when the server ends
  std::optional<std::string> port, address;
  int family = AF_UNSPEC;
  bool every_interface = false;  // without an address; else loopback
  std::optional<uint32_t> vsock_port;
  bool single = false;         // one connection, on standard input and output
  std::vector<int> activated;  // sockets that a superserver opened for us
  std::string selinux_label;   // of the sockets; "": as the process has it
};

// Where it ended up listening, and what a client needs to know. The files go with it.
struct ServeEndpoint {
  ServeEndpoint() = default;
  ServeEndpoint(const ServeEndpoint&) = delete;
  ~ServeEndpoint();

  std::vector<int> fds;
  std::string unix_path;
  bool keep_socket = false;
  std::string private_directory;
  int port = 0;
  nbd::Uri uri;
  std::string tls;  // for scripts: "" off, "1" on, "2" required
};

// Where errors go. The default is standard error, and syslog once in the background.
enum class LogTarget { kDefault, kStderr, kSyslog, kNull };
// From now on. `name` is what syslog knows us by.
void SetLogTarget(LogTarget target, const std::string& name);

struct ServePlan {
  StackPlan stack;
  LayerHook layer_hook;  // may be null
  ServePlace place;
  ServerOptions server;  // but for TLS
  TlsConfig tls;
  SandboxMode sandbox = SandboxMode::kAuto;
  int loops = 0;            // 0: one for each processor
  std::string export_name;  // that the URI carries
  bool print_uri = false;
  std::function<std::string(const std::string& uri)> uri_hints = nullptr;  // printed after it

  bool background = false;
  bool keep_errors = false;  // in the background: standard error stays open (nbdkit -v)
  LogTarget log = LogTarget::kDefault;
  std::string log_name = "blk";
  std::optional<std::string> pidfile;
  bool keep_pidfile = false;  // when the server ends
  bool exit_with_parent = false;
  pid_t parent = 0;   // getppid() at the start, for exit_with_parent
  Identity identity;  // who the server becomes once it listens
  bool lock_memory = false;

  // The program whose end ends the server, and whose exit status is the server's.
  std::function<Command(const ServeEndpoint&)> run;  // null: none
  std::function<void(const ExitStatus&)> run_ended = nullptr;
  bool wait_for_run = false;  // when the server ends by itself; else the program is ended, too
};

// Serves; returns the exit status. Call it with the spawner started. An error is for the caller to
// say, in its own form; in the background it has reached the terminal when the first process ends.
absl::StatusOr<int> RunServer(ServePlan plan);

}  // namespace blk
