// random: a disk full of random bytes, held nowhere.
// Parallel-safe: every request is computed from the key and the offset alone.
#include <algorithm>
#include <array>
#include <optional>

#include "src/backends/generate/checked_device.h"
#include "src/backends/generate/seed.h"
#include "src/backends/one_device_layer.h"
#include "src/core/spec.h"

namespace blk {
namespace {

constexpr uint64_t kKeyPurpose = 0;

struct Config {
  Size size;
  std::optional<uint64_t> seed;
};

struct RandomContent {
  uint64_t key;

  void Fill(uint64_t offset, std::span<char> out) const { generate::FillRandom(key, offset, out); }
  size_t Compare(uint64_t offset, std::span<const char> data) const {
    return generate::CompareRandom(key, offset, data);
  }
  uint64_t FirstNonZero(uint64_t offset, uint64_t length) const {
    // Of 16 random bytes all are zero nearly never, so this looks at one piece or two.
    std::array<char, 16> bytes;
    const uint64_t end = offset + length;
    for (uint64_t at = offset; at < end; at += bytes.size()) {
      const auto piece = std::span(bytes).first(std::min<uint64_t>(bytes.size(), end - at));
      Fill(at, piece);
      const size_t index = generate::CompareByte(0, piece);
      if (index != generate::kEqual) return at + index;
    }
    return end;
  }
};

absl::StatusOr<LayerPtr> MakeLayer(const Config& config) {
  BLK_ASSIGN_OR_RETURN(const uint64_t seed, generate::SeedOrDraw(config.seed));
  Facts facts;
  facts.size = config.size.bytes;
  facts.flush = false;
  facts.trim = facts.zero = true;
  facts.fua = Support::kNone;
  facts.cache = Support::kNative;
  facts.multi_conn = true;
  return MakeOneDeviceLayer<CheckedDevice<RandomContent>>(
      facts, RandomContent{generate::MakeKey(seed, kKeyPurpose)});
}

}  // namespace

const Spec& RandomSpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<Config>("random", "a disk full of random bytes; writes are compared")
          .Description(
              "Every byte is random, follows from seed and offset, and is computed when it is "
              "read; nothing is stored. Not for cryptography.\n\n"
              "What is written must be what the disk holds already, else the write fails with "
              "EIO. Copied onto itself, the disk tests whatever did the copying. With holes: "
              "sparse-random.")
          .Param("size", &Config::size,
                 {.help = "size of the disk", .required = true, .magic = true})
          .Param("seed", &Config::seed,
                 {.help = "number that the disk follows from; another one each time if not given"})
          .Example("random:1G(seed=42)", "a gigabyte that does not compress")
          .Make(MakeLayer));
  return spec;
}

}  // namespace blk
