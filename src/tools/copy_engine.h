#pragma once
// Moves the content of one Device to another: data where there is data, holes and zeroes as holes
// and zeroes. The engine of `blk copy`.
//
// Where the source cannot say what it holds, all counts as data.
//
// The disk is cut into segments; every loop of the pool takes the next one, asks the source for its
// extents and keeps many requests in flight. Memory is bounded by queue_bytes_max, whatever the
// size of the disk. Both devices are used from all loops at once.
#include <atomic>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "src/core/arena.h"
#include "src/core/device.h"
#include "src/core/loop.h"

namespace blk {

class CopyJournal;

struct CopyOptions {
  uint64_t request_bytes = 256 << 10;   // of one read or write, at most
  uint64_t queue_bytes_max = 16 << 20;  // in flight, over all loops
  size_t requests_max = 256;            // in flight, over all loops
  uint64_t sparse_bytes = 4096;         // smallest run of zeroes found in data; 0: do not look
  bool extents = true;                  // ask the source where its holes are
  bool allocated = false;               // zeroes are written as allocated zeroes
  bool destination_is_zero = false;     // zeroes need not be written at all
  bool flush = true;                    // once, at the end
  std::shared_ptr<Arena> arena;         // buffers come from it while there is room
  bool verify = false;                  // read the target back and compare
  // Requests begin at multiples of request_bytes, and zero is only what makes a whole request: of
  // many small pieces few large ones.
  bool whole_requests = false;
  uint64_t segment_bytes = 0;      // taken by a loop at a time; 0: as fits the disk
  CopyJournal* journal = nullptr;  // what is in it is not copied; it learns what is
};

// Bytes, for a progress display; any thread.
struct CopyProgress {
  std::atomic<uint64_t> done{0};     // of the source's size: copied, or known to be holes
  std::atomic<uint64_t> read{0};     // from the source
  std::atomic<uint64_t> written{0};  // to the target, as data
  std::atomic<uint64_t> zeroed{0};   // of the target, without data
};

// Copies all of `source` to the beginning of `target`, which must not be smaller (EINVAL). The
// first error ends the copy, and says where: "read at offset N: …". Runs on all of `loops`, of
// which the current one need not be one.
Task<absl::Status> CopyDevice(std::span<Loop* const> loops, Device* source, Device* target,
                              CopyOptions options, CopyProgress* progress);

// Reads `source` from its beginning to its end, in order, with reads ahead in flight, and gives
// every piece to `write`, which may wait. For pipes.
using OrderedWrite = std::function<Task<absl::Status>(std::span<const char> piece)>;
Task<absl::Status> StreamDevice(Device* source, CopyOptions options, CopyProgress* progress,
                                OrderedWrite write);

}  // namespace blk
