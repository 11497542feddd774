#include "src/backends/nbd_captive.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "absl/strings/str_join.h"
#include "src/core/loop.h"
#include "src/core/stream.h"
#include "src/proto/uri.h"

namespace blk {
namespace {

constexpr int64_t kStopNs = 10'000'000'000;
constexpr int64_t kExplainNs = 500'000'000;
constexpr int kTerminatedCode = 128 + SIGTERM;  // what a shell in between makes of SIGTERM

}  // namespace

Task<absl::StatusOr<std::unique_ptr<CaptiveServer>>> CaptiveServer::Start(
    std::vector<std::string> argv, bool has_input) {
  if (argv.empty()) co_return absl::InvalidArgumentError("`[ ]` names no command");
  std::unique_ptr<CaptiveServer> server(new CaptiveServer);
  server->text_ = absl::StrCat("[ ", absl::StrJoin(argv, " "), " ]");
  char directory[] = "/tmp/blkXXXXXX";
  if (!mkdtemp(directory)) co_return ErrnoError(errno, "cannot make a private directory in /tmp");
  server->directory_ = directory;
  server->socket_path_ = absl::StrCat(directory, "/socket");
  BLK_CO_ASSIGN_OR_RETURN(int fd, ListenUnix(server->socket_path_));
  // Ours is closed when the server has its own: then connecting fails as soon as the server ends.
  Descriptor listener(fd);
  fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);  // servers expect to wait in accept(2)
  Command command;
  command.argv = std::move(argv);
  command.environment = {{"LISTEN_FDS", "1"}};
  command.unset = {"LISTEN_FDNAMES"};
  command.listen_pid = true;
  command.input = has_input ? Redirect::Inherit() : Redirect::Null();
  // The output of a tool may be the disk itself (`blk copy [ … ] -`).
  command.output = Redirect::To(STDERR_FILENO);
  command.descriptors = {{3, fd}};
  PutOurselvesOnPath(&command);
  absl::StatusOr<std::unique_ptr<Process>> process = absl::UnknownError("not started");
  co_await Loop::Current()->Offload([&] { process = StartProcess(command); });
  BLK_CO_RETURN_IF_ERROR(Annotate(process.status(), server->text_));
  server->process_ = *std::move(process);
  co_return server;
}

CaptiveServer::~CaptiveServer() { RemoveSocket(); }

void CaptiveServer::RemoveSocket() {
  if (directory_.empty()) return;
  unlink(socket_path_.c_str());
  rmdir(directory_.c_str());
  directory_.clear();
}

std::string CaptiveServer::uri() const {
  nbd::Uri uri;
  uri.transport = nbd::Uri::Transport::kUnix;
  uri.socket = socket_path_;
  return uri.ToString();
}

Task<absl::Status> CaptiveServer::Explain(absl::Status failure) {
  if (failure.ok()) co_return failure;
  auto ended = co_await process_->Wait(kExplainNs);
  if (!ended.ok()) co_return failure;
  co_return ErrnoErrorAsIs(
      ErrnoOf(failure),
      absl::StrCat(
          text_, ": the server ended too early, with ", ended->ToString(),
          "; it must serve NBD on the socket that LISTEN_FDS tells of (socket activation)"));
}

Task<absl::Status> CaptiveServer::Stop() {
  bool asked = process_->Kill(SIGTERM).ok();
  auto ended = co_await process_->Wait(kStopNs);
  if (!ended.ok() && ErrnoOf(ended.status()) == ETIMEDOUT) {
    (void)process_->Kill(SIGKILL);
    (void)co_await process_->Wait();
    RemoveSocket();
    co_return ErrnoErrorAsIs(
        EIO, absl::StrCat(text_, ": the server did not end when asked to, and was killed"));
  }
  RemoveSocket();
  BLK_CO_RETURN_IF_ERROR(Annotate(ended.status(), text_));
  bool as_asked = asked && (ended->signal == SIGTERM || ended->code == kTerminatedCode);
  if (ended->ok() || as_asked) co_return absl::OkStatus();
  co_return ErrnoErrorAsIs(EIO,
                           absl::StrCat(text_, ": the server failed with ", ended->ToString()));
}

}  // namespace blk
