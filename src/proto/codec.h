// Layouts of NBD messages: bytes <-> values. The transmission half is inline, allocates nothing and
// validates only what the bytes alone can tell; the option haggling half is in codec.cc and returns
// Status texts fit to be sent to the peer.
//
// Owner: proto. Threads: any; no state. Every Store function writes exactly the number of bytes
// that its name's constant gives (nbd.h) at `out`, which the caller owns. Parsed string_views and
// views point into the bytes they were parsed from.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/proto/nbd.h"

namespace blk::nbd {

// --- Big-endian numbers

inline uint16_t LoadU16(const char* from) {
  uint16_t value;
  std::memcpy(&value, from, sizeof value);
  return __builtin_bswap16(value);
}
inline uint32_t LoadU32(const char* from) {
  uint32_t value;
  std::memcpy(&value, from, sizeof value);
  return __builtin_bswap32(value);
}
inline uint64_t LoadU64(const char* from) {
  uint64_t value;
  std::memcpy(&value, from, sizeof value);
  return __builtin_bswap64(value);
}
inline void StoreU16(char* out, uint16_t value) {
  value = __builtin_bswap16(value);
  std::memcpy(out, &value, sizeof value);
}
inline void StoreU32(char* out, uint32_t value) {
  value = __builtin_bswap32(value);
  std::memcpy(out, &value, sizeof value);
}
inline void StoreU64(char* out, uint64_t value) {
  value = __builtin_bswap64(value);
  std::memcpy(out, &value, sizeof value);
}

// --- Transmission: requests

// "Request message". With the PAYLOAD_LEN flag of an extended request `length` counts payload
// bytes, else the bytes of the export that the command works on; a compact WRITE has both in one.
struct Request {
  uint16_t flags = 0;
  uint16_t type = 0;
  uint64_t cookie = 0;
  uint64_t offset = 0;
  uint64_t length = 0;
  uint64_t arena_offset = 0;  // with kCmdFlagArena; follows the header
};

enum class ParseResult : uint8_t {
  kComplete,
  kShort,     // the bytes so far are the beginning of a message
  kBadMagic,  // not this protocol: disconnect
};

// Parses the first kRequestBytes of `bytes`.
inline ParseResult ParseRequest(std::span<const char> bytes, Request& request) {
  if (bytes.size() >= 4 && LoadU32(bytes.data()) != kRequestMagic) return ParseResult::kBadMagic;
  if (bytes.size() < kRequestBytes) return ParseResult::kShort;
  const char* at = bytes.data();
  request.flags = LoadU16(at + 4);
  request.type = LoadU16(at + 6);
  request.cookie = LoadU64(at + 8);
  request.offset = LoadU64(at + 16);
  request.length = LoadU32(at + 24);
  return ParseResult::kComplete;
}

// Parses the first kExtendedRequestBytes of `bytes`.
inline ParseResult ParseExtendedRequest(std::span<const char> bytes, Request& request) {
  if (bytes.size() >= 4 && LoadU32(bytes.data()) != kExtendedRequestMagic)
    return ParseResult::kBadMagic;
  if (bytes.size() < kExtendedRequestBytes) return ParseResult::kShort;
  const char* at = bytes.data();
  request.flags = LoadU16(at + 4);
  request.type = LoadU16(at + 6);
  request.cookie = LoadU64(at + 8);
  request.offset = LoadU64(at + 16);
  request.length = LoadU64(at + 24);
  return ParseResult::kComplete;
}

// kRequestBytes; request.length must fit 32 bits.
inline void StoreRequest(char* out, const Request& request) {
  StoreU32(out, kRequestMagic);
  StoreU16(out + 4, request.flags);
  StoreU16(out + 6, request.type);
  StoreU64(out + 8, request.cookie);
  StoreU64(out + 16, request.offset);
  StoreU32(out + 24, static_cast<uint32_t>(request.length));
}

// kExtendedRequestBytes.
inline void StoreExtendedRequest(char* out, const Request& request) {
  StoreU32(out, kExtendedRequestMagic);
  StoreU16(out + 4, request.flags);
  StoreU16(out + 6, request.type);
  StoreU64(out + 8, request.cookie);
  StoreU64(out + 16, request.offset);
  StoreU64(out + 24, request.length);
}

// --- Transmission: replies

// kSimpleReplyBytes.
inline void StoreSimpleReply(char* out, uint32_t error, uint64_t cookie) {
  StoreU32(out, kSimpleReplyMagic);
  StoreU32(out + 4, error);
  StoreU64(out + 8, cookie);
}

// kStructuredReplyBytes; `length` counts the payload that follows.
inline void StoreStructuredReply(char* out, uint16_t flags, uint16_t type, uint64_t cookie,
                                 uint32_t length) {
  StoreU32(out, kStructuredReplyMagic);
  StoreU16(out + 4, flags);
  StoreU16(out + 6, type);
  StoreU64(out + 8, cookie);
  StoreU32(out + 16, length);
}

// kExtendedReplyBytes; `offset` repeats the request's offset, whatever the payload says.
inline void StoreExtendedReply(char* out, uint16_t flags, uint16_t type, uint64_t cookie,
                               uint64_t offset, uint64_t length) {
  StoreU32(out, kExtendedReplyMagic);
  StoreU16(out + 4, flags);
  StoreU16(out + 6, type);
  StoreU64(out + 8, cookie);
  StoreU64(out + 16, offset);
  StoreU64(out + 24, length);
}

// One reply header of any of the three kinds. A simple reply has only `simple`, `error` and
// `cookie`; the data of a successful read follows it with no length of its own. `offset` is of
// extended replies alone.
struct Reply {
  bool simple = false;
  uint16_t flags = 0;
  uint16_t type = kChunkNone;
  uint32_t error = 0;
  uint64_t cookie = 0;
  uint64_t offset = 0;
  uint64_t length = 0;      // payload bytes
  size_t header_bytes = 0;  // how much of the input this header was
};

// Parses the reply header at the front of `bytes`. The style decides which magic numbers are legal:
// simple only, simple or structured, extended only.
inline ParseResult ParseReply(std::span<const char> bytes, ReplyStyle style, Reply& reply) {
  if (bytes.size() < 4) return ParseResult::kShort;
  const char* at = bytes.data();
  const uint32_t magic = LoadU32(at);
  if (magic == kExtendedReplyMagic && style == ReplyStyle::kExtended) {
    if (bytes.size() < kExtendedReplyBytes) return ParseResult::kShort;
    reply = {.flags = LoadU16(at + 4),
             .type = LoadU16(at + 6),
             .cookie = LoadU64(at + 8),
             .offset = LoadU64(at + 16),
             .length = LoadU64(at + 24),
             .header_bytes = kExtendedReplyBytes};
    return ParseResult::kComplete;
  }
  if (magic == kStructuredReplyMagic && style == ReplyStyle::kStructured) {
    if (bytes.size() < kStructuredReplyBytes) return ParseResult::kShort;
    reply = {.flags = LoadU16(at + 4),
             .type = LoadU16(at + 6),
             .cookie = LoadU64(at + 8),
             .length = LoadU32(at + 16),
             .header_bytes = kStructuredReplyBytes};
    return ParseResult::kComplete;
  }
  if (magic == kSimpleReplyMagic && style != ReplyStyle::kExtended) {
    if (bytes.size() < kSimpleReplyBytes) return ParseResult::kShort;
    reply = {.simple = true,
             .flags = kChunkFlagDone,
             .error = LoadU32(at + 4),
             .cookie = LoadU64(at + 8),
             .header_bytes = kSimpleReplyBytes};
    return ParseResult::kComplete;
  }
  return ParseResult::kBadMagic;
}

// --- Transmission: chunk payloads ("Structured reply types")

// OFFSET_DATA: the payload begins with the absolute offset; the data follows.
inline constexpr size_t kOffsetDataHeaderBytes = 8;
inline void StoreOffsetData(char* out, uint64_t offset) { StoreU64(out, offset); }
inline uint64_t LoadOffsetData(const char* payload) { return LoadU64(payload); }

// OFFSET_HOLE: the whole payload.
inline constexpr size_t kOffsetHoleBytes = 12;
struct OffsetHole {
  uint64_t offset = 0;
  uint32_t length = 0;
};
inline void StoreOffsetHole(char* out, uint64_t offset, uint32_t length) {
  StoreU64(out, offset);
  StoreU32(out + 8, length);
}
// nullopt when the payload has the wrong length or describes an empty hole.
inline std::optional<OffsetHole> ParseOffsetHole(std::span<const char> payload) {
  if (payload.size() != kOffsetHoleBytes) return std::nullopt;
  const OffsetHole hole{LoadU64(payload.data()), LoadU32(payload.data() + 8)};
  if (hole.length == 0) return std::nullopt;
  return hole;
}

// BLOCK_STATUS (32 bit) and BLOCK_STATUS_EXT (64 bit): a header and then at least one descriptor.
inline constexpr size_t kBlockStatusHeaderBytes = 4;
inline constexpr size_t kBlockStatusExtentBytes = 8;
inline constexpr size_t kBlockStatusExtHeaderBytes = 8;
inline constexpr size_t kBlockStatusExtExtentBytes = 16;
inline void StoreBlockStatusHeader(char* out, uint32_t context_id) { StoreU32(out, context_id); }
inline void StoreBlockStatusExtent(char* out, uint32_t length, uint32_t status) {
  StoreU32(out, length);
  StoreU32(out + 4, status);
}
inline void StoreBlockStatusExtHeader(char* out, uint32_t context_id, uint32_t extent_count) {
  StoreU32(out, context_id);
  StoreU32(out + 4, extent_count);
}
inline void StoreBlockStatusExtExtent(char* out, uint64_t length, uint64_t status) {
  StoreU64(out, length);
  StoreU64(out + 8, status);
}

// A parsed status payload of either width; valid as long as the payload.
class BlockStatusView {
 public:
  struct Extent {
    uint64_t length = 0;
    uint64_t status = 0;
  };

  // nullopt when the length is not a header and a positive number of descriptors, when the count
  // disagrees with the length, or when a descriptor is empty. The sum of the lengths is the
  // caller's to judge (it may overflow 64 bits).
  static std::optional<BlockStatusView> Parse(uint16_t chunk_type, std::span<const char> payload) {
    const bool wide = chunk_type == kChunkBlockStatusExt;
    const size_t header_bytes = wide ? kBlockStatusExtHeaderBytes : kBlockStatusHeaderBytes;
    const size_t extent_bytes = wide ? kBlockStatusExtExtentBytes : kBlockStatusExtentBytes;
    if (payload.size() < header_bytes + extent_bytes) return std::nullopt;
    if ((payload.size() - header_bytes) % extent_bytes != 0) return std::nullopt;
    const size_t count = (payload.size() - header_bytes) / extent_bytes;
    if (wide && LoadU32(payload.data() + 4) != count) return std::nullopt;
    const BlockStatusView view(payload.data(), count, wide);
    for (size_t i = 0; i < count; ++i) {
      if (view[i].length == 0) return std::nullopt;
    }
    return view;
  }

  uint32_t context_id() const { return LoadU32(payload_); }
  size_t size() const { return count_; }
  Extent operator[](size_t index) const {
    if (wide_) {
      const char* at = payload_ + kBlockStatusExtHeaderBytes + index * kBlockStatusExtExtentBytes;
      return {LoadU64(at), LoadU64(at + 8)};
    }
    const char* at = payload_ + kBlockStatusHeaderBytes + index * kBlockStatusExtentBytes;
    return {LoadU32(at), LoadU32(at + 4)};
  }

 private:
  BlockStatusView(const char* payload, size_t count, bool wide)
      : payload_(payload), count_(count), wide_(wide) {}

  const char* payload_;
  size_t count_;
  bool wide_;
};

// ERROR and ERROR_OFFSET: error, text, and for the second the offset where it happened.
inline constexpr size_t kErrorHeaderBytes = 6;
inline constexpr size_t kErrorOffsetTailBytes = 8;
inline constexpr size_t kErrorPayloadBytesMax =
    kErrorHeaderBytes + kStringBytesMax + kErrorOffsetTailBytes;

// Writes an ERROR payload, or an ERROR_OFFSET payload if `offset` is given, and returns its length:
// at most kErrorHeaderBytes + message.size() + kErrorOffsetTailBytes. A text over kStringBytesMax
// is cut.
inline size_t StoreErrorPayload(char* out, uint32_t error, std::string_view message,
                                std::optional<uint64_t> offset = std::nullopt) {
  message = message.substr(0, kStringBytesMax);
  StoreU32(out, error);
  StoreU16(out + 4, static_cast<uint16_t>(message.size()));
  if (!message.empty()) std::memcpy(out + kErrorHeaderBytes, message.data(), message.size());
  const size_t length = kErrorHeaderBytes + message.size();
  if (!offset.has_value()) return length;
  StoreU64(out + length, *offset);
  return length + kErrorOffsetTailBytes;
}

struct ErrorPayload {
  uint32_t error = 0;
  std::string_view message;
  std::optional<uint64_t> offset;  // of ERROR_OFFSET alone
};
// Any chunk type with the error bit begins like this, so unknown error chunks parse too. nullopt
// when too short, when the text does not fit the payload or the string limit, or when the error is
// 0 (an error chunk never means success).
inline std::optional<ErrorPayload> ParseErrorPayload(uint16_t chunk_type,
                                                     std::span<const char> payload) {
  if (payload.size() < kErrorHeaderBytes) return std::nullopt;
  ErrorPayload result;
  result.error = LoadU32(payload.data());
  const size_t message_bytes = LoadU16(payload.data() + 4);
  if (result.error == 0 || message_bytes > kStringBytesMax) return std::nullopt;
  const size_t rest_bytes = payload.size() - kErrorHeaderBytes;
  if (message_bytes > rest_bytes) return std::nullopt;
  result.message = {payload.data() + kErrorHeaderBytes, message_bytes};
  const size_t tail_bytes = rest_bytes - message_bytes;
  if (chunk_type == kChunkError && tail_bytes != 0) return std::nullopt;
  if (chunk_type == kChunkErrorOffset) {
    if (tail_bytes != kErrorOffsetTailBytes) return std::nullopt;
    result.offset = LoadU64(payload.data() + kErrorHeaderBytes + message_bytes);
  }
  return result;
}

// The payload of a BLOCK_STATUS request with PAYLOAD_LEN ("Request types", extended headers): the
// effect length and the contexts wanted.
inline constexpr size_t kStatusFilterHeaderBytes = 8;
inline constexpr size_t kStatusFilterIdBytes = 4;
// Writes kStatusFilterHeaderBytes + 4 for each id and returns that number.
inline size_t StoreStatusFilter(char* out, uint64_t effect_length,
                                std::span<const uint32_t> context_ids) {
  StoreU64(out, effect_length);
  char* at = out + kStatusFilterHeaderBytes;
  for (const uint32_t id : context_ids) {
    StoreU32(at, id);
    at += kStatusFilterIdBytes;
  }
  return static_cast<size_t>(at - out);
}

// A parsed filter; valid as long as the payload. Duplicate and unknown ids are the session's to
// refuse.
class StatusFilterView {
 public:
  // nullopt when the payload is not 8 + n * 4 bytes.
  static std::optional<StatusFilterView> Parse(std::span<const char> payload) {
    if (payload.size() < kStatusFilterHeaderBytes) return std::nullopt;
    if ((payload.size() - kStatusFilterHeaderBytes) % kStatusFilterIdBytes != 0)
      return std::nullopt;
    return StatusFilterView(payload);
  }
  uint64_t effect_length() const { return LoadU64(payload_.data()); }
  size_t size() const {
    return (payload_.size() - kStatusFilterHeaderBytes) / kStatusFilterIdBytes;
  }
  uint32_t operator[](size_t index) const {
    return LoadU32(payload_.data() + kStatusFilterHeaderBytes + index * kStatusFilterIdBytes);
  }

 private:
  explicit StatusFilterView(std::span<const char> payload) : payload_(payload) {}

  std::span<const char> payload_;
};

// --- Option haggling: greetings ("Oldstyle negotiation", "Newstyle negotiation")

// The 152 bytes with which an oldstyle server begins and ends its handshake. `flags` are
// transmission flags.
std::string OldstyleGreeting(uint64_t export_bytes, uint16_t flags);
// The 18 bytes of a newstyle server.
std::string NewstyleGreeting(uint16_t handshake_flags);
// The answer to EXPORT_NAME, with the 124 zeroes unless the client renounced them.
std::string ExportNameReply(uint64_t export_bytes, uint16_t flags, bool zeroes);

// --- Option haggling: requests ("Fixed newstyle negotiation", "Option types")

struct OptionHeader {
  uint32_t option = 0;
  uint32_t length = 0;
};
// `bytes` holds kOptionHeaderBytes. Fails when the magic number is wrong: the stream has lost its
// framing.
absl::StatusOr<OptionHeader> ParseOptionHeader(std::span<const char> bytes);
// The header and the data, ready to send.
std::string OptionRequest(uint32_t option, std::string_view data);

// The data of INFO and GO.
struct InfoRequest {
  std::string export_name;
  std::vector<uint16_t> infos;

  bool Wants(Info info) const;
};
// Fails with a text for NBD_REP_ERR_INVALID.
absl::StatusOr<InfoRequest> ParseInfoRequest(std::string_view data);
std::string EncodeInfoRequest(std::string_view export_name, std::span<const uint16_t> infos);

// The data of LIST_META_CONTEXT and SET_META_CONTEXT.
struct MetaContextRequest {
  std::string export_name;
  std::vector<std::string> queries;
};
// Fails with a text: InvalidArgument for NBD_REP_ERR_INVALID, ResourceExhausted for
// NBD_REP_ERR_TOO_BIG.
absl::StatusOr<MetaContextRequest> ParseMetaContextRequest(std::string_view data);
std::string EncodeMetaContextRequest(std::string_view export_name,
                                     std::span<const std::string> queries);

// OK when `text` obeys "Conventions" for strings: at most kStringBytesMax and no NUL. `what` names
// it in the message.
absl::Status CheckString(std::string_view what, std::string_view text);

// --- Option haggling: replies ("Option reply types")

struct OptionReplyHeader {
  uint32_t option = 0;
  uint32_t type = 0;
  uint32_t length = 0;
};
// `bytes` holds kOptionReplyHeaderBytes. Fails when the magic number is wrong.
absl::StatusOr<OptionReplyHeader> ParseOptionReplyHeader(std::span<const char> bytes);
// The header and the data, ready to send.
std::string OptionReplyMessage(uint32_t option, uint32_t type, std::string_view data = {});

// NBD_REP_SERVER: one export of a list.
struct ListedExport {
  std::string name;
  std::string description;
};
std::string EncodeServerReply(const ListedExport& entry);
absl::StatusOr<ListedExport> ParseServerReply(std::string_view data);

// NBD_REP_META_CONTEXT.
struct MetaContext {
  uint32_t id = 0;
  std::string name;
};
std::string EncodeMetaContextReply(const MetaContext& context);
absl::StatusOr<MetaContext> ParseMetaContextReply(std::string_view data);

// NBD_REP_INFO with each information type.
std::string EncodeInfoExport(uint64_t export_bytes, uint16_t flags);
std::string EncodeInfoText(Info info, std::string_view text);  // kInfoName, kInfoDescription
struct BlockSizes {
  uint32_t minimum = kBlockSizeMinimumDefault;
  uint32_t preferred = kBlockSizePreferredDefault;
  uint32_t maximum = kPayloadBytesMaxDefault;

  // Whether "Size constraints" allows these three numbers.
  bool Valid() const;
  bool operator==(const BlockSizes&) const = default;
};
std::string EncodeInfoBlockSize(const BlockSizes& sizes);

// What one NBD_REP_INFO said; the member that its type fills is set. An unknown type sets nothing,
// and neither do block sizes that "Size constraints" does not allow: a client is safe with the
// defaults.
struct InfoReply {
  struct Export {
    uint64_t size_bytes = 0;
    uint16_t flags = 0;
  };
  uint16_t type = 0;
  std::optional<Export> export_info;
  std::optional<std::string> name;
  std::optional<std::string> description;
  std::optional<BlockSizes> block_sizes;
};
// Fails when the length does not fit the type or a string is illegal.
absl::StatusOr<InfoReply> ParseInfoReply(std::string_view data);

}  // namespace blk::nbd
