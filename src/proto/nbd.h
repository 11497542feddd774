// The numbers of the NBD protocol, each under the section of the protocol document that defines it,
// and the translation between wire errors and errno.
//
// Owner: proto. Threads: any; constants and pure functions only. No layouts here: those are in
// codec.h. "extended headers" marks what comes from the EXTENDED_HEADERS extension, "resize" what
// comes from RESIZE.
#pragma once

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "src/core/limits.h"

namespace blk::nbd {

// --- Conventions: strings
using limits::kStringBytesMax;
inline constexpr uint16_t kPort = 10809;  // "Newstyle negotiation": the IANA port

// --- "Oldstyle negotiation", "Newstyle negotiation", "Fixed newstyle negotiation"
inline constexpr uint64_t kInitMagic = 0x4e42444d41474943;      // "NBDMAGIC"
inline constexpr uint64_t kOldstyleMagic = 0x00420281861253;    // cliserv_magic
inline constexpr uint64_t kOptionMagic = 0x49484156454F5054;    // "IHAVEOPT"
inline constexpr uint64_t kOptionReplyMagic = 0x3e889045565a9;  // before every option reply
inline constexpr size_t kOldstyleBytes = 8 + 8 + 8 + 4 + 124;  // the whole of the oldstyle greeting
inline constexpr size_t kNewstyleBytes = 8 + 8 + 2;            // the newstyle greeting
inline constexpr size_t kOptionHeaderBytes = 8 + 4 + 4;
inline constexpr size_t kOptionReplyHeaderBytes = 8 + 4 + 4 + 4;
inline constexpr size_t kExportNameReplyBytes = 8 + 2;  // followed by the zeroes unless NO_ZEROES
inline constexpr size_t kReservedZeroesBytes = 124;

// --- "Handshake flags" (server), 16 bits; "Client flags", 32 bits
enum HandshakeFlag : uint16_t {
  kFlagFixedNewstyle = 1 << 0,
  kFlagNoZeroes = 1 << 1,
};
enum ClientFlag : uint32_t {
  kClientFixedNewstyle = 1 << 0,
  kClientNoZeroes = 1 << 1,
};

// --- "Transmission flags"
enum TransmissionFlag : uint16_t {
  kFlagHasFlags = 1 << 0,
  kFlagReadOnly = 1 << 1,
  kFlagSendFlush = 1 << 2,
  kFlagSendFua = 1 << 3,
  kFlagRotational = 1 << 4,
  kFlagSendTrim = 1 << 5,
  kFlagSendWriteZeroes = 1 << 6,
  kFlagSendDf = 1 << 7,
  kFlagCanMultiConn = 1 << 8,
  kFlagSendResize = 1 << 9,  // resize
  kFlagSendCache = 1 << 10,
  kFlagSendFastZero = 1 << 11,
  kFlagBlockStatusPayload = 1 << 12,  // extended headers
};

// --- "Option types"
enum Option : uint32_t {
  kOptExportName = 1,
  kOptAbort = 2,
  kOptList = 3,
  kOptPeekExport = 4,  // withdrawn; never answered
  kOptStartTls = 5,
  kOptInfo = 6,
  kOptGo = 7,
  kOptStructuredReply = 8,
  kOptListMetaContext = 9,
  kOptSetMetaContext = 10,
  kOptExtendedHeaders = 11,  // extended headers
};

// --- "Option reply types"
inline constexpr uint32_t kRepErrorBit = uint32_t{1} << 31;
enum OptionReply : uint32_t {
  kRepAck = 1,
  kRepServer = 2,
  kRepInfo = 3,
  kRepMetaContext = 4,
  kRepErrUnsup = kRepErrorBit + 1,
  kRepErrPolicy = kRepErrorBit + 2,
  kRepErrInvalid = kRepErrorBit + 3,
  kRepErrPlatform = kRepErrorBit + 4,
  kRepErrTlsReqd = kRepErrorBit + 5,
  kRepErrUnknown = kRepErrorBit + 6,
  kRepErrShutdown = kRepErrorBit + 7,
  kRepErrBlockSizeReqd = kRepErrorBit + 8,
  kRepErrTooBig = kRepErrorBit + 9,
  kRepErrExtHeaderReqd = kRepErrorBit + 10,  // extended headers
};

// --- "NBD_REP_INFO" under "Option reply types": the information types
enum Info : uint16_t {
  kInfoExport = 0,
  kInfoName = 1,
  kInfoDescription = 2,
  kInfoBlockSize = 3,
};

// --- "Size constraints"
inline constexpr uint32_t kBlockSizeMinimumMax = 64 * 1024;  // the largest legal minimum block size
inline constexpr uint32_t kBlockSizeMinimumDefault = 1;      // a server that advertises nothing
inline constexpr uint32_t kBlockSizeMinimumSafe = 512;       // a client that was told nothing
inline constexpr uint32_t kBlockSizePreferredDefault = 4096;
inline constexpr uint32_t kPayloadBytesMaxDefault = 32 * 1024 * 1024;  // 2^25
inline constexpr uint32_t kPayloadBytesUnlimited = 0xffffffff;

// --- "Request message", "Simple reply message", "Structured reply chunk message",
//     "Extended reply chunk message" (extended headers)
inline constexpr uint32_t kRequestMagic = 0x25609513;
inline constexpr uint32_t kExtendedRequestMagic = 0x21e41c71;
inline constexpr uint32_t kSimpleReplyMagic = 0x67446698;
inline constexpr uint32_t kStructuredReplyMagic = 0x668e33ef;
inline constexpr uint32_t kExtendedReplyMagic = 0x6e8a278c;
inline constexpr size_t kRequestBytes = 28;
inline constexpr size_t kExtendedRequestBytes = 32;
inline constexpr size_t kSimpleReplyBytes = 16;
inline constexpr size_t kStructuredReplyBytes = 20;
inline constexpr size_t kExtendedReplyBytes = 32;

// --- "Request types"
enum Command : uint16_t {
  kCmdRead = 0,
  kCmdWrite = 1,
  kCmdDisconnect = 2,
  kCmdFlush = 3,
  kCmdTrim = 4,
  kCmdCache = 5,
  kCmdWriteZeroes = 6,
  kCmdBlockStatus = 7,
  kCmdResize = 8,  // resize: the offset field carries the new size
};

// --- "Command flags"
enum CommandFlag : uint16_t {
  kCmdFlagFua = 1 << 0,
  kCmdFlagNoHole = 1 << 1,
  kCmdFlagDf = 1 << 2,
  kCmdFlagReqOne = 1 << 3,
  kCmdFlagFastZero = 1 << 4,
  kCmdFlagPayloadLen = 1 << 5,  // extended headers
};

// --- "Structured reply flags"
enum ChunkFlag : uint16_t {
  kChunkFlagDone = 1 << 0,
};

// --- "Structured reply types"
inline constexpr uint16_t kChunkErrorBit = 1 << 15;
enum ChunkType : uint16_t {
  kChunkNone = 0,
  kChunkOffsetData = 1,
  kChunkOffsetHole = 2,
  kChunkBlockStatus = 5,
  kChunkBlockStatusExt = 6,  // extended headers
  kChunkError = kChunkErrorBit + 1,
  kChunkErrorOffset = kChunkErrorBit + 2,
};
inline constexpr uint32_t kBlockStatusExtentsMax =
    1 << 20;  // descriptors a server should put into one chunk

// --- "The `base:` metadata namespace"
inline constexpr std::string_view kBaseAllocation = "base:allocation";
enum AllocationState : uint32_t {
  kStateHole = 1 << 0,
  kStateZero = 1 << 1,
};

// --- "Error values"
enum Error : uint32_t {
  kErrorNone = 0,
  kErrorPerm = 1,
  kErrorIo = 5,
  kErrorNoMemory = 12,
  kErrorInvalid = 22,
  kErrorNoSpace = 28,
  kErrorOverflow = 75,
  kErrorNotSupported = 95,
  kErrorShutdown = 108,
};

// What of the wire a negotiated connection speaks ("Protocol phases"; each value includes the ones
// before it).
enum class ReplyStyle : uint8_t {
  kSimple,      // compact requests, simple replies only
  kStructured,  // compact requests, structured replies
  kExtended,    // extended requests and replies (extended headers)
};

// The wire error for an errno of this machine; 0 for 0. What the document has no number for becomes
// EIO.
constexpr uint32_t WireErrorFromErrno(int error) {
  switch (error) {
    case 0:
      return kErrorNone;
    case EPERM:
    case EACCES:
    case EROFS:
      return kErrorPerm;
    case ENOMEM:
      return kErrorNoMemory;
    case EINVAL:
      return kErrorInvalid;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return kErrorNoSpace;
    case EOVERFLOW:
      return kErrorOverflow;
    case ENOTSUP:
      return kErrorNotSupported;
    case ESHUTDOWN:
      return kErrorShutdown;
    default:
      return kErrorIo;
  }
}

// As WireErrorFromErrno, but never a value that the document forbids for this command ("Error
// values": ENOTSUP answers only a fast zero, EOVERFLOW only a read or a command without a payload).
constexpr uint32_t WireErrorFor(uint16_t command, uint16_t command_flags, int error) {
  const uint32_t wire = WireErrorFromErrno(error);
  if (wire == kErrorNotSupported) {
    const bool fast = command == kCmdWriteZeroes && (command_flags & kCmdFlagFastZero) != 0;
    return fast ? wire : uint32_t{kErrorInvalid};
  }
  if (wire == kErrorOverflow) {
    return command != kCmdWrite ? wire : uint32_t{kErrorInvalid};
  }
  return wire;
}

// The errno for a wire error; 0 for 0. An unknown value counts as EINVAL, as "Error values" asks of
// clients.
constexpr int ErrnoFromWireError(uint32_t error) {
  switch (error) {
    case kErrorNone:
      return 0;
    case kErrorPerm:
      return EPERM;
    case kErrorIo:
      return EIO;
    case kErrorNoMemory:
      return ENOMEM;
    case kErrorNoSpace:
      return ENOSPC;
    case kErrorOverflow:
      return EOVERFLOW;
    case kErrorNotSupported:
      return ENOTSUP;
    case kErrorShutdown:
      return ESHUTDOWN;
    default:
      return EINVAL;
  }
}

constexpr bool IsOptionError(uint32_t reply_type) { return (reply_type & kRepErrorBit) != 0; }
constexpr bool IsErrorChunk(uint16_t chunk_type) { return (chunk_type & kChunkErrorBit) != 0; }

// The document's own names, for messages and traces; "option 4711" and the like have none and give
// "".
// --- blk's own: payloads in shared memory (docs/shared-memory.md). No other project uses these
// numbers, and a server that does not know them answers "unsupported".
inline constexpr uint32_t kOptArena = 0x626c6b01;       // "blk", 1
inline constexpr size_t kArenaOptionBytes = 4 + 4 + 8;  // version, reserved, length
inline constexpr uint32_t kArenaVersion = 1;
inline constexpr uint16_t kCmdFlagArena = 1 << 15;  // READ, WRITE: the payload lies in the arena
inline constexpr size_t kArenaOffsetBytes = 8;      // after the request header with that flag

constexpr std::string_view OptionName(uint32_t option) {
  switch (option) {
    case kOptExportName:
      return "NBD_OPT_EXPORT_NAME";
    case kOptAbort:
      return "NBD_OPT_ABORT";
    case kOptList:
      return "NBD_OPT_LIST";
    case kOptPeekExport:
      return "NBD_OPT_PEEK_EXPORT";
    case kOptStartTls:
      return "NBD_OPT_STARTTLS";
    case kOptInfo:
      return "NBD_OPT_INFO";
    case kOptGo:
      return "NBD_OPT_GO";
    case kOptStructuredReply:
      return "NBD_OPT_STRUCTURED_REPLY";
    case kOptListMetaContext:
      return "NBD_OPT_LIST_META_CONTEXT";
    case kOptSetMetaContext:
      return "NBD_OPT_SET_META_CONTEXT";
    case kOptExtendedHeaders:
      return "NBD_OPT_EXTENDED_HEADERS";
    default:
      return "";
  }
}

constexpr std::string_view OptionReplyName(uint32_t reply_type) {
  switch (reply_type) {
    case kRepAck:
      return "NBD_REP_ACK";
    case kRepServer:
      return "NBD_REP_SERVER";
    case kRepInfo:
      return "NBD_REP_INFO";
    case kRepMetaContext:
      return "NBD_REP_META_CONTEXT";
    case kRepErrUnsup:
      return "NBD_REP_ERR_UNSUP";
    case kRepErrPolicy:
      return "NBD_REP_ERR_POLICY";
    case kRepErrInvalid:
      return "NBD_REP_ERR_INVALID";
    case kRepErrPlatform:
      return "NBD_REP_ERR_PLATFORM";
    case kRepErrTlsReqd:
      return "NBD_REP_ERR_TLS_REQD";
    case kRepErrUnknown:
      return "NBD_REP_ERR_UNKNOWN";
    case kRepErrShutdown:
      return "NBD_REP_ERR_SHUTDOWN";
    case kRepErrBlockSizeReqd:
      return "NBD_REP_ERR_BLOCK_SIZE_REQD";
    case kRepErrTooBig:
      return "NBD_REP_ERR_TOO_BIG";
    case kRepErrExtHeaderReqd:
      return "NBD_REP_ERR_EXT_HEADER_REQD";
    default:
      return "";
  }
}

constexpr std::string_view CommandName(uint16_t command) {
  switch (command) {
    case kCmdRead:
      return "read";
    case kCmdWrite:
      return "write";
    case kCmdDisconnect:
      return "disconnect";
    case kCmdFlush:
      return "flush";
    case kCmdTrim:
      return "trim";
    case kCmdCache:
      return "cache";
    case kCmdWriteZeroes:
      return "write zeroes";
    case kCmdBlockStatus:
      return "block status";
    case kCmdResize:
      return "resize";
    default:
      return "";
  }
}

}  // namespace blk::nbd
