#pragma once
// A captive server, `[ COMMAND ARGUMENTS… ]` or `command=` of the backend nbd: an NBD server that a
// tool or layer starts for itself by socket activation (LISTEN_FDS) and ends when done. Any server
// that knows that protocol will do: nbdkit, qemu-nbd, blk serve.
//
// Threads: made, used and stopped on one loop.
#include <memory>
#include <string>
#include <vector>

#include "src/core/process.h"

namespace blk {

class CaptiveServer {
 public:
  // Starts the command with a listening Unix socket, in a private directory, as descriptor 3.
  // Clients may connect at once; whether the command is a server shows when they do.
  // `has_input`: it has our standard input, else none.
  static Task<absl::StatusOr<std::unique_ptr<CaptiveServer>>> Start(std::vector<std::string> argv,
                                                                    bool has_input = false);
  CaptiveServer(const CaptiveServer&) = delete;
  // Without Stop(): kills the server and waits for nothing.
  ~CaptiveServer();

  const std::string& socket_path() const { return socket_path_; }
  std::string uri() const;
  const std::string& text() const { return text_; }  // `[ COMMAND ARGUMENTS… ]`

  // What to say when `failure` came of using the server: if it has ended (a moment is waited for
  // that), its command and how it ended, else the failure as it is. OK stays OK.
  Task<absl::Status> Explain(absl::Status failure);

  // Ends the server with SIGTERM, after 10 seconds with SIGKILL, and removes its socket. Call once.
  // An error when it failed on its own or had to be killed: what was written to it may be lost.
  Task<absl::Status> Stop();

 private:
  CaptiveServer() = default;
  void RemoveSocket();

  std::string text_;
  std::string directory_, socket_path_;
  std::unique_ptr<Process> process_;
};

}  // namespace blk
