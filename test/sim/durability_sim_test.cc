// Server, client and the pool of connections between them, over bad networks and a bad disk. Judged
// by the model: what was acknowledged is there, what failed is told, nothing waits for ever.
#include <doctest/doctest.h>

#include "src/backends/nbd_pool.h"
#include "test/sim/seeds.h"
#include "test/sim/world.h"

namespace blk::sim {
namespace {

// Connects, lets clients loose, and closes. The power may fail meanwhile.
Task<int> Play(World* world) {
  const NbdConnectOptions options = RandomConnectOptions(world);
  auto connect = [world, options] {
    return world->server->Connect(RandomStreamFaults(world), options);
  };
  auto first = co_await connect();
  if (first.ok()) {
    NbdDevice device(*std::move(first), connect, 1 + static_cast<int>(world->loop.Below(4)));
    world->device = &device;
    co_await Clients(world, 8, 30);
    if (!(co_await device.Close()).ok()) world->Wrong("close failed");
  } else if (!world->faulty_wire) {
    world->Wrong(absl::StrCat("cannot connect: ", first.status().message()));
  }
  co_await world->server->Join(kHourNs * 3);
  co_return 0;
}

std::string Judge(World* world) {
  if (!world->wrong.empty()) return world->wrong;
  if (world->server->aborted() > 0) return "a server session did not end by itself";
  if (world->ok_after_crash > 0) return "OK from a disk without power";
  const uint64_t disk_failures =
      static_cast<uint64_t>(world->disk->failures() + world->disk->extents_failures());
  // What nobody waited for cannot be counted.
  if (!world->impatient && world->failed < disk_failures)
    return absl::StrCat("the disk failed ", disk_failures, " requests, the clients were told of ",
                        world->failed);
  if (!world->impatient && !world->faulty_wire && world->after_crash.empty() &&
      world->failed > disk_failures)
    return absl::StrCat("nothing but the disk fails, and that ", disk_failures, " times, but ",
                        world->failed, " requests failed");
  if (world->after_crash.empty()) world->after_crash = world->disk->Crash();
  return world->model.JudgeCrash(world->after_crash);
}

std::string RunWith(uint64_t seed, DeviceFaults faults) {
  auto* world = new World(seed, faults);  // leaked with its frames if they never end
  if (!world->loop.Run(Play(world))) return "nothing left to run, but not all has ended";
  std::string wrong = Judge(world);
  delete world;
  return wrong;
}

std::string Durability(uint64_t seed) { return RunWith(seed, RandomDeviceFaults(seed)); }

}  // namespace

TEST_CASE("what a server acknowledged is there, whatever happens to wires and disk") {
  SeedsResult result = TrySeeds("durability", 6000, Durability);
  CHECK_MESSAGE(result.failure.empty(), result.failure);
  MESSAGE("durability: ", result.tried, " seeds");
}

TEST_CASE("a seed gives the same run every time") {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    int64_t ended_ns[2];
    for (int64_t& each : ended_ns) {
      World world(seed, RandomDeviceFaults(seed));
      REQUIRE(world.loop.Run(Play(&world)));
      each = world.loop.NowNs() + static_cast<int64_t>(world.model.Now());
    }
    CHECK(ended_ns[0] == ended_ns[1]);
  }
}

TEST_CASE("the model finds a disk that forgets flushed writes") {
  CHECK(AnySeedFails(300, [](uint64_t seed) { return RunWith(seed, {.flush_lies = true}); }));
}
TEST_CASE("the model finds a disk whose flush misses what is under way beside it") {
  CHECK(AnySeedFails(300, [](uint64_t seed) { return RunWith(seed, {.flush_early = true}); }));
}
TEST_CASE("the model finds a disk that does not tell of failed writes") {
  CHECK(AnySeedFails(300, [](uint64_t seed) {
    return RunWith(seed, {.write_fails_one_in = 10, .write_lies = true});
  }));
}

}  // namespace blk::sim
