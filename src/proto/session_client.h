#pragma once
// The transmission phase of an NBD client: many requests in flight on one connection, answered in
// any order. NBD protocol, sections "Transmission" and "Structured reply types", and the extended
// headers.
//
// One loop: create it there, call it there. Requests that are made in one turn of the loop leave in
// one gathered send. Spans and lists live until the Task has completed.
//
// What a server sends is checked: an answer that breaks the protocol ends the connection, and every
// request in flight, with EPROTO. Once broken, all requests fail with the first reason.
#include <memory>
#include <string>
#include <vector>

#include "src/core/arena.h"
#include "src/core/device.h"
#include "src/core/scope.h"
#include "src/core/stream.h"
#include "src/core/sync.h"
#include "src/proto/codec.h"
#include "src/proto/nbd.h"
#include "src/proto/output.h"

namespace blk::nbd {

struct ClientSessionOptions {
  ReplyStyle style = ReplyStyle::kSimple;
  uint16_t transmission_flags = 0;    // advertised by the server
  std::vector<MetaContext> contexts;  // negotiated
  size_t requests_in_flight_max = limits::kRequestsInFlightMax;
  // Shared with the server (docs/shared-memory.md): spans that lie in it are named, not sent;
  // others are copied through it where that is cheaper than a socket.
  std::shared_ptr<Arena> arena = nullptr;
};

class ClientSession {
 public:
  // `leftover`: received after the handshake, not yet consumed. Start() begins to receive.
  ClientSession(StreamPtr stream, std::span<const char> leftover, ClientSessionOptions options);
  ~ClientSession();  // Close() has been awaited
  void Start();

  // `flags` are those of Call: what the server did not advertise must not be asked.
  Task<absl::Status> Read(uint64_t offset, std::span<char> into);
  Task<absl::Status> Write(uint64_t offset, std::span<const char> from, uint32_t flags);
  Task<absl::Status> Flush();
  Task<absl::Status> Trim(uint64_t offset, uint64_t length, uint32_t flags);
  Task<absl::Status> Zero(uint64_t offset, uint64_t length, uint32_t flags);
  Task<absl::Status> Cache(uint64_t offset, uint64_t length);
  // EOPNOTSUPP when `context` was not negotiated.
  Task<absl::Status> Extents(std::string_view context, ExtentList* list, uint32_t flags);

  // Says goodbye (NBD_CMD_DISC) after what is in flight, and waits until all is done. Idempotent. A
  // server that takes nothing any more delays it for some seconds only.
  Task<void> Close();
  // Ends at once: what is in flight fails with `why`.
  void Abort(absl::Status why);

  const absl::Status& failure() const { return failure_; }
  size_t in_flight() const { return in_flight_; }

 private:
  // A request that waits for its answer; reused. The cookie is its index and its generation.
  struct Slot {
    uint16_t type = 0;
    uint32_t generation = 0;
    uint64_t offset = 0, length = 0;
    char* into = nullptr;
    uint64_t received = 0;  // bytes of data and holes so far
    ExtentList* list = nullptr;
    uint32_t context_id = 0;
    bool has_list = false;
    bool in_arena = false;
    absl::Status status;
    std::coroutine_handle<> waiter;
    bool busy = false;
  };

  Task<absl::Status> Send(uint16_t type, uint16_t flags, uint64_t offset, uint64_t length,
                          std::span<const char> payload, char* into, ExtentList* list,
                          uint32_t context_id);
  bool InArena(const void* data, size_t bytes) const {
    return options_.arena && options_.arena->Contains(data, bytes);
  }
  Task<absl::Status> ReadThroughArena(uint64_t offset, std::span<char> into);
  Task<absl::Status> WriteThroughArena(uint64_t offset, std::span<const char> from, uint16_t flags);
  size_t TakeSlot();
  void StoreRequestOf(const Slot& slot, size_t index, uint16_t flags,
                      std::span<const char> payload);
  void FlushSoon();
  Task<void> FlushLater();
  Task<void> FlushLoop();

  Task<void> Receive();
  Task<absl::Status> ReceiveReplies();
  Task<absl::Status> TakeReply(const struct Reply& reply);
  Task<absl::Status> TakeData(Slot* slot, uint64_t offset, uint64_t length);
  absl::Status TakeHole(Slot* slot, std::span<const char> payload);
  absl::Status TakeStatus(Slot* slot, uint16_t type, std::span<const char> payload);
  absl::Status TakeError(Slot* slot, uint16_t type, std::span<const char> payload);
  absl::StatusOr<Slot*> SlotOf(uint64_t cookie);
  void Complete(Slot* slot);
  void Fail(const absl::Status& why);

  StreamPtr stream_;
  BufferedReader reader_;
  const ClientSessionOptions options_;
  std::vector<Slot> slots_;
  std::vector<size_t> free_slots_;
  Semaphore room_;
  size_t in_flight_ = 0;
  TaskScope scope_;
  Output pending_, sending_;
  bool flushing_ = false, flush_scheduled_ = false, closing_ = false;
  Event flushed_;  // while closing: nothing is left to send
  absl::Status failure_;
};

}  // namespace blk::nbd
