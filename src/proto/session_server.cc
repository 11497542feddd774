#include "src/proto/session_server.h"

#include <algorithm>
#include <cstring>

namespace blk::nbd {
namespace {

// Below this a copy is cheaper than a loan and its extra part in the gathered send.
constexpr size_t kBorrowBytesMin = 16 << 10;
// Below this a read and a gathered send cost less than a question to the page cache and a system
// call for each reply.
constexpr size_t kBorrowFileBytesMin = 32 << 10;
// Replies go out when there is so much of them, while the data is still in the processor's cache.
constexpr uint64_t kFlushBytes = 256 << 10;
constexpr uint32_t kCallFlags = kFua | kFastZero | kNoHole | kRequestOne;

uint32_t CallFlags(uint16_t command_flags) {
  uint32_t flags = 0;
  if (command_flags & kCmdFlagFua) flags |= kFua;
  if (command_flags & kCmdFlagFastZero) flags |= kFastZero;
  if (command_flags & kCmdFlagNoHole) flags |= kNoHole;
  if (command_flags & kCmdFlagReqOne) flags |= kRequestOne;
  return flags;
}

}  // namespace

uint16_t TransmissionFlagsFor(const Facts& facts, ReplyStyle style) {
  uint16_t flags = kFlagHasFlags;
  if (facts.read_only) flags |= kFlagReadOnly;
  if (facts.rotational) flags |= kFlagRotational;
  if (facts.flush) flags |= kFlagSendFlush;
  if (facts.fua != Support::kNone && !facts.read_only) flags |= kFlagSendFua;
  if (!facts.read_only) {
    if (facts.offer_zero)
      flags |= kFlagSendWriteZeroes;  // the door writes zeroes where the device can do no better
    if (facts.trim) flags |= kFlagSendTrim;
    if (facts.fast_zero && facts.offer_zero) flags |= kFlagSendFastZero;
  }
  if (facts.cache != Support::kNone) flags |= kFlagSendCache;
  if (facts.multi_conn) flags |= kFlagCanMultiConn;
  if (style != ReplyStyle::kSimple) flags |= kFlagSendDf;
  if (style == ReplyStyle::kExtended) flags |= kFlagBlockStatusPayload;
  return flags;
}

ServerSession::ServerSession(BufferedReader* reader, Device* device, ServerSessionOptions options)
    : reader_(reader),
      stream_(reader->stream()),
      device_(device),
      options_(std::move(options)),
      block_(std::make_shared<Buffer>(limits::kReceiveBufferBytes)) {
  BLK_CHECK(options_.budget != nullptr);
  for (uint32_t flags = 0; flags <= kCallFlags; ++flags)
    calls_.push_back({.flags = flags,
                      .connection = options_.connection,
                      .stop = &stop_token_,
                      .budget = options_.budget});
}

ServerSession::~ServerSession() = default;

bool ServerSession::InArena(const Request& request) const {
  return options_.arena && (request.flags & kCmdFlagArena) &&
         (request.type == kCmdRead || request.type == kCmdWrite);
}

const Call& ServerSession::CallFor(const Request& request) const {
  return calls_[CallFlags(request.flags)];
}

Task<absl::Status> ServerSession::Run() {
  std::span<char> leftover = reader_->buffered();
  BLK_CHECK(leftover.size() <= block_->size());
  if (!leftover.empty()) std::memcpy(block_->data(), leftover.data(), leftover.size());
  end_ = leftover.size();
  reader_->Consume(leftover.size());

  absl::Status status = co_await ReadRequests();
  // A client that is gone wants no answers; one that said so, or broke a rule, gets those under
  // way.
  if (!status.ok() && ErrnoOf(status) == ECONNRESET) stop_.request_stop();
  StartFlush();
  co_await scope_.Join();
  BLK_CHECK(pending_.parts.empty() || !send_failure_.ok());
  ReleaseOutput(pending_);
  if (stopping_) co_return absl::OkStatus();
  co_return status.ok() ? send_failure_ : status;
}

void ServerSession::StopReading() {
  stopping_ = true;
  stream_->ShutdownRead();
  if (waiting_for_room_) room_.Set();
}

void ServerSession::Refuse() { refusing_ = true; }

void ServerSession::Abort() {
  stopping_ = true;
  stop_.request_stop();
  stream_->Cancel();
  if (waiting_for_room_) room_.Set();
}

// ---- Receiving

Task<absl::StatusOr<bool>> ServerSession::Fill() {
  if (begin_ == end_ && block_.use_count() == 1) begin_ = end_ = 0;
  if (end_ == block_->size() || (begin_ == end_ && begin_ > 0)) {
    // No room at the end. Writes under way may still use what was parsed: then take a new block.
    Block fresh =
        block_.use_count() > 1 ? std::make_shared<Buffer>(limits::kReceiveBufferBytes) : block_;
    std::memmove(fresh->data(), block_->data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
    block_ = std::move(fresh);
  }
  auto got = co_await stream_->ReadSome({block_->data() + end_, block_->size() - end_});
  if (!got.ok()) co_return std::move(got).status();
  end_ += *got;
  co_return *got > 0;
}

Task<absl::Status> ServerSession::ReadRequests() {
  const bool extended = options_.style == ReplyStyle::kExtended;
  const size_t header_bytes = extended ? kExtendedRequestBytes : kRequestBytes;
  size_t without_pause = 0;
  for (;;) {
    bool wants_more = false;
    while (end_ - begin_ >= header_bytes && !wants_more) {
      if (stopping_) co_return absl::OkStatus();
      Request request;
      std::span<const char> bytes(block_->data() + begin_, header_bytes);
      ParseResult parsed =
          extended ? ParseExtendedRequest(bytes, request) : ParseRequest(bytes, request);
      if (parsed != ParseResult::kComplete)
        co_return ErrnoErrorAsIs(EPROTO, "the client sent something that is not a request");
      if (request.type == kCmdDisconnect) co_return absl::OkStatus();
      size_t head_bytes = header_bytes;
      if (InArena(request)) {
        head_bytes += kArenaOffsetBytes;
        if (end_ - begin_ < head_bytes) break;
        request.arena_offset = LoadU64(block_->data() + begin_ + header_bytes);
      }
      Task<absl::Status> task = ReadRequest(head_bytes, request, &wants_more);
      BLK_CO_RETURN_IF_ERROR(co_await std::move(task));
      if (pending_.bytes >= kFlushBytes) co_await Drain();
      if (++without_pause % limits::kRequestsPerTurn == 0) {
        if (without_pause % limits::kRequestsInFlightMax == 0) StartFlush();
        co_await Yield();
      }
    }
    StartFlush();
    if (!send_failure_.ok()) co_return send_failure_;
    auto more = co_await Fill();
    if (stopping_) co_return absl::OkStatus();
    if (!more.ok()) co_return std::move(more).status();
    if (!*more && begin_ == end_) {
      // No NBD_CMD_DISC, but nothing is cut: many clients leave like this.
      stop_.request_stop();
      co_return absl::OkStatus();
    }
    if (!*more) co_return ErrnoErrorAsIs(ECONNRESET, "the client left in the middle of a request");
  }
}

// One request whose header lies at begin_. Sets *wants_more, and consumes nothing, when its payload
// should come into the block first.
Task<absl::Status> ServerSession::ReadRequest(size_t header_bytes, const Request& request,
                                              bool* wants_more) {
  const bool in_arena = InArena(request);
  // A write has a payload even without PAYLOAD_LEN, which it must have: qemu 10 forgets the flag,
  // and its own server lets that pass.
  const bool has_payload =
      !in_arena && (request.type == kCmdWrite || (options_.style == ReplyStyle::kExtended &&
                                                  (request.flags & kCmdFlagPayloadLen)));
  const uint64_t payload_bytes = has_payload ? request.length : 0;
  const uint64_t received = end_ - begin_ - header_bytes;
  if (payload_bytes > limits::kRequestBytesMax)
    return ErrnoErrorAsIs(
        EPROTO, absl::StrCat("the client sends a payload of ", payload_bytes, " bytes; at most ",
                             limits::kRequestBytesMax, " are taken"));
  if (received < payload_bytes && payload_bytes <= limits::kReceiveBufferBytes / 2) {
    *wants_more = true;
    return absl::OkStatus();
  }
  const uint64_t charged = in_arena && device_->facts().shared_buffers_ok ? 0
                           : request.type == kCmdRead || request.type == kCmdWrite
                               ? std::min<uint64_t>(request.length, limits::kRequestBytesMax)
                               : payload_bytes;
  if (received >= payload_bytes && TakeRoom(charged)) {
    std::span<const char> payload(block_->data() + begin_ + header_bytes, payload_bytes);
    begin_ += header_bytes + payload_bytes;
    Dispatch(request, payload, block_, Buffer(), charged);
    return absl::OkStatus();
  }
  struct Slow {  // a coroutine only where something must be waited for
    static Task<absl::Status> Run(ServerSession* self, size_t header_bytes, Request request,
                                  uint64_t payload_bytes, uint64_t charged) {
      if (!co_await self->WaitForRoom(charged)) {
        self->stopping_ = true;
        co_return absl::OkStatus();
      }
      uint64_t received = self->end_ - self->begin_ - header_bytes;
      self->begin_ += header_bytes;
      if (received >= payload_bytes) {
        std::span<const char> payload(self->block_->data() + self->begin_, payload_bytes);
        self->begin_ += payload_bytes;
        self->Dispatch(request, payload, self->block_, Buffer(), charged);
        co_return absl::OkStatus();
      }
      Buffer owner(payload_bytes);
      std::memcpy(owner.data(), self->block_->data() + self->begin_, received);
      self->begin_ += received;
      for (std::span<char> rest = owner.span().subspan(received); !rest.empty();) {
        auto got = co_await self->stream_->ReadSome(rest);
        absl::Status failure = got.status();
        if (got.ok() && *got == 0)
          failure = ErrnoErrorAsIs(ECONNRESET, "the client left in the middle of a request");
        if (!failure.ok()) {
          self->options_.budget->Give(charged);
          --self->in_flight_;
          co_return failure;
        }
        rest = rest.subspan(*got);
      }
      std::span<const char> payload(owner.data(), owner.size());
      self->Dispatch(request, payload, nullptr, std::move(owner), charged);
      co_return absl::OkStatus();
    }
  };
  return Slow::Run(this, header_bytes, request, payload_bytes, charged);
}

bool ServerSession::TakeRoom(uint64_t bytes) {
  if (in_flight_ >= options_.requests_in_flight_max) return false;
  if (bytes > 0 && !options_.budget->TryTake(bytes)) return false;
  ++in_flight_;
  return true;
}

// True with the room taken; false when no more is to be read.
Task<bool> ServerSession::WaitForRoom(uint64_t bytes) {
  while (!TakeRoom(bytes)) {
    const uint64_t before = in_flight_;
    StartFlush();
    if (stopping_ || !send_failure_.ok()) co_return false;
    if (in_flight_ < before) continue;  // the socket took the replies at once
    if (in_flight_ == 0) {              // the process's budget is empty: others hold it
      (void)co_await Loop::Current()->Sleep(1'000'000);
      continue;
    }
    waiting_for_room_ = true;
    co_await room_.Wait();
    waiting_for_room_ = false;
  }
  co_return true;
}

// Sends what there is; returns when the socket has taken all but a little of it.
Task<void> ServerSession::Drain() {
  StartFlush();
  while (flushing_ && pending_.bytes >= kFlushBytes && !stopping_ && send_failure_.ok()) {
    waiting_for_room_ = true;
    co_await room_.Wait();
    waiting_for_room_ = false;
  }
}

// ---- Requests

absl::Status ServerSession::Validate(const Request& request) const {
  if (refusing_) return ErrnoErrorAsIs(ESHUTDOWN, "this client is no longer served");
  const bool in_arena = InArena(request);
  const uint16_t known = kCmdFlagFua | kCmdFlagNoHole | kCmdFlagDf | kCmdFlagReqOne |
                         kCmdFlagFastZero | kCmdFlagPayloadLen | (in_arena ? kCmdFlagArena : 0);
  const uint16_t flags = request.flags, offers = options_.transmission_flags;
  auto refuse = [&](std::string_view why) {
    return ErrnoErrorAsIs(EINVAL, absl::StrCat(CommandName(request.type), ": ", why));
  };
  if (CommandName(request.type).empty() || request.type == kCmdResize)
    return ErrnoErrorAsIs(EINVAL, absl::StrCat("unknown command ", request.type));
  if (flags & ~known) return refuse("unknown flag");
  if ((flags & kCmdFlagFua) && !(offers & kFlagSendFua)) return refuse("FUA was not offered");
  if ((flags & kCmdFlagNoHole) && request.type != kCmdWriteZeroes)
    return refuse("NO_HOLE is only for write zeroes");
  if ((flags & kCmdFlagFastZero) &&
      (request.type != kCmdWriteZeroes || !(offers & kFlagSendFastZero)))
    return refuse("FAST_ZERO was not offered");
  if ((flags & kCmdFlagDf) && (request.type != kCmdRead || options_.style == ReplyStyle::kSimple))
    return refuse("DF is only for structured reads");
  if ((flags & kCmdFlagReqOne) && request.type != kCmdBlockStatus)
    return refuse("REQ_ONE is only for block status");
  if (options_.style == ReplyStyle::kExtended) {
    const bool may_have =
        request.type == kCmdBlockStatus || (request.type == kCmdWrite && !in_arena);
    if (!may_have && (flags & kCmdFlagPayloadLen)) return refuse("a payload was not expected");
  } else if (flags & kCmdFlagPayloadLen) {
    return refuse("PAYLOAD_LEN needs extended headers");
  }
  if (request.type == kCmdFlush)
    return offers & kFlagSendFlush ? absl::OkStatus() : refuse("was not offered");
  const bool writes =
      request.type == kCmdWrite || request.type == kCmdTrim || request.type == kCmdWriteZeroes;
  if (request.length == 0)  // unspecified; as a range outside the device
    return ErrnoErrorAsIs(writes && request.type != kCmdTrim ? ENOSPC : EINVAL,
                          absl::StrCat(CommandName(request.type), ": length 0"));
  if (writes && (offers & kFlagReadOnly)) return ErrnoErrorAsIs(EPERM, "the export is read-only");
  if ((request.type == kCmdTrim && !(offers & kFlagSendTrim)) ||
      (request.type == kCmdWriteZeroes && !(offers & kFlagSendWriteZeroes)) ||
      (request.type == kCmdCache && !(offers & kFlagSendCache)))
    return refuse("was not offered");
  if (request.type == kCmdRead && request.length > limits::kRequestBytesMax)
    return ErrnoErrorAsIs(
        EOVERFLOW, absl::StrCat("a read of ", request.length, " bytes is more than the maximum of ",
                                limits::kRequestBytesMax));
  if (in_arena && !options_.arena->At(request.arena_offset, request.length))
    return refuse("beyond the shared memory");
  if (request.type == kCmdBlockStatus && options_.contexts.empty())
    return refuse("no metadata context was negotiated");
  return absl::OkStatus();
}

void ServerSession::Dispatch(const Request& request, std::span<const char> payload,
                             const Block& block, Buffer owner, uint64_t charged) {
  if (absl::Status status = Validate(request); !status.ok()) return Reply(request, status, charged);
  switch (request.type) {
    case kCmdRead:
      return StartRead(request, charged);
    case kCmdWrite:
      return StartWrite(request, payload, block, std::move(owner), charged);
    case kCmdBlockStatus:
      StartStatus(request, payload);
      options_.budget->Give(charged);
      return;
    default:
      break;
  }
  Task<absl::Status> task = StartPlain(request);
  if (task.ready()) return Reply(request, std::move(task).Take(), charged);
  scope_.Spawn(FinishWrite(request, std::move(task), nullptr, Buffer(), charged));
}

void ServerSession::StartRead(const Request& request, uint64_t charged) {
  if (InArena(request)) return StartArenaRead(request, charged);
  if (request.length >= kBorrowBytesMin) {
    Loan loan;
    const bool file = request.length >= kBorrowFileBytesMin && stream_->sends_files();
    const Call call = CallFor(request).With(file ? kLendFile : 0);
    if (device_->Borrow(call, request.offset, request.length, &loan))
      return ReplyLoan(request, std::move(loan), charged);
  }
  Buffer buffer(kReplyHeaderRoomBytes + request.length);
  Task<absl::Status> task =
      device_->Read(CallFor(request), request.offset, buffer.span().subspan(kReplyHeaderRoomBytes));
  if (!task.ready())
    return scope_.Spawn(FinishRead(request, std::move(task), std::move(buffer), charged));
  absl::Status status = std::move(task).Take();
  if (!status.ok()) return Reply(request, status, charged);
  ReplyRead(request, std::move(buffer), charged);
}

// The client may change the arena at any time. A device sees it only if its facts say that this
// can do no harm; else a private buffer stands between.
void ServerSession::StartArenaRead(const Request& request, uint64_t charged) {
  char* at = options_.arena->At(request.arena_offset, request.length);
  if (!device_->facts().shared_buffers_ok) {
    Buffer buffer(request.length);
    Task<absl::Status> task = device_->Read(CallFor(request), request.offset, buffer.span());
    return scope_.Spawn(FinishArenaRead(request, std::move(task), std::move(buffer), charged));
  }
  Task<absl::Status> task = device_->Read(CallFor(request), request.offset, {at, request.length});
  if (task.ready()) return Reply(request, std::move(task).Take(), charged);
  scope_.Spawn(FinishWrite(request, std::move(task), nullptr, Buffer(), charged));
}

Task<void> ServerSession::FinishArenaRead(Request request, Task<absl::Status> task, Buffer buffer,
                                          uint64_t charged) {
  absl::Status status = co_await std::move(task);
  if (status.ok())
    std::memcpy(options_.arena->At(request.arena_offset, request.length), buffer.data(),
                request.length);
  Reply(request, status, charged);
  FlushSoon();
}

void ServerSession::StartArenaWrite(const Request& request, uint64_t charged) {
  const char* at = options_.arena->At(request.arena_offset, request.length);
  Buffer owner;
  std::span<const char> payload(at, request.length);
  if (!device_->facts().shared_buffers_ok) {
    owner = Buffer(request.length);
    std::memcpy(owner.data(), at, request.length);
    payload = {owner.data(), owner.size()};
  }
  Task<absl::Status> task = device_->Write(CallFor(request), request.offset, payload);
  if (task.ready()) return Reply(request, std::move(task).Take(), charged);
  scope_.Spawn(FinishWrite(request, std::move(task), nullptr, std::move(owner), charged));
}

Task<void> ServerSession::FinishRead(Request request, Task<absl::Status> task, Buffer buffer,
                                     uint64_t charged) {
  absl::Status status = co_await std::move(task);
  if (status.ok()) {
    ReplyRead(request, std::move(buffer), charged);
  } else {
    Reply(request, status, charged);
  }
  FlushSoon();
}

void ServerSession::StartWrite(const Request& request, std::span<const char> payload,
                               const Block& block, Buffer owner, uint64_t charged) {
  if (InArena(request)) return StartArenaWrite(request, charged);
  Task<absl::Status> task = device_->Write(CallFor(request), request.offset, payload);
  if (task.ready()) return Reply(request, std::move(task).Take(), charged);
  scope_.Spawn(FinishWrite(request, std::move(task), block, std::move(owner), charged));
}

// Also for every request that has no data to send back.
Task<void> ServerSession::FinishWrite(Request request, Task<absl::Status> task,
                                      [[maybe_unused]] Block block, [[maybe_unused]] Buffer owner,
                                      uint64_t charged) {
  absl::Status status = co_await std::move(task);
  Reply(request, status, charged);
  FlushSoon();
}

Task<absl::Status> ServerSession::StartPlain(const Request& request) {
  const Call& call = CallFor(request);
  switch (request.type) {
    case kCmdFlush:
      return device_->Flush(call);
    case kCmdTrim:
      return device_->Trim(call, request.offset, request.length);
    case kCmdWriteZeroes:
      return device_->Zero(call, request.offset, request.length);
    default:
      return device_->Cache(call, request.offset, request.length);
  }
}

void ServerSession::StartStatus(const Request& plain, std::span<const char> payload) {
  Request request = plain;
  std::vector<uint32_t> ids;
  if (request.flags & kCmdFlagPayloadLen) {
    // Section "BLOCK_STATUS" of the extended headers: a filter of context ids.
    auto filter = StatusFilterView::Parse(payload);
    if (!filter) return Reply(request, ErrnoErrorAsIs(EINVAL, "block status: bad filter"));
    request.length = filter->effect_length();
    for (size_t i = 0; i < filter->size(); ++i) {
      uint32_t id = (*filter)[i];
      bool known = std::any_of(options_.contexts.begin(), options_.contexts.end(),
                               [id](const MetaContext& c) { return c.id == id; });
      if (!known || std::find(ids.begin(), ids.end(), id) != ids.end())
        return Reply(request, ErrnoErrorAsIs(EINVAL, absl::StrCat("block status: context ", id,
                                                                  " is unknown or given twice")));
      ids.push_back(id);
    }
    if (ids.empty()) return Reply(request, ErrnoErrorAsIs(EINVAL, "block status: empty filter"));
  } else {
    for (const MetaContext& context : options_.contexts) ids.push_back(context.id);
  }
  scope_.Spawn(FinishStatus(request, std::move(ids)));
}

Task<void> ServerSession::FinishStatus(Request request, std::vector<uint32_t> ids) {
  if (request.offset > device_->size() || request.length > device_->size() - request.offset ||
      request.length == 0) {
    Reply(request, ErrnoErrorAsIs(EINVAL, "block status: beyond the end of the device"));
    co_return;
  }
  const bool one = request.flags & kCmdFlagReqOne;
  std::vector<std::pair<uint32_t, ExtentList>> answers;
  for (uint32_t id : ids) {
    auto context = std::find_if(options_.contexts.begin(), options_.contexts.end(),
                                [id](const MetaContext& c) { return c.id == id; });
    ExtentList list(request.offset, request.length, one ? 1 : limits::kStatusExtentsMax);
    absl::Status status = co_await device_->Extents(CallFor(request), context->name, &list);
    if (status.ok() && list.empty())
      status = ErrnoErrorAsIs(EIO, "block status: the device gave no extents");
    if (!status.ok()) {
      Reply(request, status);
      FlushSoon();
      co_return;
    }
    answers.emplace_back(id, std::move(list));
  }
  for (size_t i = 0; i < answers.size(); ++i)
    ReplyStatusChunk(request, answers[i].second, answers[i].first, i + 1 == answers.size());
  EndReply(0);
  FlushSoon();
}

}  // namespace blk::nbd
