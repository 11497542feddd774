// The parent's side of starting and stopping the spawner.
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <mutex>

#include "src/core/descriptor.h"
#include "src/core/identity.h"
#include "src/core/process.h"
#include "src/core/spawner.h"

namespace blk {
namespace {

// Of the process `owner`: a fork without exec inherits all this but must not use it.
struct Connection {
  std::mutex mutex;
  pid_t owner = -1;
  pid_t spawner = -1;
  int socket = -1;
};
Connection& TheConnection() {
  static Connection connection;
  return connection;
}

absl::Status Fork(Connection& connection) {
  int ends[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) < 0)
    return ErrnoError(errno, "cannot make a socket");
  Descriptor ours(ends[0]), theirs(ends[1]);
  // Without it (old kernels) the end of the parent shows as the end of the socket only.
  Descriptor self(static_cast<int>(syscall(SYS_pidfd_open, getpid(), 0)));
  signal(SIGPIPE, SIG_IGN);
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);  // no handler of ours may run in the spawner
  pid_t pid = fork();
  if (pid == 0) {
    ours.Reset();
    internal::RunSpawner(theirs.get(), self.get());
  }
  int error = errno;
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  if (pid < 0) return ErrnoError(error, "cannot start the process that starts programs");
  connection.owner = getpid();
  connection.spawner = pid;
  connection.socket = ours.Release();
  return absl::OkStatus();
}

absl::Status SendPacket(int socket, const internal::SpawnPacket& packet) {
  if (send(socket, &packet, sizeof packet, MSG_NOSIGNAL) == sizeof packet) return absl::OkStatus();
  return ErrnoError(errno, "cannot reach the process that starts programs");
}

}  // namespace

namespace internal {
absl::StatusOr<int> SpawnerSocket() {
  Connection& connection = TheConnection();
  std::lock_guard lock(connection.mutex);
  if (connection.owner != getpid()) {
    if (connection.socket >= 0) close(std::exchange(connection.socket, -1));
    BLK_RETURN_IF_ERROR(Fork(connection));
  }
  return connection.socket;
}
}  // namespace internal

absl::Status Spawner::Start() { return internal::SpawnerSocket().status(); }

void Spawner::Stop() {
  Connection& connection = TheConnection();
  std::lock_guard lock(connection.mutex);
  if (connection.owner != getpid()) return;
  shutdown(connection.socket, SHUT_RDWR);  // a fork of ours may hold it open, too
  close(std::exchange(connection.socket, -1));
  while (waitpid(connection.spawner, nullptr, 0) < 0 && errno == EINTR) continue;
  connection.owner = -1;
}

absl::Status Spawner::BecomeForPrograms(const Identity& identity) {
  BLK_ASSIGN_OR_RETURN(int socket, internal::SpawnerSocket());
  internal::SpawnPacket packet;
  if (identity.user) packet.become_user = *identity.user;
  if (identity.group) packet.become_group = *identity.group;
  return SendPacket(socket, packet);
}

absl::Status Spawner::Close() {
  BLK_ASSIGN_OR_RETURN(int socket, internal::SpawnerSocket());
  internal::SpawnPacket packet;
  packet.last = 1;
  return SendPacket(socket, packet);
}

}  // namespace blk
