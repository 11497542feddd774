// null: swallows what is written and reads as zeroes.
// Parallel-safe: it has no state.
#include <algorithm>
#include <cstring>

#include "src/backends/one_device_layer.h"
#include "src/core/spec.h"

namespace blk {
namespace {

struct Config {
  Size size;
};

// What reads are lent. Never touched, so it is the kernel's page of zeroes many times over.
constexpr size_t kZeroesBytes = 1 << 20;
alignas(4096) char zeroes[kZeroesBytes];

class NullDevice final : public Device {
 public:
  using Device::Device;

 protected:
  Task<absl::Status> DoRead(const Call&, uint64_t, std::span<char> into) override {
    std::memset(into.data(), 0, into.size());
    return absl::OkStatus();
  }
  Task<absl::Status> DoWrite(const Call&, uint64_t, std::span<const char>) override {
    return absl::OkStatus();
  }
  Task<absl::Status> DoZero(const Call&, uint64_t, uint64_t) override { return absl::OkStatus(); }
  Task<absl::Status> DoExtents(const Call&, std::string_view, ExtentList* list) override {
    list->Append(list->end() - list->next(), kExtentHoleZero);
    return absl::OkStatus();
  }
  bool DoBorrow(const Call&, uint64_t, uint64_t length, Loan* loan) override {
    for (; length > 0; length -= std::min<uint64_t>(length, kZeroesBytes)) {
      loan->Add(zeroes, std::min<uint64_t>(length, kZeroesBytes));
    }
    return true;
  }
};

absl::StatusOr<LayerPtr> MakeLayer(const Config& config) {
  Facts facts;
  facts.size = config.size.bytes;
  facts.trim = facts.zero = facts.fast_zero = true;
  facts.extents = true;
  facts.fua = facts.cache = Support::kNative;
  facts.multi_conn = true;
  facts.shared_buffers_ok = true;
  return MakeOneDeviceLayer<NullDevice>(facts);
}

}  // namespace

const Spec& NullSpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<Config>("null", "reads as zeroes, forgets what is written")
          .Description(
              "One big hole. Writes succeed and are forgotten, so a file system on it is soon "
              "confused; as the target of a copy it measures the source.")
          .Param("size", &Config::size, {.help = "size of the disk", .magic = true})
          .Example("null:1T")
          .Make(MakeLayer));
  return spec;
}

}  // namespace blk
