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
//
// A request whose Call is stopped or late completes at once, with ECANCELED or ETIMEDOUT, however
// silent the server is. Its answer is skipped when it comes. Only where the bytes of a span are
// just under way, so that they cannot be left alone otherwise, the whole connection ends with it.
#include <memory>
#include <optional>
#include <stop_token>
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

// For requests that nobody stops: lives as long as any of them.
inline constexpr Call kPlainCall;

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

  // `flags` are those of Call: what the server did not advertise must not be asked. Of `call`,
  // which must live as long as the Task, only the stop token and the deadline count.
  Task<absl::Status> Read(uint64_t offset, std::span<char> into, const Call& call = kPlainCall);
  Task<absl::Status> Write(uint64_t offset, std::span<const char> from, uint32_t flags,
                           const Call& call = kPlainCall);
  Task<absl::Status> Flush(const Call& call = kPlainCall);
  Task<absl::Status> Trim(uint64_t offset, uint64_t length, uint32_t flags,
                          const Call& call = kPlainCall);
  Task<absl::Status> Zero(uint64_t offset, uint64_t length, uint32_t flags,
                          const Call& call = kPlainCall);
  Task<absl::Status> Cache(uint64_t offset, uint64_t length, const Call& call = kPlainCall);
  // EOPNOTSUPP when `context` was not negotiated.
  Task<absl::Status> Extents(std::string_view context, ExtentList* list, uint32_t flags,
                             const Call& call = kPlainCall);

  // Says goodbye (NBD_CMD_DISC) after what is in flight, and waits until all is done. Idempotent. A
  // server that takes nothing any more delays it for some seconds only; one that still owes answers
  // to requests that were given up is left without a word.
  Task<void> Close();
  // Ends at once: what is in flight fails with `why`.
  void Abort(absl::Status why);

  const absl::Status& failure() const { return failure_; }
  size_t in_flight() const { return in_flight_; }

 private:
  // What Send() waits for. It lives in the frame of the request, which ends before the slot does
  // when the request is given up.
  struct Waiting {
    const Call* call;
    absl::Status status;
    std::coroutine_handle<> handle;
    bool done = false;
  };

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
    const char* shared = nullptr;  // where in the arena, of an arena request
    bool receiving = false;        // bytes are received into `into` right now
    uint64_t batch = 0;            // of FlushLoop, which the request leaves in
    absl::Status status;
    Waiting* waiting = nullptr;  // null: given up, the answer is skipped
    bool busy = false;
  };

  // Asks for GiveUpWhatEnded() when a token is stopped, from whichever thread that happens on.
  struct Cell {
    Loop* loop;
    ClientSession* session;  // null once it has gone
  };
  struct Poke {
    std::shared_ptr<Cell> cell;
    void operator()() const;
  };
  struct Watched {
    Watched(std::stop_token watched, Poke poke) : token(watched), callback(watched, poke) {}
    std::stop_token token;
    std::stop_callback<Poke> callback;
  };

  Task<absl::Status> Send(const Call& call, uint16_t type, uint16_t flags, uint64_t offset,
                          uint64_t length, std::span<const char> payload, char* into,
                          ExtentList* list, uint32_t context_id);
  bool InArena(const void* data, size_t bytes) const {
    return options_.arena && options_.arena->Contains(data, bytes);
  }
  Task<absl::Status> ReadThroughArena(uint64_t offset, std::span<char> into, const Call& call);
  Task<absl::Status> WriteThroughArena(uint64_t offset, std::span<const char> from, uint16_t flags,
                                       const Call& call);
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
  void Free(Slot* slot);
  static void Wake(Waiting* waiting, absl::Status status);
  // `quiet`: the server has ended, and touches shared memory no more.
  void Fail(const absl::Status& why, bool quiet = false);
  void SendFailed(const absl::Status& why);

  void Watch(const Call& call);
  static Task<void> GiveUpOn(std::shared_ptr<Cell> cell);
  void GiveUpWhatEnded();
  void GiveUp(Slot* slot, absl::Status why);
  void StartDeadline(int64_t at_ns);

  StreamPtr stream_;
  BufferedReader reader_;
  const ClientSessionOptions options_;
  std::vector<Slot> slots_;
  std::vector<size_t> free_slots_;
  Semaphore room_;
  size_t in_flight_ = 0;
  size_t given_up_ = 0;                // of those in flight
  std::vector<const Call*> for_room_;  // of requests that wait for a slot
  std::shared_ptr<Cell> cell_;         // made with the first of the next
  std::vector<std::unique_ptr<Watched>> watched_;
  int64_t deadline_ns_ = INT64_MAX;  // the earliest of those in flight
  std::optional<Loop::TimerId> deadline_timer_, goodbye_timer_;
  TaskScope scope_;
  uint64_t batch_ = 1, batches_sent_ = 0;  // what is in pending_ will be number batch_
  Output pending_, sending_;
  bool flushing_ = false, flush_scheduled_ = false, closing_ = false;
  Event flushed_;         // while closing: nothing is left to send
  absl::Status failure_;  // no new requests; those in flight may still be answered
  bool ended_ = false;    // nothing is in flight any more
};

}  // namespace blk::nbd
