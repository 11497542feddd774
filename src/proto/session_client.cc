#include "src/proto/session_client.h"

#include <algorithm>
#include <cstring>

namespace blk::nbd {
namespace {

// Replies are received into this; large data goes straight to where it is wanted.
constexpr size_t kBufferBytes = 256 << 10;
// How long a server that reads nothing may keep a session from closing.
constexpr int64_t kGoodbyeNsMax = 10'000'000'000;

// Stop tokens that are watched before those that nobody uses are forgotten: those of one user,
// mostly.
constexpr size_t kTokensKept = 4;

// From here on a copy to shared memory costs less than two through a socket.
constexpr size_t kStageBytesMin = 16 << 10;

absl::Status ProtocolError(std::string_view what) {
  return ErrnoErrorAsIs(EPROTO, absl::StrCat("the NBD server broke the protocol: ", what));
}

// OK: the request is still wanted.
absl::Status EndedError(const Call& call) {
  if (call.stopped()) return ErrnoErrorAsIs(ECANCELED, "stopped while the NBD server was asked");
  if (call.deadline_ns != INT64_MAX && Loop::Current()->NowNs() >= call.deadline_ns)
    return ErrnoErrorAsIs(ETIMEDOUT, "the NBD server did not answer in time");
  return absl::OkStatus();
}

// For the others on a connection that could not go on without a request that ended early.
absl::Status GivenUpError() {
  return ErrnoErrorAsIs(ECONNRESET, "the NBD connection ended with a request that was given up");
}

uint16_t CommandFlags(uint32_t flags) {
  uint16_t result = 0;
  if (flags & kFua) result |= kCmdFlagFua;
  if (flags & kFastZero) result |= kCmdFlagFastZero;
  if (flags & kNoHole) result |= kCmdFlagNoHole;
  if (flags & kRequestOne) result |= kCmdFlagReqOne;
  return result;
}

}  // namespace

ClientSession::ClientSession(StreamPtr stream, std::span<const char> leftover,
                             ClientSessionOptions options)
    : stream_(std::move(stream)),
      reader_(stream_.get(), kBufferBytes),
      options_(std::move(options)),
      slots_(options_.requests_in_flight_max),
      room_(options_.requests_in_flight_max) {
  reader_.Preload(leftover);
  for (size_t i = slots_.size(); i-- > 0;) free_slots_.push_back(i);
}

ClientSession::~ClientSession() {
  BLK_CHECK(scope_.running() == 0);
  watched_.clear();  // waits for callbacks that run on other threads right now
  if (cell_) cell_->session = nullptr;
  BLK_CHECK(!deadline_timer_ && !goodbye_timer_);
}

void ClientSession::Start() { scope_.Spawn(Receive()); }

// ---- Requests

Task<absl::Status> ClientSession::Read(uint64_t offset, std::span<char> into, const Call& call) {
  if (InArena(into.data(), into.size())) {
    if (options_.arena->Retired(into.data(), into.size()))
      return ErrnoErrorAsIs(EIO,
                            "the buffer is still shared with an NBD server that did not answer");
    return Send(call, kCmdRead, kCmdFlagArena, offset, into.size(), {}, into.data(), nullptr, 0);
  }
  if (options_.arena && into.size() >= kStageBytesMin) return ReadThroughArena(offset, into, call);
  return Send(call, kCmdRead, 0, offset, into.size(), {}, into.data(), nullptr, 0);
}

Task<absl::Status> ClientSession::ReadThroughArena(uint64_t offset, std::span<char> into,
                                                   const Call& call) {
  ArenaPiece piece(options_.arena.get(), into.size());
  if (!piece)
    co_return co_await Send(call, kCmdRead, 0, offset, into.size(), {}, into.data(), nullptr, 0);
  absl::Status status = co_await Send(call, kCmdRead, kCmdFlagArena, offset, into.size(), {},
                                      piece.data(), nullptr, 0);
  if (status.ok()) std::memcpy(into.data(), piece.data(), into.size());
  co_return status;
}

Task<absl::Status> ClientSession::Write(uint64_t offset, std::span<const char> from, uint32_t flags,
                                        const Call& call) {
  const uint16_t command_flags = CommandFlags(flags);
  if (InArena(from.data(), from.size()) && !options_.arena->Retired(from.data(), from.size()))
    return Send(call, kCmdWrite, command_flags | kCmdFlagArena, offset, from.size(), from, nullptr,
                nullptr, 0);
  if (options_.arena && from.size() >= kStageBytesMin)
    return WriteThroughArena(offset, from, command_flags, call);
  return Send(call, kCmdWrite, command_flags, offset, from.size(), from, nullptr, nullptr, 0);
}

Task<absl::Status> ClientSession::WriteThroughArena(uint64_t offset, std::span<const char> from,
                                                    uint16_t flags, const Call& call) {
  ArenaPiece piece(options_.arena.get(), from.size());
  if (!piece)
    co_return co_await Send(call, kCmdWrite, flags, offset, from.size(), from, nullptr, nullptr, 0);
  std::memcpy(piece.data(), from.data(), from.size());
  co_return co_await Send(call, kCmdWrite, flags | kCmdFlagArena, offset, from.size(),
                          {piece.data(), from.size()}, nullptr, nullptr, 0);
}

Task<absl::Status> ClientSession::Flush(const Call& call) {
  return Send(call, kCmdFlush, 0, 0, 0, {}, nullptr, nullptr, 0);
}
Task<absl::Status> ClientSession::Trim(uint64_t offset, uint64_t length, uint32_t flags,
                                       const Call& call) {
  return Send(call, kCmdTrim, CommandFlags(flags), offset, length, {}, nullptr, nullptr, 0);
}
Task<absl::Status> ClientSession::Zero(uint64_t offset, uint64_t length, uint32_t flags,
                                       const Call& call) {
  return Send(call, kCmdWriteZeroes, CommandFlags(flags), offset, length, {}, nullptr, nullptr, 0);
}
Task<absl::Status> ClientSession::Cache(uint64_t offset, uint64_t length, const Call& call) {
  return Send(call, kCmdCache, 0, offset, length, {}, nullptr, nullptr, 0);
}

Task<absl::Status> ClientSession::Extents(std::string_view context, ExtentList* list,
                                          uint32_t flags, const Call& call) {
  for (const MetaContext& known : options_.contexts) {
    if (known.name != context) continue;
    // Compact requests have 32-bit lengths; the answer may end early, and the caller asks on.
    constexpr uint64_t kCompactMax = uint64_t{1} << 31;
    uint64_t length = list->end() - list->next();
    if (options_.style != ReplyStyle::kExtended) length = std::min(length, kCompactMax);
    return Send(call, kCmdBlockStatus, CommandFlags(flags), list->next(), length, {}, nullptr, list,
                known.id);
  }
  return ErrnoErrorAsIs(EOPNOTSUPP,
                        absl::StrCat("the NBD server has no metadata context ", context));
}

size_t ClientSession::TakeSlot() {
  size_t index = free_slots_.back();
  free_slots_.pop_back();
  return index;
}

Task<absl::Status> ClientSession::Send(const Call& call, uint16_t type, uint16_t flags,
                                       uint64_t offset, uint64_t length,
                                       std::span<const char> payload, char* into, ExtentList* list,
                                       uint32_t context_id) {
  Watch(call);
  if (!room_.TryAcquire()) {
    for_room_.push_back(&call);
    co_await room_.Acquire();
    for_room_.erase(std::find(for_room_.begin(), for_room_.end(), &call));  // several may share it
  }
  absl::Status ended = EndedError(call);
  if (!failure_.ok() || closing_ || !ended.ok()) {
    room_.Release();
    if (!ended.ok()) co_return ended;
    co_return failure_.ok() ? ErrnoErrorAsIs(ESHUTDOWN, "the NBD connection was closed") : failure_;
  }
  Waiting waiting{.call = &call, .status = {}, .handle = {}};
  size_t index = TakeSlot();
  Slot& slot = slots_[index];
  ++slot.generation;
  slot.type = type;
  slot.offset = offset;
  slot.length = length;
  slot.into = into;
  slot.received = 0;
  slot.list = list;
  slot.context_id = context_id;
  slot.has_list = false;
  slot.shared = !(flags & kCmdFlagArena) ? nullptr : type == kCmdRead ? into : payload.data();
  slot.status = absl::OkStatus();
  slot.waiting = &waiting;
  slot.batch = batch_;
  slot.busy = true;
  ++in_flight_;
  StoreRequestOf(slot, index, flags, payload);
  FlushSoon();
  struct Awaiter {
    Waiting& waiting;
    bool await_ready() const noexcept { return waiting.done; }
    void await_suspend(std::coroutine_handle<> handle) const noexcept { waiting.handle = handle; }
    void await_resume() const noexcept {}
  };
  co_await Awaiter{waiting};
  co_return std::move(waiting.status);
}

void ClientSession::StoreRequestOf(const Slot& slot, size_t index, uint16_t flags,
                                   std::span<const char> payload) {
  Request request{.flags = flags,
                  .type = slot.type,
                  .cookie = uint64_t{slot.generation} << 32 | index,
                  .offset = slot.offset,
                  .length = slot.length};
  if (options_.style == ReplyStyle::kExtended) {
    if (slot.type == kCmdWrite && !slot.shared) request.flags |= kCmdFlagPayloadLen;
    StoreExtendedRequest(pending_.Append(kExtendedRequestBytes), request);
  } else {
    BLK_CHECK(request.length <= UINT32_MAX);
    StoreRequest(pending_.Append(kRequestBytes), request);
  }
  if (slot.shared) {
    StoreU64(pending_.Append(kArenaOffsetBytes), options_.arena->OffsetOf(slot.shared));
  } else if (!payload.empty()) {
    pending_.AppendBytes(payload.data(), payload.size());
  }
}

void ClientSession::FlushSoon() {
  if (flushing_ || std::exchange(flush_scheduled_, true)) return;
  scope_.Spawn(FlushLater());
}

Task<void> ClientSession::FlushLater() {
  co_await Yield();
  flush_scheduled_ = false;
  if (!flushing_) co_await FlushLoop();
}

Task<void> ClientSession::FlushLoop() {
  flushing_ = true;
  while (!pending_.empty()) {
    std::swap(pending_, sending_);
    const uint64_t batch = batch_++;
    if (failure_.ok()) {
      absl::Status status = co_await stream_->WriteAll(sending_.parts);
      if (!status.ok()) SendFailed(status);
    }
    batches_sent_ = batch;
    sending_.Clear();
  }
  flushing_ = false;
  if (closing_) flushed_.Set();
}

// ---- Replies

Task<void> ClientSession::Receive() {
  absl::Status status = co_await ReceiveReplies();
  if (status.ok()) {
    status = closing_ && in_flight_ == 0
                 ? ErrnoErrorAsIs(ESHUTDOWN, "the NBD connection was closed")
                 : ErrnoErrorAsIs(ECONNRESET, "the NBD server closed the connection");
    Fail(failure_.ok() ? status : failure_, /*quiet=*/true);
  }
  Fail(status, ErrnoOf(status) == ECONNRESET);
}

// Ends with OK at the end of the stream.
Task<absl::Status> ClientSession::ReceiveReplies() {
  for (;;) {
    // A header of any kind, or as much of it as there is.
    std::span<char> bytes = reader_.buffered();
    struct Reply reply;
    ParseResult parsed =
        bytes.empty() ? ParseResult::kShort : ParseReply(bytes, options_.style, reply);
    if (parsed == ParseResult::kBadMagic)
      co_return ProtocolError("a reply with a wrong magic number");
    if (parsed == ParseResult::kShort) {
      bool within = !bytes.empty();
      BLK_CO_ASSIGN_OR_RETURN(bool more, co_await reader_.Fill());
      if (more) continue;
      if (within)
        co_return ErrnoErrorAsIs(ECONNRESET, "the NBD server left in the middle of a reply");
      co_return absl::OkStatus();
    }
    reader_.Consume(reply.header_bytes);
    BLK_CO_RETURN_IF_ERROR(co_await TakeReply(reply));
  }
}

absl::StatusOr<ClientSession::Slot*> ClientSession::SlotOf(uint64_t cookie) {
  size_t index = cookie & 0xffffffff;
  if (index < slots_.size() && slots_[index].busy && slots_[index].generation == cookie >> 32)
    return &slots_[index];
  return ProtocolError("a reply to no request");
}

Task<absl::Status> ClientSession::TakeReply(const struct Reply& reply) {
  BLK_CO_ASSIGN_OR_RETURN(Slot * slot, SlotOf(reply.cookie));
  if (reply.simple) {
    if (reply.error) {
      slot->status = ErrnoError(ErrnoFromWireError(reply.error), "the NBD server answered");
    } else if (slot->type == kCmdRead && !slot->shared) {
      if (options_.style != ReplyStyle::kSimple)
        co_return ProtocolError("a simple reply to a structured read");
      BLK_CO_RETURN_IF_ERROR(co_await TakeData(slot, slot->offset, slot->length));
    } else if (slot->type == kCmdBlockStatus) {
      co_return ProtocolError("a simple reply to a block status request");
    }
    Complete(slot);
    co_return absl::OkStatus();
  }
  if (reply.type == kChunkOffsetData) {
    if (reply.length <= kOffsetDataHeaderBytes) co_return ProtocolError("an empty data chunk");
    char at[kOffsetDataHeaderBytes];
    BLK_CO_RETURN_IF_ERROR(co_await reader_.ReadExactly(at));
    BLK_CO_RETURN_IF_ERROR(
        co_await TakeData(slot, LoadOffsetData(at), reply.length - kOffsetDataHeaderBytes));
  } else {
    // What else there is, is small: at most as many extents as a server should send.
    constexpr uint64_t kPayloadBytesMax =
        kBlockStatusExtHeaderBytes + uint64_t{kBlockStatusExtentsMax} * kBlockStatusExtExtentBytes;
    if (reply.length > kPayloadBytesMax) co_return ProtocolError("a chunk that is too large");
    Buffer payload(reply.length);
    BLK_CO_RETURN_IF_ERROR(co_await reader_.ReadExactly(payload.span()));
    if (reply.type == kChunkNone) {
      if (reply.length != 0) co_return ProtocolError("a NONE chunk with a payload");
    } else if (reply.type == kChunkOffsetHole) {
      BLK_CO_RETURN_IF_ERROR(TakeHole(slot, payload.span()));
    } else if (reply.type == kChunkBlockStatus || reply.type == kChunkBlockStatusExt) {
      BLK_CO_RETURN_IF_ERROR(TakeStatus(slot, reply.type, payload.span()));
    } else if (IsErrorChunk(reply.type)) {
      BLK_CO_RETURN_IF_ERROR(TakeError(slot, reply.type, payload.span()));
    } else {
      co_return ProtocolError("a chunk of an unknown type");
    }
  }
  if (reply.flags & kChunkFlagDone) {
    if (slot->status.ok() && slot->type == kCmdRead && !slot->shared &&
        slot->received != slot->length)
      co_return ProtocolError("a read without all its bytes");
    if (slot->status.ok() && slot->type == kCmdBlockStatus && !slot->has_list)
      slot->status = ErrnoErrorAsIs(EIO, "the NBD server gave no extents");
    Complete(slot);
  }
  co_return absl::OkStatus();
}

Task<absl::Status> ClientSession::TakeData(Slot* slot, uint64_t offset, uint64_t length) {
  if (slot->type != kCmdRead || slot->shared || offset < slot->offset ||
      offset - slot->offset > slot->length || length > slot->length - (offset - slot->offset) ||
      length > slot->length - slot->received)
    co_return ProtocolError("data that was not asked for");
  slot->received += length;
  if (!slot->waiting) co_return co_await reader_.Skip(length);
  slot->receiving = true;
  absl::Status status =
      co_await reader_.ReadExactly({slot->into + (offset - slot->offset), length});
  slot->receiving = false;
  co_return status;
}

absl::Status ClientSession::TakeHole(Slot* slot, std::span<const char> payload) {
  auto hole = ParseOffsetHole(payload);
  if (!hole || slot->type != kCmdRead || slot->shared || hole->offset < slot->offset ||
      hole->offset - slot->offset > slot->length ||
      hole->length > slot->length - (hole->offset - slot->offset) ||
      hole->length > slot->length - slot->received)
    return ProtocolError("a hole that was not asked for");
  if (slot->waiting) std::memset(slot->into + (hole->offset - slot->offset), 0, hole->length);
  slot->received += hole->length;
  return absl::OkStatus();
}

absl::Status ClientSession::TakeStatus(Slot* slot, uint16_t type, std::span<const char> payload) {
  auto view = BlockStatusView::Parse(type, payload);
  if (!view || slot->type != kCmdBlockStatus) return ProtocolError("a bad block status chunk");
  if (view->context_id() != slot->context_id || slot->has_list) return absl::OkStatus();
  for (size_t i = 0; slot->waiting && i < view->size(); ++i) {
    BlockStatusView::Extent extent = (*view)[i];
    slot->list->Append(extent.length, extent.status);
  }
  slot->has_list = true;
  return absl::OkStatus();
}

absl::Status ClientSession::TakeError(Slot* slot, uint16_t type, std::span<const char> payload) {
  auto error = ParseErrorPayload(type, payload);
  if (!error) return ProtocolError("a bad error chunk");
  if (!slot->status.ok()) return absl::OkStatus();  // the first one tells the cause
  int errno_value = ErrnoFromWireError(error->error);
  slot->status =
      error->message.empty()
          ? ErrnoError(errno_value, "the NBD server answered")
          : ErrnoErrorAsIs(errno_value, absl::StrCat("the NBD server answered: ", error->message));
  return absl::OkStatus();
}

void ClientSession::Complete(Slot* slot) {
  if (slot->waiting) Wake(slot->waiting, std::move(slot->status));
  Free(slot);
}

void ClientSession::Free(Slot* slot) {
  if (!slot->waiting) --given_up_;
  slot->waiting = nullptr;
  slot->busy = false;
  free_slots_.push_back(static_cast<size_t>(slot - slots_.data()));
  --in_flight_;
  room_.Release();
}

void ClientSession::Wake(Waiting* waiting, absl::Status status) {
  waiting->status = std::move(status);
  waiting->done = true;
  if (waiting->handle) Loop::Current()->Post(std::exchange(waiting->handle, nullptr));
}

// The connection is over: everybody learns why. A request whose payload is being sent or received
// completes too: the stream is cancelled first and will not touch it again. What a server may still
// do with the memory that it shares nobody knows, unless it has ended.
void ClientSession::Fail(const absl::Status& why, bool quiet) {
  if (std::exchange(ended_, true)) return;
  if (failure_.ok()) failure_ = why;
  stream_->Cancel();
  for (std::optional<Loop::TimerId>* timer : {&goodbye_timer_, &deadline_timer_})
    if (*timer) Loop::Current()->CancelTimer(*std::exchange(*timer, std::nullopt));
  for (Slot& slot : slots_) {
    if (!slot.busy) continue;
    if (slot.shared && slot.waiting && !quiet) options_.arena->Retire(slot.shared, slot.length);
    slot.status = why;
    Complete(&slot);
  }
}

// A server that takes no more requests, because it ends, may still answer those that it has. The
// end of the stream tells when that is done; it is not waited for forever.
void ClientSession::SendFailed(const absl::Status& why) {
  if (!failure_.ok()) return;
  failure_ = why;
  Loop* loop = Loop::Current();
  goodbye_timer_ = loop->StartTimer(loop->NowNs() + kGoodbyeNsMax, [this] {
    goodbye_timer_.reset();
    Fail(failure_);
  });
}

// ---- Requests that are stopped or late

void ClientSession::Poke::operator()() const { cell->loop->Spawn(GiveUpOn(cell)); }

// Through the queue: whoever stops may be in the middle of something.
Task<void> ClientSession::GiveUpOn(std::shared_ptr<Cell> cell) {
  co_await PostTo{cell->loop};
  if (cell->session) cell->session->GiveUpWhatEnded();
}

// One callback serves all requests of a token, as long as there are not too many tokens.
void ClientSession::Watch(const Call& call) {
  if (ended_) return;
  if (call.deadline_ns < deadline_ns_) StartDeadline(call.deadline_ns);
  if (!call.stop || !call.stop->stop_possible()) return;
  for (const auto& watched : watched_)
    if (watched->token == *call.stop) return;
  auto used = [this](const std::unique_ptr<Watched>& watched) {
    auto by = [&](const Call* other) { return other->stop && *other->stop == watched->token; };
    return std::any_of(for_room_.begin(), for_room_.end(), by) ||
           std::any_of(slots_.begin(), slots_.end(),
                       [&](const Slot& slot) { return slot.waiting && by(slot.waiting->call); });
  };
  if (watched_.size() >= kTokensKept)
    std::erase_if(watched_, [&](const auto& watched) { return !used(watched); });
  if (!cell_) cell_ = std::make_shared<Cell>(Loop::Current(), this);
  watched_.push_back(std::make_unique<Watched>(*call.stop, Poke{cell_}));
}

void ClientSession::StartDeadline(int64_t at_ns) {
  Loop* loop = Loop::Current();
  if (deadline_timer_) loop->CancelTimer(*deadline_timer_);
  deadline_ns_ = at_ns;
  deadline_timer_ = loop->StartTimer(at_ns, [this] {
    deadline_timer_.reset();
    deadline_ns_ = INT64_MAX;
    GiveUpWhatEnded();
  });
}

void ClientSession::GiveUpWhatEnded() {
  if (ended_) return;
  int64_t next_ns = INT64_MAX;
  auto ended = [&next_ns](const Call* call) {
    if (!EndedError(*call).ok()) return true;
    next_ns = std::min(next_ns, call->deadline_ns);
    return false;
  };
  // Whoever waits for room can only be let go by making some.
  if (std::any_of(for_room_.begin(), for_room_.end(), ended)) return Fail(GivenUpError());
  for (Slot& slot : slots_) {
    if (slot.busy && slot.waiting && ended(slot.waiting->call))
      GiveUp(&slot, EndedError(*slot.waiting->call));
    if (ended_) return;
  }
  if (next_ns < deadline_ns_) StartDeadline(next_ns);
}

void ClientSession::GiveUp(Slot* slot, absl::Status why) {
  const bool being_sent = slot->type == kCmdWrite && !slot->shared && slot->batch > batches_sent_;
  if (slot->shared) options_.arena->Retire(slot->shared, slot->length);
  Wake(std::exchange(slot->waiting, nullptr), std::move(why));
  ++given_up_;
  if (being_sent || slot->receiving) Fail(GivenUpError());
}

void ClientSession::Abort(absl::Status why) { Fail(why); }

Task<void> ClientSession::Close() {
  if (given_up_ > 0 || !failure_.ok())
    Fail(failure_.ok() ? ErrnoErrorAsIs(ESHUTDOWN, "the NBD connection was closed") : failure_);
  if (!closing_ && failure_.ok()) {
    // Whoever closes has awaited its requests; this only keeps the promise if it has not.
    co_await room_.Acquire(options_.requests_in_flight_max);
    closing_ = true;
    if (failure_.ok()) {
      Request request{.type = kCmdDisconnect};
      if (options_.style == ReplyStyle::kExtended) {
        StoreExtendedRequest(pending_.Append(kExtendedRequestBytes), request);
      } else {
        StoreRequest(pending_.Append(kRequestBytes), request);
      }
      FlushSoon();
      Loop* loop = Loop::Current();
      Loop::TimerId timer = loop->StartTimer(loop->NowNs() + kGoodbyeNsMax, [this] {
        Fail(ErrnoErrorAsIs(ETIMEDOUT, "the NBD server does not take the goodbye"));
      });
      while (flush_scheduled_ || flushing_) co_await flushed_.Wait();
      loop->CancelTimer(timer);
      stream_->ShutdownWrite();
      stream_->ShutdownRead();  // a server that never closes must not keep us
    }
    room_.Release(options_.requests_in_flight_max);
  }
  closing_ = true;
  co_await scope_.Join();
}

}  // namespace blk::nbd
