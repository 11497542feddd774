#pragma once
// A whole copy: both ends opened, the engine or a stream between them, progress, and both ends
// closed. Of `blk copy` and the name nbdcopy.
//
// Threads: made before loops run; runs on the current loop and the pool's.
#include <functional>
#include <optional>
#include <string>

#include "src/tools/copy_engine.h"
#include "src/tools/endpoint.h"
#include "src/tools/progress.h"

namespace blk {

struct CopyJob {
  CopyOptions options;
  Endpoint source, target;
  int connections = 4;                     // of NBD, at most, to each side
  bool shm = true;                         // offer shared memory to NBD servers
  std::optional<std::string> resume = {};  // the journal's file; both ends are disks then
  ProgressChoice progress = {};
  LoopPool* loops = nullptr;
  // Called when both ends are open, before anything is copied; null is a stream. May change
  // `options`; an error ends the job.
  std::function<absl::Status(Device* source, Device* target, CopyOptions* options)> opened = {};
};

// How many loops a copy runs on; `wanted`: what the user said, or 0. One when the target is a file:
// one thread writes to a file at a time, and bytes that the same processor has just read are in its
// cache (4 GiB, half holes, from file to file: 0.9 s of CPU on one loop, 2.6 on two).
int CopyLoopCount(int wanted, const Endpoint& target);

Task<absl::Status> RunCopy(CopyJob* job);

}  // namespace blk
