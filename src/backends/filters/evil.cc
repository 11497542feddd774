// evil: flips bits of what is read, as bad memory and bad wires do. What is written is left alone.
//
// Parallel-safe: which bits are bad follows from the seed and the place; the rest is random.
#include <cmath>
#include <random>

#include "src/backends/filters/wrap_layer.h"
#include "src/core/loop.h"
#include "src/core/spec.h"

namespace blk {
namespace {

enum class Mode { kCosmicRays, kStuckBits, kStuckWires };

struct Config {
  Mode mode = Mode::kCosmicRays;
  Probability probability{1e-8};
  Probability stuck_probability{1};
  std::optional<uint64_t> seed;
};

// Places of bad bits are made for so many bytes at a time. For wires, so wide is what they carry.
constexpr uint64_t kRegionBytes = 1 << 20;
constexpr uint64_t kWireBytes = 4096;

// Numbers from a seed, quickly begun anew (splitmix64).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // In (0, 1].
  double Unit() { return static_cast<double>((Next() >> 11) + 1) * 0x1p-53; }
  bool Chance(double probability) { return Unit() <= probability; }
  // How many bits are good before the next bad one: the geometric distribution.
  double GoodBits(double probability) {
    return probability >= 1 ? 0 : std::floor(std::log(Unit()) / std::log1p(-probability));
  }

 private:
  uint64_t state_;
};

class EvilDevice final : public Filter {
 public:
  EvilDevice(DevicePtr below, const Config& config, uint64_t seed)
      : Filter(below, below->facts()), config_(config), seed_(seed) {}

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    if (config_.probability.value <= 0) return below().Read(call, offset, into);
    return ReadBadly(call, offset, into);
  }

 private:
  Task<absl::Status> ReadBadly(const Call& call, uint64_t offset, std::span<char> into) {
    BLK_CO_RETURN_IF_ERROR(co_await below().Read(call, offset, into));
    Random now(Loop::Current()->Random());
    if (config_.mode == Mode::kCosmicRays) {
      ForEachBad(&now, into.size(), [&](uint64_t byte, int bit, Random*) {
        into[byte] ^= static_cast<char>(1 << bit);
      });
      co_return absl::OkStatus();
    }
    // The same places are bad each time: they follow from the number of their region, or, for
    // wires, are the same in each.
    const bool wires = config_.mode == Mode::kStuckWires;
    const uint64_t region_bytes = wires ? kWireBytes : kRegionBytes;
    for (uint64_t start = offset / region_bytes * region_bytes; start < offset + into.size();
         start += region_bytes) {
      Random places(seed_ ^ (wires ? 0 : (start / region_bytes + 1) * 0xd1342543de82ef95));
      ForEachBad(&places, region_bytes, [&](uint64_t byte, int bit, Random* own) {
        const bool high = own->Next() & 1;
        const uint64_t at = start + byte;
        if (at < offset || at >= offset + into.size()) return;
        if (!now.Chance(config_.stuck_probability.value)) return;
        char& value = into[at - offset];
        value = static_cast<char>(high ? value | 1 << bit : value & ~(1 << bit));
      });
    }
    co_return absl::OkStatus();
  }

  template <typename Use>
  void ForEachBad(Random* random, uint64_t bytes, Use use) const {
    const double bits = static_cast<double>(bytes) * 8;
    for (double at = random->GoodBits(config_.probability.value); at < bits;
         at += 1 + random->GoodBits(config_.probability.value)) {
      const uint64_t bit = static_cast<uint64_t>(at);
      use(bit / 8, static_cast<int>(bit % 8), random);
    }
  }

  const Config config_;
  const uint64_t seed_;
};

}  // namespace

const Spec& EvilSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("evil", "flip bits of what is read")
          .Param("evil", &Config::mode,
                 {{"cosmic-rays", Mode::kCosmicRays},
                  {"stuck-bits", Mode::kStuckBits},
                  {"stuck-wires", Mode::kStuckWires}},
                 {.help = "any bit at any time, always the same bits of the disk, or the same bits "
                          "of every 4096 bytes"})
          .Param("evil-probability", &Config::probability,
                 {.help = "share of the bits that are bad"})
          .Param("evil-stuck-probability", &Config::stuck_probability,
                 {.help = "how often a stuck bit is stuck when it is read"})
          .Param("evil-seed", &Config::seed,
                 {.help = "decides which bits are stuck; random if not given"})
          .Example("evil(evil-probability=0)+memory:64K", "all bits are good yet")
          .PrintedExample("evil(evil=stuck-bits,evil-probability=1e-6,evil-seed=1)+disk.img")
          .Make([](Config config, LayerPtr below) {
            const uint64_t seed = config.seed ? *config.seed : std::random_device()();
            return MakeWrapLayer(
                std::move(below), [config, seed](DevicePtr device, const OpenArgs&) {
                  return absl::StatusOr<DevicePtr>(
                      std::make_shared<EvilDevice>(std::move(device), config, seed));
                });
          }));
  return spec;
}

}  // namespace blk
