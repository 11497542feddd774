#pragma once
// The seed of a disk: the user's, or a random one when none was given. Any thread.
#include <sys/random.h>

#include <cerrno>
#include <cstdint>
#include <optional>

#include "src/core/error.h"

namespace blk::generate {

inline absl::StatusOr<uint64_t> SeedOrDraw(std::optional<uint64_t> given) {
  if (given.has_value()) return *given;
  uint64_t seed = 0;
  if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed)) {
    return ErrnoError(errno, "cannot draw a random seed; give one with seed=N");
  }
  return seed;
}

}  // namespace blk::generate
