// Server, client and the pool of connections between them, over bad networks and a bad disk. Judged
// by the model: what was acknowledged is there, what failed is told, nothing waits for ever.
#include <doctest/doctest.h>

#include "src/backends/nbd_pool.h"
#include "test/sim/model.h"
#include "test/sim/seeds.h"
#include "test/sim/sim_device.h"
#include "test/sim/sim_server.h"

namespace blk::sim {
namespace {

constexpr int64_t kHourNs = 3'600'000'000'000;

struct World {
  SimLoop loop;
  uint64_t sectors;
  std::unique_ptr<SimDevice> disk;
  std::unique_ptr<SimServer> server;
  Device* device = nullptr;  // what the clients see
  Model model;
  std::string wrong;    // the first thing that was
  uint64_t failed = 0;  // requests that ended with an error
  bool faulty_wire = false;
  std::string after_crash;  // what the disk held then, if it crashed
  // What was asked for after the power failed cannot have been done.
  uint64_t ok_after_crash = 0;

  World(uint64_t seed, DeviceFaults faults)
      : loop(seed), sectors(8 + loop.Below(56)), model(sectors, kSectorBytes) {
    Facts facts;
    facts.size = sectors * kSectorBytes;
    facts.block.minimum = loop.OneIn(3) ? 512 : 1;
    facts.trim = facts.zero = facts.fast_zero = facts.extents = true;
    facts.fua = loop.OneIn(3) ? Support::kEmulate : Support::kNative;
    facts.multi_conn = loop.OneIn(2);
    disk = std::make_unique<SimDevice>(&loop, facts, faults);
    server = std::make_unique<SimServer>(&loop, disk.get());
  }
  void Wrong(std::string what) {
    if (wrong.empty()) wrong = std::move(what);
  }
};

DeviceFaults RandomDeviceFaults(uint64_t seed) {
  SimLoop dice(seed ^ 0x5eed);
  DeviceFaults faults;
  if (dice.OneIn(2)) return faults;
  if (dice.OneIn(2)) faults.read_fails_one_in = 5 + dice.Below(60);
  if (dice.OneIn(2)) faults.write_fails_one_in = 5 + dice.Below(60);
  if (dice.OneIn(2)) faults.flush_fails_one_in = 2 + dice.Below(8);
  faults.flush_failure_forgets = dice.OneIn(2);
  return faults;
}

StreamFaults RandomStreamFaults(World* world) {
  StreamFaults faults;
  if (world->loop.OneIn(3)) faults.delay_ns_max = 50'000'000;
  switch (world->loop.Below(4)) {
    case 0:
      faults.cut_after = world->loop.Below(world->loop.OneIn(3) ? 2000 : 300'000);
      break;
    case 1:
      faults.stall_after = world->loop.Below(world->loop.OneIn(3) ? 2000 : 300'000);
      faults.stall_ns = kHourNs;
      break;
  }
  world->faulty_wire |= faults.cut_after != UINT64_MAX || faults.stall_after != UINT64_MAX;
  return faults;
}

// How the model takes an answer. An error that the disk gave is an answer; one of the connection
// leaves open what happens.
Answer AnswerOf(World* world, const absl::Status& status, bool began_after_crash) {
  if (status.ok()) {
    if (began_after_crash) ++world->ok_after_crash;
    return Answer::kOk;
  }
  ++world->failed;
  return status.message().find("server answered") != std::string_view::npos ? Answer::kFailed
                                                                            : Answer::kNone;
}

Task<void> OneRead(World* world, uint64_t first, uint64_t sectors) {
  std::string got(sectors * kSectorBytes, '\xdd');
  bool late = world->disk->crashed();
  uint64_t began = world->model.Now();
  absl::Status status = co_await world->device->Read({}, first * kSectorBytes, got);
  AnswerOf(world, status, late);
  if (status.ok()) world->Wrong(world->model.JudgeRead(began, first, got));
}

Task<void> OneChange(World* world, uint64_t first, uint64_t sectors, int kind) {
  const bool fua = world->loop.OneIn(5), zero = kind != 0;
  Call call{.flags = fua ? kFua : 0};
  size_t change = world->model.Begin(first, sectors, zero, fua);
  std::string bytes = zero ? "" : world->model.Bytes(change);
  bool late = world->disk->crashed();
  const uint64_t offset = first * kSectorBytes, length = sectors * kSectorBytes;
  absl::Status status = kind == 0   ? co_await world->device->Write(call, offset, bytes)
                        : kind == 1 ? co_await world->device->Zero(call, offset, length)
                                    : co_await world->device->Trim(call, offset, length);
  world->model.End(change, AnswerOf(world, status, late));
}

Task<void> OneFlush(World* world) {
  bool late = world->disk->crashed();
  size_t flush = world->model.BeginFlush();
  absl::Status status = co_await world->device->Flush({});
  world->model.EndFlush(flush, AnswerOf(world, status, late));
}

Task<void> OneExtents(World* world, uint64_t first, uint64_t sectors) {
  ExtentList list(first * kSectorBytes, sectors * kSectorBytes);
  // Without metadata contexts the client answers by itself.
  bool late = world->disk->crashed() && world->device->facts().extents;
  absl::Status status = co_await world->device->Extents({}, kBaseAllocation, &list);
  AnswerOf(world, status, late);
  if (status.ok() && list.empty()) world->Wrong("an answer without extents");
}

Task<void> Client(World* world, uint64_t requests) {
  for (uint64_t i = 0; i < requests && world->wrong.empty(); ++i) {
    uint64_t sectors = 1 + world->loop.Below(std::min<uint64_t>(world->sectors, 12));
    uint64_t first = world->loop.Below(world->sectors - sectors + 1);
    switch (world->loop.Below(10)) {
      case 0:
        co_await OneFlush(world);
        break;
      case 1:
        co_await OneChange(world, first, sectors, 1);
        break;
      case 2:
        co_await OneChange(world, first, sectors, 2);
        break;
      case 3:
        co_await OneExtents(world, first, sectors);
        break;
      case 4:
      case 5:
      case 6:
        co_await OneRead(world, first, sectors);
        break;
      default:
        co_await OneChange(world, first, sectors, 0);
    }
    if (world->loop.OneIn(4)) co_await world->loop.Delay(5'000'000);
  }
}

// Connects, lets clients loose, and closes. The power may fail meanwhile.
Task<int> Play(World* world) {
  NbdConnectOptions options;
  options.connect_seconds_max = 7200;  // longer than a stall
  options.structured_replies = !world->loop.OneIn(4);
  options.extended_headers = world->loop.OneIn(2);
  auto connect = [world, options] {
    return world->server->Connect(RandomStreamFaults(world), options);
  };
  auto first = co_await connect();
  if (first.ok()) {
    NbdDevice device(*std::move(first), connect, 1 + static_cast<int>(world->loop.Below(4)));
    world->device = &device;
    if (world->loop.OneIn(2)) {
      world->loop.StartTimer(
          world->loop.NowNs() + static_cast<int64_t>(world->loop.Below(100'000'000)),
          [world] { world->after_crash = world->disk->Crash(); });
    }
    TaskScope scope;
    const uint64_t requests = 1 + world->loop.Below(30);
    for (uint64_t i = 1 + world->loop.Below(8); i > 0; --i) scope.Spawn(Client(world, requests));
    co_await scope.Join();
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
  const uint64_t disk_failures = static_cast<uint64_t>(world->disk->failures());
  if (world->failed < disk_failures)
    return absl::StrCat("the disk failed ", disk_failures, " requests, the clients were told of ",
                        world->failed);
  if (!world->faulty_wire && world->after_crash.empty() && world->failed > disk_failures)
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
