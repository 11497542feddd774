#pragma once
// The transmission phase of an NBD server: requests from one client's stream to a Device, and the
// replies back. NBD protocol, sections "Transmission", "Request message", "Structured reply types"
// and the extended headers.
//
// One loop. A batch of requests is parsed from what one receive brought; replies that are ready are
// sent in one gathered send. Requests run concurrently, replies in any order. What is in flight is
// bounded by a count and by the connection's memory budget; beyond it the stream is not read.
#include <memory>
#include <stop_token>
#include <string>
#include <vector>

#include "src/core/arena.h"
#include "src/core/buffer.h"
#include "src/core/device.h"
#include "src/core/scope.h"
#include "src/core/stream.h"
#include "src/core/sync.h"
#include "src/proto/codec.h"
#include "src/proto/nbd.h"
#include "src/proto/output.h"

namespace blk::nbd {

struct ServerSessionOptions {
  ReplyStyle style = ReplyStyle::kSimple;
  uint16_t transmission_flags = 0;    // what was advertised; the rest is refused
  std::vector<MetaContext> contexts;  // negotiated
  uint64_t connection = 0;
  size_t requests_in_flight_max = limits::kRequestsInFlightMax;
  MemoryBudget* budget = nullptr;          // required
  std::shared_ptr<Arena> arena = nullptr;  // the client's shared memory, if it offered any
  std::function<void(const absl::Status&)> request_failed = nullptr;  // told of each; may be null
};

// The transmission flags that describe `facts` (section "Transmission flags").
uint16_t TransmissionFlagsFor(const Facts& facts, ReplyStyle style);

class ServerSession {
 public:
  // All pointers outlive the session; `reader` may hold bytes that were received already.
  ServerSession(BufferedReader* reader, Device* device, ServerSessionOptions options);
  ~ServerSession();

  // Serves until the client leaves, breaks the protocol or StopReading() is called, then waits for
  // what is in flight and sends the replies. OK: NBD_CMD_DISC, end of stream between requests, or
  // StopReading(). Else what went wrong.
  Task<absl::Status> Run();

  // No further requests are read; those in flight are answered. From this loop.
  void StopReading();
  // Answers each later request with ESHUTDOWN.
  void Refuse();
  // Like StopReading(), but requests in flight are cancelled and their replies dropped.
  void Abort();

 private:
  using Block = std::shared_ptr<Buffer>;  // what the stream is received into
  // Room before a read's data for its reply header, so that both are one piece.
  static constexpr size_t kReplyHeaderRoomBytes = 64;

  Task<absl::Status> ReadRequests();
  Task<absl::Status> ReadRequest(size_t header_bytes, const Request& request, bool* wants_more);
  Task<absl::StatusOr<bool>> Fill();
  Task<bool> WaitForRoom(uint64_t bytes);
  Task<void> Drain();
  bool TakeRoom(uint64_t bytes);

  // Each starts the request and either answers at once or spawns the rest. `charged`: bytes of the
  // budget that this request holds until its reply is sent.
  void Dispatch(const Request& request, std::span<const char> payload, const Block& block,
                Buffer owner, uint64_t charged);
  void StartRead(const Request& request, uint64_t charged);
  void StartArenaRead(const Request& request, uint64_t charged);
  Task<void> FinishArenaRead(Request request, Task<absl::Status> task, Buffer buffer,
                             uint64_t charged);
  void StartArenaWrite(const Request& request, uint64_t charged);
  void StartWrite(const Request& request, std::span<const char> payload, const Block& block,
                  Buffer owner, uint64_t charged);
  Task<absl::Status> StartPlain(const Request& request);
  void StartStatus(const Request& request, std::span<const char> payload);
  Task<void> FinishRead(Request request, Task<absl::Status> task, Buffer buffer, uint64_t charged);
  Task<void> FinishWrite(Request request, Task<absl::Status> task, Block block, Buffer owner,
                         uint64_t charged);
  Task<void> FinishStatus(Request request, std::vector<uint32_t> ids);

  // EINVAL, EPERM and so on for what the protocol or the advertisement forbids.
  absl::Status Validate(const Request& request) const;
  const Call& CallFor(const Request& request) const;
  bool InArena(const Request& request) const;

  // In session_server_replies.cc.
  void Reply(const Request& request, const absl::Status& status, uint64_t charged = 0);
  void ReplyRead(const Request& request, Buffer buffer, uint64_t charged);
  void ReplyLoan(const Request& request, Loan loan, uint64_t charged);
  bool ReplySparse(const Request& request, std::span<const iovec> spans);
  void ReplyStatusChunk(const Request& request, const ExtentList& list, uint32_t id, bool done);
  size_t StoreHeader(char* out, const Request& request, uint16_t flags, uint16_t type,
                     uint64_t payload_bytes) const;
  void EndReply(uint64_t charged);

  void FlushSoon();
  Task<void> FlushLater();
  void StartFlush();
  Task<void> FlushLoop();
  Task<absl::Status> Send(const Output& output);
  Task<absl::Status> SendWithFiles(const Output& output);
  void ReleaseOutput(Output& output);

  BufferedReader* const reader_;
  Stream* const stream_;
  Device* const device_;
  const ServerSessionOptions options_;
  std::stop_source stop_;
  const std::stop_token stop_token_ = stop_.get_token();
  std::vector<Call> calls_;  // one for each combination of flags, so that a Call needs no owner

  Block block_;
  size_t begin_ = 0, end_ = 0;  // what is received and not parsed of block_

  TaskScope scope_;
  size_t in_flight_ = 0;  // requests whose replies have not been sent
  Event room_;
  bool waiting_for_room_ = false;
  bool stopping_ = false, refusing_ = false;
  absl::Status send_failure_;

  Output pending_, sending_;
  bool flushing_ = false, flush_scheduled_ = false;
};

}  // namespace blk::nbd
