// evil: flips bits of what is read, as bad memory and bad wires do. What is written is left alone,
// and so are holes: where nothing is stored nothing goes bad.
//
// Parallel-safe: which bits are bad follows from the seed and the place; the rest is random.
#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "src/backends/filters/wrap_layer.h"
#include "src/core/loop.h"
#include "src/core/spec.h"

namespace blk {
namespace {

enum class Mode { kCosmicRays, kStuckBits, kStuckWires };

struct Config {
  Mode mode = Mode::kStuckBits;
  std::optional<Probability> probability;
  Probability stuck_probability{1};
  std::optional<uint64_t> seed;
};

// Places of bad bits of the disk are made for so many bytes at a time.
constexpr uint64_t kRegionBytes = 1 << 20;

// Shares outside of these are none and all: nbdkit-evil-filter(1), "Probability limited".
constexpr double kProbabilityMin = 1e-12, kProbabilityMax = 1.0 / 8;

double ProbabilityOf(const Config& config) {
  const double wires = 1e-6, bits = 1e-8;
  double value = config.mode == Mode::kStuckWires ? wires : bits;
  if (config.probability) value = config.probability->value;
  return value < kProbabilityMin ? 0 : value > kProbabilityMax ? 1 : value;
}

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
      : Filter(below, below->facts()),
        mode_(config.mode),
        probability_(ProbabilityOf(config)),
        stuck_probability_(config.stuck_probability.value),
        seed_(seed) {}

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    if (probability_ <= 0) return below().Read(call, offset, into);
    return ReadBadly(call, offset, into);
  }

 private:
  // What was read, from where, and what of it is stored somewhere.
  struct Packet {
    uint64_t offset;
    std::span<char> bytes;
    ExtentList extents;

    uint64_t end() const { return offset + bytes.size(); }
    // Where the caller asks in ascending order.
    bool Stored(uint64_t at) {
      const auto& list = extents.extents();
      while (extent < list.size() && at >= extent_start + list[extent].length)
        extent_start += list[extent++].length;
      return extent == list.size() || !(list[extent].flags & kExtentHole);
    }
    size_t extent = 0;
    uint64_t extent_start = extents.start();
  };

  Task<absl::Status> ReadBadly(const Call& call, uint64_t offset, std::span<char> into) {
    BLK_CO_RETURN_IF_ERROR(co_await below().Read(call, offset, into));
    Packet packet{.offset = offset, .bytes = into, .extents = ExtentList(offset, into.size())};
    while (!packet.extents.full()) {
      const uint64_t next = packet.extents.next();
      ExtentList part(next, packet.end() - next);
      BLK_CO_RETURN_IF_ERROR(co_await below().Extents(call.With(0), kBaseAllocation, &part));
      for (const Extent& extent : part.extents())
        packet.extents.Append(extent.length, extent.flags);
    }
    Random now(Loop::Current()->Random());
    switch (mode_) {
      case Mode::kCosmicRays:
        ForEachBad(&now, into.size(), [&](uint64_t byte, int bit, Random*) {
          if (packet.Stored(offset + byte)) into[byte] ^= static_cast<char>(1 << bit);
        });
        break;
      case Mode::kStuckWires:  // the same of each packet
        Stick(Random(seed_), offset, into.size(), &packet, &now);
        break;
      case Mode::kStuckBits:  // these follow from the number of their region
        for (uint64_t region = offset / kRegionBytes; region * kRegionBytes < packet.end();
             ++region)
          Stick(Random(seed_ ^ ((region + 1) * 0xd1342543de82ef95)), region * kRegionBytes,
                kRegionBytes, &packet, &now);
        break;
    }
    co_return absl::OkStatus();
  }

  // Bits of the `bytes` from `start` on are stuck; those that are in the packet are seen.
  void Stick(Random places, uint64_t start, uint64_t bytes, Packet* packet, Random* now) const {
    ForEachBad(&places, bytes, [&](uint64_t byte, int bit, Random* own) {
      const bool high = own->Next() & 1;
      const uint64_t at = start + byte;
      if (at < packet->offset || at >= packet->end() || !packet->Stored(at)) return;
      if (!now->Chance(stuck_probability_)) return;
      char& value = packet->bytes[at - packet->offset];
      value = static_cast<char>(high ? value | 1 << bit : value & ~(1 << bit));
    });
  }

  template <typename Use>
  void ForEachBad(Random* random, uint64_t bytes, Use use) const {
    const double bits = static_cast<double>(bytes) * 8;
    for (double at = random->GoodBits(probability_); at < bits;
         at += 1 + random->GoodBits(probability_)) {
      const uint64_t bit = static_cast<uint64_t>(at);
      use(bit / 8, static_cast<int>(bit % 8), random);
    }
  }

  const Mode mode_;
  const double probability_, stuck_probability_;
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
                          "of each request"})
          .Param("evil-probability", &Config::probability,
                 {.help = "share of the bits that are bad: 1e-8, or 1e-6 of wires, if not given; "
                          "less than 1e-12 is none, more than 1/8 is all"})
          .Param("evil-stuck-probability", &Config::stuck_probability,
                 {.help = "how often a stuck bit is stuck when it is read"})
          .Param("evil-seed", &Config::seed,
                 {.help = "decides which bits are stuck; random if not given"})
          .Description("Holes stay as they are; the filter noextents above the disk hides them.")
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
