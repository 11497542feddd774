// swab: swaps the bytes of 16, 32 or 64 bit words. Parallel-safe: no state.
#include <algorithm>
#include <cstring>

#include "src/backends/filters/aligned_io.h"
#include "src/backends/filters/wrap_layer.h"
#include "src/core/buffer.h"
#include "src/core/spec.h"

namespace blk {
namespace {

struct Config {
  int bits = 16;
};

template <typename Word, Word (*Swap)(Word)>
void SwapWords(const char* from, char* to, size_t bytes) {
  for (size_t i = 0; i < bytes; i += sizeof(Word)) {
    Word word;
    std::memcpy(&word, from + i, sizeof word);
    word = Swap(word);
    std::memcpy(to + i, &word, sizeof word);
  }
}
uint16_t Swap16(uint16_t word) { return __builtin_bswap16(word); }
uint32_t Swap32(uint32_t word) { return __builtin_bswap32(word); }
uint64_t Swap64(uint64_t word) { return __builtin_bswap64(word); }

// In place when `from` is `to`.
void SwapBytes(int bits, const char* from, char* to, size_t bytes) {
  if (bits == 16) return SwapWords<uint16_t, Swap16>(from, to, bytes);
  if (bits == 32) return SwapWords<uint32_t, Swap32>(from, to, bytes);
  SwapWords<uint64_t, Swap64>(from, to, bytes);
}

class SwabDevice final : public Filter {
 public:
  SwabDevice(DevicePtr below, int bits) : Filter(below, MakeFacts(*below, bits)), bits_(bits) {}

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    BLK_CO_RETURN_IF_ERROR(co_await below().Read(call, offset, into));
    SwapBytes(bits_, into.data(), into.data(), into.size());
    co_return absl::OkStatus();
  }
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override {
    Buffer swapped(from.size());
    SwapBytes(bits_, from.data(), swapped.data(), from.size());
    co_return co_await below().Write(call, offset, swapped.span());
  }
  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override {
    return AlignedExtents(&below(), call, context, facts().block.minimum, kLengthMax, list);
  }

 private:
  static constexpr uint64_t kLengthMax = uint64_t{1} << 62;

  // The door refuses what is no whole words.
  static Facts MakeFacts(const Device& below, int bits) {
    const uint32_t bytes = static_cast<uint32_t>(bits) / 8;
    Facts facts = below.facts();
    facts.size = below.size() / bytes * bytes;
    facts.block.minimum = std::max(facts.block.minimum, bytes);
    facts.block_is_advice = false;
    return facts;
  }
  const int bits_;
};

}  // namespace

const Spec& SwabSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("swab", "swap the bytes of each word")
          .Param("swab-bits", &Config::bits, {{"16", 16}, {"8", 8}, {"32", 32}, {"64", 64}},
                 {.help = "width of a word; 8 turns the filter off"})
          .Description(
              "The size is rounded down to whole words, and requests must consist of such. Put the "
              "filter blocksize before it to read and write single bytes.")
          .Example("swab+memory:64K")
          .Make([](Config config, LayerPtr below) {
            return MakeWrapLayer(
                std::move(below),
                [config](DevicePtr device, const OpenArgs&) -> absl::StatusOr<DevicePtr> {
                  if (config.bits == 8) return device;
                  return std::make_shared<SwabDevice>(std::move(device), config.bits);
                });
          }));
  return spec;
}

}  // namespace blk
