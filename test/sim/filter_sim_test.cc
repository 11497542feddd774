// Filters that change or hold what is written, between a server and a bad disk: what they
// acknowledge is judged as if the disk had done it. An overlay must be right as long as it lives,
// and leave the disk alone.
#include <doctest/doctest.h>

#include "src/backends/nbd_pool.h"
#include "src/backends/registry.h"
#include "test/sim/seeds.h"
#include "test/sim/world.h"
#include "test/support/layers.h"

namespace blk::sim {
namespace {

struct Row {
  const char* filter;
  test::Words words;
  enum Kind {
    kThrough,  // what it acknowledges as stable is on the disk
    kOverlay,  // the disk is only read
  } kind = kThrough;
  bool trims = true;  // trimmed sectors read as zeroes
};

const std::vector<Row>& Rows() {
  static const auto& rows = *new std::vector<Row>{
      {"blocksize", {{"minblock", "2K"}, {"maxdata", "4K"}}, Row::kThrough, false},
      {"blocksize", {{"maxdata", "512"}, {"maxlen", "1K"}}, Row::kThrough, false},
      {"fua", {{"fuamode", "force"}}},
      {"fua", {{"fuamode", "emulate"}}},
      {"multi-conn", {{"multi-conn-mode", "emulate"}}},
      {"nozero", {{"zeromode", "emulate"}}},
      {"noparallel", {{"serialize", "all-requests"}}},
      {"retry-request", {{"retry-request-retries", "3"}, {"retry-request-delay", "1ms"}}},
      {"truncate", {{"round-up", "4K"}}},
      {"cow", {{"cow-block-size", "4K"}}, Row::kOverlay},
      {"cow", {{"cow-block-size", "8K"}, {"cow-on-read", "true"}}, Row::kOverlay},
  };
  return rows;
}

struct Stage {
  World world;
  const Row& row;
  LayerPtr layer;
  DevicePtr over;  // the filter's device
  std::string before;

  Stage(uint64_t seed, DeviceFaults faults, const Row& chosen) : world(seed, faults), row(chosen) {}
};

Task<int> UseStage(Stage* stage) {
  World* world = &stage->world;
  auto opened = co_await stage->layer->Open({});
  BLK_CHECK(opened.ok());
  stage->over = *std::move(opened);
  world->server = std::make_unique<SimServer>(&world->loop, stage->over.get());
  world->sectors = std::min(world->sectors, stage->over->size() / kSectorBytes);
  const NbdConnectOptions options = RandomConnectOptions(world);
  auto connect = [world, options] {
    return world->server->Connect(RandomStreamFaults(world), options);
  };
  auto first = world->sectors > 0
                   ? co_await connect()
                   : absl::StatusOr<NbdConnection>{absl::UnavailableError("no room")};
  if (first.ok()) {
    NbdDevice device(*std::move(first), connect, 1 + static_cast<int>(world->loop.Below(3)));
    world->device = &device;
    co_await Clients(world, 6, 25);
    (void)co_await device.Close();
  }
  co_await world->server->Join(kHourNs * 3);
  (void)co_await stage->over->Close();
  co_return 0;
}

std::string Judge(Stage* stage) {
  World& world = stage->world;
  if (!world.wrong.empty()) return world.wrong;
  if (world.server->aborted() > 0) return "a server session did not end by itself";
  if (world.after_crash.empty()) world.after_crash = world.disk->Crash();
  if (stage->row.kind == Row::kOverlay)
    return world.after_crash == stage->before ? "" : "an overlay has changed the disk below";
  // A filter that knows of nothing to flush may say so without asking the disk, power or not.
  return world.model.JudgeCrash(world.after_crash);
}

std::string RunRow(uint64_t seed, const Row& row, DeviceFaults faults) {
  auto* stage = new Stage(seed, faults, row);  // leaked with its frames if they never end
  World& world = stage->world;
  world.trims = row.trims;
  stage->before = world.disk->now();
  const Spec* spec = AllSpecs().FindFilter(row.filter);
  BLK_CHECK(spec != nullptr);
  auto layer = test::MakeFilter(*spec, row.words,
                                std::shared_ptr<Device>(std::shared_ptr<void>(), world.disk.get()));
  if (!layer.ok()) return absl::StrCat(row.filter, ": ", layer.status().message());
  stage->layer = EnforceThreadModel(*std::move(layer));
  if (!world.loop.Run(UseStage(stage)))
    return absl::StrCat(row.filter, ": nothing left to run, but not all has ended");
  std::string wrong = Judge(stage);
  delete stage;
  return wrong.empty() ? "" : absl::StrCat(row.filter, ": ", wrong);
}

std::string Filters(uint64_t seed) {
  return RunRow(seed, Rows()[seed % Rows().size()], RandomDeviceFaults(seed));
}

}  // namespace

TEST_CASE("filters keep what they acknowledge, whatever happens to wires and disk") {
  SeedsResult result = TrySeeds("filters", 3000, Filters);
  CHECK_MESSAGE(result.failure.empty(), result.failure);
  MESSAGE("filters: ", result.tried, " seeds over ", Rows().size(), " filters");
}

TEST_CASE("the judge of filters finds a flush that is lost on its way") {
  for (const Row& row : Rows()) {
    if (row.kind != Row::kThrough) continue;
    bool found = false;
    for (uint64_t seed = 1; seed <= 400 && !found; ++seed)
      found = !RunRow(seed, row, {.flush_lies = true}).empty();
    CHECK_MESSAGE(found, row.filter);
  }
}

}  // namespace blk::sim
