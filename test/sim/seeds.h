#pragma once
// Runs a scenario for many seeds. One seed is one run, the same every time.
//   BLK_SIM_SEEDS=N   so many seeds instead of the scenario's own number
//   BLK_SIM_SEED=S    only this one, to replay a failure
#include <cstdint>
#include <string>

namespace blk::sim {

// What was wrong; empty if nothing was.
using Scenario = std::string (*)(uint64_t seed);

// Seeds that were tried until one failed, which is told in `failure` with the command that replays
// it; all if none did.
struct SeedsResult {
  uint64_t tried = 0;
  std::string failure;
};
SeedsResult TrySeeds(const char* name, uint64_t seeds, Scenario scenario);

// Whether any of `seeds` seeds fails: for scenarios with a bug in them, which must be found.
bool AnySeedFails(uint64_t seeds, Scenario scenario);

}  // namespace blk::sim
