#include "test/sim/seeds.h"

#include <cstdio>
#include <cstdlib>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace blk::sim {
namespace {

uint64_t NumberFromEnvironment(const char* name) {
  const char* text = std::getenv(name);
  uint64_t number = 0;
  if (text != nullptr && !absl::SimpleAtoi(text, &number)) {
    std::fprintf(stderr, "%s=%s is not a number\n", name, text);
    std::exit(2);
  }
  return number;
}

}  // namespace

SeedsResult TrySeeds(const char* name, uint64_t seeds, Scenario scenario) {
  uint64_t first = 1;
  if (uint64_t wanted = NumberFromEnvironment("BLK_SIM_SEEDS")) seeds = wanted;
  if (uint64_t only = NumberFromEnvironment("BLK_SIM_SEED")) {
    first = only;
    seeds = 1;
  }
  SeedsResult result;
  for (uint64_t seed = first; seed < first + seeds; ++seed) {
    ++result.tried;
    std::string failure = scenario(seed);
    if (failure.empty()) continue;
    result.failure = absl::StrCat(name, ": seed ", seed, ": ", failure,
                                  "\n  replay: BLK_SIM_SEED=", seed, " ./dev sim");
    break;
  }
  return result;
}

bool AnySeedFails(uint64_t seeds, Scenario scenario) {
  for (uint64_t seed = 1; seed <= seeds; ++seed)
    if (!scenario(seed).empty()) return true;
  return false;
}

}  // namespace blk::sim
