#pragma once
// Between process.cc and the spawner process: what a request to start a program looks like. A
// request is one packet on a SOCK_SEQPACKET socket, with a SpawnPacket as its bytes and these
// descriptors: the body (a memfd), the channel, the report pipe, the directory, then one for each
// SpawnBody target.
//
// Replies go over the channel (SOCK_SEQPACKET, one per program): {kStarted, pid}, later {kExited,
// wait status}; then the spawner closes it. Requests over the channel are single ints: signals to
// send. The report pipe closes without a byte once the program runs, or carries a SpawnFailure.
#include <cstddef>
#include <cstdint>

#include "src/core/error.h"

namespace blk::internal {

inline constexpr size_t kSpawnFixedDescriptors = 4;
inline constexpr size_t kSpawnDescriptorsMax = 253;  // SCM_MAX_FD of the kernel
inline constexpr size_t kSpawnTargetMax = 1000;      // numbers in the program
inline constexpr uint32_t kSpawnKeep = UINT32_MAX;   // no other user or group

struct SpawnPacket {
  uint32_t descriptors = 0;
  // Without descriptors: programs started from now on become this user and group. For ever; the
  // spawner stays what it is, so that it may signal those that it has started before.
  uint32_t become_user = kSpawnKeep, become_group = kSpawnKeep;
  uint32_t last = 0;  // not 0: nothing more is started
};

// At the start of the memfd. Offsets count from there. Tables hold offsets as 64-bit numbers, which
// the new process turns into pointers in place; each ends with a 0.
struct SpawnBody {
  uint32_t own_group;
  uint32_t target_count;
  uint64_t path;
  uint64_t shell;        // "/bin/sh", for scripts without #!
  uint64_t arguments;    // table: one free slot, then argv
  uint64_t environment;  // table
  uint64_t listen_pid;   // where the digits of LISTEN_PID go, 0: nowhere; 20 zero bytes
  uint64_t targets;      // table of target_count numbers, without the 0 at the end
};

enum SpawnReplyKind : int32_t { kStarted = 1, kExited = 2 };
struct SpawnReply {
  int32_t kind;
  int32_t value;
};

enum SpawnStage : int32_t {
  kSpawnFork = 1,
  kSpawnDirectory,
  kSpawnDescriptors,
  kSpawnExec,
  kSpawnIdentity
};
struct SpawnFailure {
  int32_t stage;
  int32_t error;
};

// The socket for requests; starts a spawner if this process has none. Any thread.
absl::StatusOr<int> SpawnerSocket();

// The life of the spawner. Nothing but system calls.
[[noreturn]] void RunSpawner(int requests_fd, int parent_pidfd);

}  // namespace blk::internal
