#pragma once
// SimStream: two ends of a connection in memory, as bad as a network may be: it delivers in pieces
// of any size, late, and may be cut after any byte or go silent for good.
#include <memory>

#include "src/core/stream.h"
#include "test/sim/sim_loop.h"

namespace blk::sim {

struct StreamFaults {
  int64_t delay_ns_max = 2'000'000;   // of a piece on its way
  uint64_t cut_after = UINT64_MAX;    // bytes, both directions together: then both ends fail
  uint64_t stall_after = UINT64_MAX;  // then nothing is delivered any more
  int64_t stall_ns = INT64_MAX;       // until the connection is cut; INT64_MAX: for ever
};

// Both ends, on `loop`. The first end's destruction is seen by the other as the end of the stream.
std::pair<StreamPtr, StreamPtr> MakeSimStreams(SimLoop* loop, StreamFaults faults);

}  // namespace blk::sim
