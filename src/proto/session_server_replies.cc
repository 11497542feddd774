// The replies of a ServerSession and how they are sent: see session_server.h.
#include <algorithm>
#include <cstring>

#include "src/core/trace.h"
#include "src/core/zeroes.h"
#include "src/proto/session_server.h"

namespace blk::nbd {
namespace {
// Holes in replies are looked for, and sent, in units of this.
constexpr uint64_t kHoleBytes = 4096;
}  // namespace

// ---- Replies

size_t ServerSession::StoreHeader(char* out, const Request& request, uint16_t flags, uint16_t type,
                                  uint64_t payload_bytes) const {
  if (options_.style == ReplyStyle::kExtended) {
    StoreExtendedReply(out, flags, type, request.cookie, request.offset, payload_bytes);
    return kExtendedReplyBytes;
  }
  StoreStructuredReply(out, flags, type, request.cookie, static_cast<uint32_t>(payload_bytes));
  return kStructuredReplyBytes;
}

void ServerSession::EndReply(uint64_t charged) {
  ++pending_.requests;
  pending_.charged += charged;
}

void ServerSession::Reply(const Request& request, const absl::Status& status, uint64_t charged) {
  EndReply(charged);
  uint32_t error = status.ok() ? 0 : WireErrorFor(request.type, request.flags, ErrnoOf(status));
  if (!status.ok()) {
    LogDebug("connection ", options_.connection, ": ", CommandName(request.type), " offset ",
             request.offset, " length ", request.length, ": ", status.message());
    if (options_.request_failed) options_.request_failed(status);
  }
  if (options_.style == ReplyStyle::kSimple) {
    StoreSimpleReply(pending_.Append(kSimpleReplyBytes), error, request.cookie);
    return;
  }
  char header[kExtendedReplyBytes];
  if (status.ok()) {
    size_t bytes = StoreHeader(header, request, kChunkFlagDone, kChunkNone, 0);
    std::memcpy(pending_.Append(bytes), header, bytes);
    return;
  }
  std::string_view text = std::string_view(status.message()).substr(0, kStringBytesMax);
  size_t payload = kErrorHeaderBytes + text.size();
  size_t bytes = StoreHeader(header, request, kChunkFlagDone, kChunkError, payload);
  char* out = pending_.Append(bytes + payload);
  std::memcpy(out, header, bytes);
  StoreErrorPayload(out + bytes, error, text);
}

void ServerSession::ReplyRead(const Request& request, Buffer buffer, uint64_t charged) {
  EndReply(charged);
  char* data = buffer.data() + kReplyHeaderRoomBytes;
  if (options_.style == ReplyStyle::kSimple) {
    char* start = data - kSimpleReplyBytes;
    StoreSimpleReply(start, 0, request.cookie);
    pending_.AppendBytes(start, kSimpleReplyBytes + request.length);
  } else {
    iovec span{data, request.length};
    if (!ReplySparse(request, {&span, 1})) {
      size_t header_bytes =
          kOffsetDataHeaderBytes +
          (options_.style == ReplyStyle::kExtended ? kExtendedReplyBytes : kStructuredReplyBytes);
      char* start = data - header_bytes;
      size_t at = StoreHeader(start, request, kChunkFlagDone, kChunkOffsetData,
                              kOffsetDataHeaderBytes + request.length);
      StoreOffsetData(start + at, request.offset);
      pending_.AppendBytes(start, header_bytes + request.length);
    }
  }
  pending_.buffers.push_back(std::move(buffer));
}

void ServerSession::ReplyLoan(const Request& request, Loan loan, uint64_t charged) {
  EndReply(charged);
  auto append = [&] {
    for (const iovec& span : loan.spans()) pending_.AppendBytes(span.iov_base, span.iov_len);
    if (loan.file().file) pending_.AppendFile(loan.file());
  };
  if (options_.style == ReplyStyle::kSimple) {
    StoreSimpleReply(pending_.Append(kSimpleReplyBytes), 0, request.cookie);
    append();
  } else if (!ReplySparse(request, loan.spans())) {
    char header[kExtendedReplyBytes];
    size_t bytes = StoreHeader(header, request, kChunkFlagDone, kChunkOffsetData,
                               kOffsetDataHeaderBytes + request.length);
    char* out = pending_.Append(bytes + kOffsetDataHeaderBytes);
    std::memcpy(out, header, bytes);
    StoreOffsetData(out + bytes, request.offset);
    append();
  }
  pending_.loans.push_back(std::move(loan));
}

namespace {

// A read's bytes as alternating runs of zeroes (whole units, aligned to kHoleBytes in the device)
// and data.
struct ZeroRun {
  uint64_t offset, length;
  bool zero;
};

// Fills `runs`; false as soon as it is clear that no run is zero. Small reads and those that must
// not be fragmented are not looked at.
bool FindZeroRuns(uint64_t offset, std::span<const iovec> spans, bool may_split,
                  absl::InlinedVector<ZeroRun, 16>& runs) {
  bool any_zero = false;
  for (const iovec& span : spans) {
    const char* data = static_cast<const char*>(span.iov_base);
    for (size_t at = 0; at < span.iov_len;) {
      size_t step = std::min<uint64_t>(kHoleBytes - offset % kHoleBytes, span.iov_len - at);
      bool zero = IsZero(data + at, step);
      if (!zero && !may_split) return false;
      any_zero |= zero;
      if (runs.empty() || runs.back().zero != zero) {
        runs.push_back({offset, step, zero});
      } else {
        runs.back().length += step;
      }
      offset += step;
      at += step;
    }
  }
  return any_zero;
}

}  // namespace

// Sends holes as holes (section "Structured reply types", OFFSET_HOLE). False, with nothing sent,
// when there is none worth it.
bool ServerSession::ReplySparse(const Request& request, std::span<const iovec> spans) {
  if (request.length < kHoleBytes) return false;
  absl::InlinedVector<ZeroRun, 16> runs;
  const bool may_split = !(request.flags & kCmdFlagDf);
  if (!FindZeroRuns(request.offset, spans, may_split, runs)) return false;
  char header[kExtendedReplyBytes];
  size_t span_index = 0, span_at = 0;
  for (size_t i = 0; i < runs.size(); ++i) {
    const ZeroRun& run = runs[i];
    uint16_t flags = i + 1 == runs.size() ? kChunkFlagDone : 0;
    uint16_t type = run.zero ? kChunkOffsetHole : kChunkOffsetData;
    size_t payload_head = run.zero ? kOffsetHoleBytes : kOffsetDataHeaderBytes;
    size_t bytes =
        StoreHeader(header, request, flags, type, payload_head + (run.zero ? 0 : run.length));
    char* out = pending_.Append(bytes + payload_head);
    std::memcpy(out, header, bytes);
    if (run.zero) {
      StoreOffsetHole(out + bytes, run.offset, static_cast<uint32_t>(run.length));
    } else {
      StoreOffsetData(out + bytes, run.offset);
    }
    for (uint64_t left = run.length; left > 0;) {
      const iovec& span = spans[span_index];
      size_t step = std::min<uint64_t>(left, span.iov_len - span_at);
      if (!run.zero) pending_.AppendBytes(static_cast<char*>(span.iov_base) + span_at, step);
      left -= step;
      if ((span_at += step) == span.iov_len) {
        ++span_index;
        span_at = 0;
      }
    }
  }
  return true;
}

void ServerSession::ReplyStatusChunk(const Request& request, const ExtentList& list, uint32_t id,
                                     bool done) {
  const bool wide = options_.style == ReplyStyle::kExtended;
  // An extent is no longer than the request, whose length fits; what goes on after it may not.
  const uint64_t length_max =
      wide ? UINT64_MAX : UINT32_MAX - UINT32_MAX % device_->facts().block.minimum;
  const size_t count = list.size();
  size_t payload = wide ? kBlockStatusExtHeaderBytes + count * kBlockStatusExtExtentBytes
                        : kBlockStatusHeaderBytes + count * kBlockStatusExtentBytes;
  char header[kExtendedReplyBytes];
  size_t bytes = StoreHeader(header, request, done ? kChunkFlagDone : 0,
                             wide ? kChunkBlockStatusExt : kChunkBlockStatus, payload);
  Buffer buffer(bytes + payload);
  std::memcpy(buffer.data(), header, bytes);
  char* at = buffer.data() + bytes;
  if (wide) {
    StoreBlockStatusExtHeader(at, id, static_cast<uint32_t>(count));
    at += kBlockStatusExtHeaderBytes;
  } else {
    StoreBlockStatusHeader(at, id);
    at += kBlockStatusHeaderBytes;
  }
  for (size_t i = 0; i < count; ++i) {
    Extent extent = list.extents()[i];
    // Without REQ_ONE the last extent may go on after the range, and saves a question.
    if (i + 1 == count && !(request.flags & kCmdFlagReqOne)) {
      const uint64_t longest =
          extent.length + std::min(list.beyond(), device_->size() - list.next());
      extent.length = std::max(extent.length, std::min(longest, length_max));
    }
    if (wide) {
      StoreBlockStatusExtExtent(at, extent.length, extent.flags);
      at += kBlockStatusExtExtentBytes;
    } else {
      StoreBlockStatusExtent(at, static_cast<uint32_t>(extent.length),
                             static_cast<uint32_t>(extent.flags));
      at += kBlockStatusExtentBytes;
    }
  }
  pending_.AppendBytes(buffer.data(), buffer.size());
  pending_.buffers.push_back(std::move(buffer));
}

// ---- Sending

// After what else this turn of the loop completes, so that it all goes in one send.
void ServerSession::FlushSoon() {
  if (flushing_ || std::exchange(flush_scheduled_, true)) return;
  scope_.Spawn(FlushLater());
}

Task<void> ServerSession::FlushLater() {
  co_await Yield();
  flush_scheduled_ = false;
  StartFlush();
}

void ServerSession::StartFlush() {
  if (flushing_ || pending_.parts.empty()) return;
  flushing_ = true;
  scope_.Spawn(FlushLoop());
}

// A plain call where there are no files.
Task<absl::Status> ServerSession::Send(const Output& output) {
  if (output.files.empty()) return stream_->WriteAll(output.parts);
  return SendWithFiles(output);
}

Task<absl::Status> ServerSession::SendWithFiles(const Output& output) {
  std::span<const iovec> parts = output.parts;
  size_t done = 0;
  for (const Output::FilePart& file : output.files) {
    BLK_CO_RETURN_IF_ERROR(
        co_await stream_->WriteWithFile(parts.subspan(done, file.parts - done), file.range));
    done = file.parts;
  }
  if (done == parts.size()) co_return absl::OkStatus();
  co_return co_await stream_->WriteAll(parts.subspan(done));
}

Task<void> ServerSession::FlushLoop() {
  while (!pending_.parts.empty()) {
    std::swap(pending_, sending_);
    if (send_failure_.ok()) {
      absl::Status status = co_await Send(sending_);
      if (!status.ok()) {
        // The client takes no more replies, or a file failed in the middle of one, so it can have
        // no more requests.
        send_failure_ = status;
        stop_.request_stop();
        stream_->ShutdownRead();
      }
    }
    if (in_flight_ == 1) stream_->LoneRequestAnswered();
    ReleaseOutput(sending_);
  }
  flushing_ = false;
}

void ServerSession::ReleaseOutput(Output& output) {
  in_flight_ -= output.requests;
  if (output.charged) options_.budget->Give(output.charged);
  output.Clear();
  if (waiting_for_room_) room_.Set();
}

}  // namespace blk::nbd
