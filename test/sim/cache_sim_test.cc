// The cache filter over a disk that is slow, fails and loses its power: what a flush or FUA said of
// a write is in that disk, and what is read is what was written last.
#include <doctest/doctest.h>

#include "src/backends/registry.h"
#include "test/sim/seeds.h"
#include "test/sim/world.h"
#include "test/support/layers.h"

namespace blk::sim {
namespace {

absl::StatusOr<LayerPtr> MakeCache(World* world, std::string mode) {
  const Spec* spec = AllSpecs().FindFilter("cache");
  BLK_CHECK(spec != nullptr);
  const test::Words words = {{"cache", mode},
                             {"cache-min-block-size", "4K"},
                             {"cache-on-read", world->loop.OneIn(2) ? "true" : "false"}};
  return test::MakeFilter(*spec, words, DevicePtr(DevicePtr(), world->disk.get()));
}

Task<int> Play(World* world, std::string mode) {
  auto layer = MakeCache(world, mode);
  BLK_CHECK(layer.ok());
  auto device = co_await (*layer)->Open({});
  BLK_CHECK(device.ok());
  world->device = device->get();
  co_await Clients(world, 8, 40);
  (void)co_await (*device)->Close();
  co_return 0;
}

std::string RunCache(uint64_t seed, std::string mode, DeviceFaults faults) {
  auto* world = new World(seed, faults);  // leaked with its frames if they never end
  world->trims = false;                   // a part of a block that is kept stays what it is
  if (!world->loop.Run(Play(world, mode))) return "nothing left to run, but not all has ended";
  std::string wrong = world->wrong;
  if (world->after_crash.empty()) world->after_crash = world->disk->Crash();
  if (wrong.empty()) wrong = world->model.JudgeCrash(world->after_crash);
  delete world;
  return wrong;
}

std::string RunAnyCache(uint64_t seed) {
  return RunCache(seed, seed % 2 ? "writeback" : "writethrough", RandomDeviceFaults(seed));
}

}  // namespace

TEST_CASE("a cache keeps what its disk and it have promised") {
  SeedsResult result = TrySeeds("cache", 3000, RunAnyCache);
  CHECK_MESSAGE(result.failure.empty(), result.failure);
  MESSAGE("cache: ", result.tried, " seeds");
}

TEST_CASE("the model finds a cache that does not flush") {
  CHECK(AnySeedFails(300, [](uint64_t seed) { return RunCache(seed, "unsafe", {}); }));
}

}  // namespace blk::sim
