#pragma once
// Walking over a disk from beginning to end: its extents, merged over the seams of the answers, and
// its data in order with reads ahead. For map, hash, dump.
#include <functional>

#include "src/core/device.h"

namespace blk {

// Calls `take` with each extent of [offset, end): as long as they come, neighbours with equal flags
// merged. An error of `take` ends the walk.
using TakeExtent = std::function<absl::Status(uint64_t offset, uint64_t length, uint64_t flags)>;
Task<absl::Status> WalkExtents(Device* device, std::string context, uint64_t offset, uint64_t end,
                               TakeExtent take);

// Calls `take_data` with the bytes of everything in [offset, end) that is not known to be zero, in
// order, and `take_zero` with what is between them; both may wait. The alignment that the device
// wants is kept. Where it cannot say what it holds, all counts as data.
struct WalkData {
  std::function<Task<absl::Status>(uint64_t offset, std::span<const char> bytes)> take_data;
  std::function<Task<absl::Status>(uint64_t offset, uint64_t length)> take_zero;
};
struct WalkAhead {
  uint64_t piece_bytes = 1 << 20;  // of one read, at most
  size_t pieces = 8;               // in flight, or waiting to be taken
  bool extents = true;             // ask the device where its holes are
};
Task<absl::Status> WalkContent(Device* device, uint64_t offset, uint64_t end, WalkData take,
                               WalkAhead ahead = {});

}  // namespace blk
