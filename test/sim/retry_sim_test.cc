// The retry filter over connections that are cut again and again: what it answers is still right,
// and as long as it has retries left nobody is told of a cut, except by a flush of what was written
// over the connection that was cut. The server here ends what an old
// connection asked for before it takes a new one; no client can make a server do that, so with one
// that does not, a write that was repeated may happen once more, later.
#include <doctest/doctest.h>

#include "src/backends/nbd_pool.h"
#include "src/backends/registry.h"
#include "test/sim/seeds.h"
#include "test/sim/world.h"

namespace blk::sim {
namespace {

// Opens the server's export over a new connection.
class NbdLayer final : public Layer {
 public:
  NbdLayer(World* world, bool fenced)
      : world_(*world), fenced_(fenced), options_(RandomConnectOptions(world)) {}

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs) override {
    if (fenced_) co_await world_.server->Join(kHourNs * 3);
    ++opens;
    auto connect = [this] { return world_.server->Connect(RandomStreamFaults(&world_), options_); };
    auto first = co_await connect();
    if (!first.ok()) co_return first.status();
    co_return std::make_shared<NbdDevice>(*std::move(first), connect, 1);
  }

  int opens = 0;

 private:
  World& world_;
  const bool fenced_;
  const NbdConnectOptions options_;
};

absl::StatusOr<LayerPtr> MakeRetry(LayerPtr below) {
  const Spec* spec = AllSpecs().FindFilter("retry");
  BLK_CHECK(spec != nullptr);
  std::shared_ptr<void> config = spec->NewConfig();
  ParamReader reader(spec->params(), config.get(), spec->name());
  BLK_RETURN_IF_ERROR(reader.Give("retries", "1000"));
  BLK_RETURN_IF_ERROR(reader.Give("retry-delay", "1ms"));
  BLK_RETURN_IF_ERROR(reader.Give("retry-exponential", "false"));
  return spec->MakeLayer(config.get(), {.below = std::move(below), .named = {}});
}

Task<int> Play(World* world, bool fenced) {
  auto below = std::make_shared<NbdLayer>(world, fenced);
  auto layer = MakeRetry(below);
  BLK_CHECK(layer.ok());
  auto device = co_await (*layer)->Open({});
  while (!device.ok()) device = co_await (*layer)->Open({});  // cut in the handshake
  world->device = device->get();
  TaskScope scope;
  const uint64_t requests = 1 + world->loop.Below(30);
  for (uint64_t i = 1 + world->loop.Below(8); i > 0; --i) scope.Spawn(Client(world, requests));
  co_await scope.Join();
  (void)co_await (*device)->Close();
  co_await world->server->Join(kHourNs * 3);
  co_return below->opens;
}

uint64_t reopened = 0;  // over all seeds

std::string RunRetry(uint64_t seed, bool fenced) {
  DeviceFaults faults = RandomDeviceFaults(seed);
  faults.flush_fails_one_in = 0;          // that is not repeated, and rightly so
  auto* world = new World(seed, faults);  // leaked with its frames if they never end
  auto opens = world->loop.Run(Play(world, fenced));
  if (!opens) return "nothing left to run, but not all has ended";
  reopened += *opens - 1;
  std::string wrong = world->wrong;
  if (wrong.empty() && world->failed > world->failed_flushes && !world->impatient)
    wrong = absl::StrCat(world->failed - world->failed_flushes,
                         " requests failed in spite of 1000 retries");
  if (wrong.empty()) wrong = world->model.JudgeCrash(world->disk->Crash());
  delete world;
  return wrong;
}

}  // namespace

TEST_CASE("retry hides what is cut and failed, and is right all the same") {
  SeedsResult result = TrySeeds("retry", 1500, [](uint64_t seed) { return RunRetry(seed, true); });
  CHECK_MESSAGE(result.failure.empty(), result.failure);
  MESSAGE("retry: ", result.tried, " seeds, opened again ", reopened, " times");
  CHECK((reopened > 0 || result.tried == 1));
}

TEST_CASE("the model finds a write that happens again after it was repeated") {
  CHECK(AnySeedFails(3000, [](uint64_t seed) { return RunRetry(seed, false); }));
}

}  // namespace blk::sim
