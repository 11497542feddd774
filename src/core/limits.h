#pragma once
// Every bound of blk in one place, with its reason.
#include <cstddef>
#include <cstdint>

namespace blk::limits {

inline constexpr uint64_t kDiskBytesMax = INT64_MAX;  // offsets fit off_t, as every peer's do

// A request's payload. 64 MiB is what nbdkit takes; 32 MiB is what peers use when nothing is said.
inline constexpr uint32_t kRequestBytesMax = 64u << 20;
inline constexpr uint32_t kRequestBytesDefaultMax = 32u << 20;
inline constexpr uint32_t kPreferredBlockBytes = 4096;

// One connection. Requests in flight bound the coroutines and buffers that a client can hold.
inline constexpr size_t kRequestsInFlightMax = 256;
inline constexpr uint64_t kArenaBytesMax = 64u << 20;  // shared memory of one connection
inline constexpr size_t kReceiveBufferBytes = 256u << 10;
// After so many requests the loop's other connections have their turn: fewer than an honest client
// has in flight, so that one which floods gets no more of the loop.
inline constexpr size_t kRequestsPerTurn = 16;
inline constexpr size_t kTlsReceiveBytes = 64u << 10;  // of cipher text, at a time
inline constexpr size_t kTlsSendBytes = 256u << 10;    // the same
// A reply chunk with extents: the protocol advises at most 2^20 descriptors; we stay far below.
inline constexpr size_t kStatusExtentsMax = 4096;

// Handshake.
inline constexpr size_t kOptionBytesMax = 64u << 10;     // kept in memory and answered
inline constexpr size_t kOptionBytesSkipMax = 1u << 20;  // consumed and refused; beyond: disconnect
inline constexpr size_t kOptionsMax = 1024;
inline constexpr size_t kMetaContextsMax = 64;   // selected by one client
inline constexpr size_t kMetaQueriesMax = 1024;  // in one option
// Export names, descriptions, error texts: NBD protocol, section "Values".
inline constexpr size_t kStringBytesMax = 4096;
inline constexpr size_t kOptionReplyBytesMax = 6 + 2 * kStringBytesMax;  // two strings and change
inline constexpr size_t kRepliesPerOptionMax = 4096;  // all but LIST have a handful
inline constexpr size_t kListedExportsMax = 1u << 20;
inline constexpr size_t kListedBytesMax = 64u << 20;  // of names and descriptions
inline constexpr int kHandshakeSecondsMax = 60;

inline constexpr uint64_t kMemoryBytesDefault = 1ull << 30;    // request buffers, queues; --memory
inline constexpr uint64_t kConnectionReserveBytes = 1u << 20;  // always granted to a connection
inline constexpr int kConnectionsMax = 4096;
inline constexpr int kOffloadThreadsMax = 64;
inline constexpr size_t kProgramsMax = 512;  // half of the usual limit of descriptors
inline constexpr size_t kProgramOutputBytesMax = 64u << 20;  // as a request: scripts serve reads
inline constexpr size_t kProgramErrorBytesMax = 64u << 10;
inline constexpr int kLoopsMax = 64;

// What people type.
inline constexpr size_t kSecretBytesMax = 64u << 10;   // a key file, generously
inline constexpr size_t kPskFileBytesMax = 16u << 20;  // the keys of all users
inline constexpr size_t kSpecBytesMax = 64u << 10;     // an in-line spec
inline constexpr size_t kStackLayersMax = 64;  // each layer may cost a coroutine frame a request

}  // namespace blk::limits
