#include "test/sim/world.h"

namespace blk::sim {

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

NbdConnectOptions RandomConnectOptions(World* world) {
  NbdConnectOptions options;
  options.connect_seconds_max = 7200;
  options.structured_replies = !world->loop.OneIn(4);
  options.extended_headers = world->loop.OneIn(2);
  return options;
}

namespace {

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

// How long the client of a request wants to wait. Lives as long as the request.
struct Patience {
  std::stop_source stop;
  std::stop_token token = stop.get_token();
  Call call;

  explicit Patience(World* world) {
    if (!world->impatient || !world->loop.OneIn(4)) return;
    const int64_t at_ns = world->loop.NowNs() + world->loop.RandomDelayNs(20'000'000);
    if (world->loop.OneIn(2)) {
      call.deadline_ns = at_ns;
    } else {
      call.stop = &token;
      world->loop.StartTimer(at_ns, [stop = stop]() mutable { stop.request_stop(); });
    }
  }
};

Task<void> OneRead(World* world, uint64_t first, uint64_t sectors) {
  std::string got(sectors * kSectorBytes, '\xdd');
  bool late = world->disk->crashed();
  uint64_t began = world->model.Now();
  Patience patience(world);
  absl::Status status = co_await world->device->Read(patience.call, first * kSectorBytes, got);
  AnswerOf(world, status, late);
  if (status.ok()) world->Wrong(world->model.JudgeRead(began, first, got));
}

Task<void> OneChange(World* world, uint64_t first, uint64_t sectors, int kind) {
  const bool fua = world->loop.OneIn(5), zero = kind != 0;
  Patience patience(world);
  const Call call = patience.call.With(fua ? kFua : 0);
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
  Patience patience(world);
  absl::Status status = co_await world->device->Flush(patience.call);
  if (!status.ok()) ++world->failed_flushes;
  world->model.EndFlush(flush, AnswerOf(world, status, late));
}

Task<void> OneExtents(World* world, uint64_t first, uint64_t sectors) {
  ExtentList list(first * kSectorBytes, sectors * kSectorBytes);
  // Without metadata contexts the client answers by itself.
  bool late = world->disk->crashed() && world->device->facts().extents;
  Patience patience(world);
  absl::Status status = co_await world->device->Extents(patience.call, kBaseAllocation, &list);
  AnswerOf(world, status, late);
  if (status.ok() && list.empty()) world->Wrong("an answer without extents");
}

}  // namespace

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
        co_await OneChange(world, first, sectors, world->trims ? 2 : 1);
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

Task<void> Clients(World* world, uint64_t clients_max, uint64_t requests_max) {
  if (world->loop.OneIn(2)) {
    world->loop.StartTimer(
        world->loop.NowNs() + static_cast<int64_t>(world->loop.Below(100'000'000)),
        [world] { world->after_crash = world->disk->Crash(); });
  }
  TaskScope scope;
  const uint64_t requests = 1 + world->loop.Below(requests_max);
  for (uint64_t i = 1 + world->loop.Below(clients_max); i > 0; --i)
    scope.Spawn(Client(world, requests));
  co_await scope.Join();
}

}  // namespace blk::sim
