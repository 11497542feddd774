// pattern: every 8 bytes hold their own offset, big-endian, so that misplaced bytes tell whence
// they came. Parallel-safe: every request is computed from its offset alone.
#include <algorithm>

#include "src/backends/generate/checked_device.h"
#include "src/backends/one_device_layer.h"
#include "src/core/spec.h"

namespace blk {
namespace {

struct Config {
  Size size;
};

struct PatternContent {
  void Fill(uint64_t offset, std::span<char> out) const { generate::FillPattern(offset, out); }
  size_t Compare(uint64_t offset, std::span<const char> data) const {
    return generate::ComparePattern(offset, data);
  }
  uint64_t FirstNonZero(uint64_t offset, uint64_t length) const {
    // Of the words that begin at 0 and 8 only the first is all zeroes, and every later word has a
    // byte that is not: two words from any offset hold one.
    char bytes[16];
    const std::span<char> head(bytes, std::min<uint64_t>(sizeof(bytes), length));
    generate::FillPattern(offset, head);
    const size_t index = generate::CompareByte(0, head);
    return offset + (index == generate::kEqual ? length : index);
  }
};

absl::StatusOr<LayerPtr> MakeLayer(const Config& config) {
  Facts facts;
  facts.size = config.size.bytes;
  facts.flush = false;
  facts.trim = facts.zero = true;
  facts.fua = Support::kNone;
  facts.cache = Support::kNative;
  facts.multi_conn = true;
  return MakeOneDeviceLayer<CheckedDevice<PatternContent>>(facts, PatternContent{});
}

}  // namespace

const Spec& PatternSpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<Config>("pattern", "each 8 bytes hold their own offset; writes are compared")
          .Description(
              "The 64-bit big-endian offset of every 8 bytes, up to the largest size there is: for "
              "testing clients and filters. If the size is no multiple of 8, the last number is "
              "cut.\n\n"
              "What is written must be what the disk holds already, else the write fails with EIO.")
          .Param("size", &Config::size,
                 {.help = "size of the disk", .required = true, .magic = true})
          .Example("pattern:1M", "00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 08 ...")
          .Make(MakeLayer));
  return spec;
}

}  // namespace blk
