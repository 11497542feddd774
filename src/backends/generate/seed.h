#pragma once
// The seed of a disk: the user's, or a random one when none was given. All disks of a process that
// were given none share it, so that `blk copy sparse-random:1G sparse-random:1G` compares a disk
// with itself. Any thread.
#include <sys/random.h>

#include <cerrno>
#include <cstdint>
#include <optional>

#include "src/core/error.h"

namespace blk::generate {

inline absl::StatusOr<uint64_t> Draw() {
  uint64_t seed = 0;
  if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
    return ErrnoError(errno, "cannot draw a random seed; give one with seed=N");
  return seed;
}

inline absl::StatusOr<uint64_t> SeedOrDraw(std::optional<uint64_t> given) {
  if (given.has_value()) return *given;
  static const absl::StatusOr<uint64_t>& drawn = *new absl::StatusOr<uint64_t>(Draw());
  return drawn;
}

}  // namespace blk::generate
