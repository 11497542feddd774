// ones: every byte is 0xff, or another one of the user's choice; what is written is forgotten.
// Parallel-safe: the byte never changes.
#include <cstring>

#include "src/backends/one_device_layer.h"
#include "src/core/spec.h"

namespace blk {
namespace {

struct Config {
  Size size;
  uint8_t byte = 0xff;
};

class OnesDevice final : public Device {
 public:
  OnesDevice(Facts facts, uint8_t byte) : Device(std::move(facts)), byte_(byte) {}

 protected:
  Task<absl::Status> DoRead(const Call&, uint64_t, std::span<char> into) override {
    std::memset(into.data(), byte_, into.size());
    return absl::OkStatus();
  }
  Task<absl::Status> DoWrite(const Call&, uint64_t, std::span<const char>) override {
    return absl::OkStatus();
  }
  Task<absl::Status> DoZero(const Call&, uint64_t, uint64_t) override { return absl::OkStatus(); }
  // Allocated all over, whatever the byte is.
  Task<absl::Status> DoExtents(const Call&, std::string_view, ExtentList* list) override {
    list->Append(list->end() - list->next(), byte_ == 0 ? kExtentZero : kExtentData);
    return absl::OkStatus();
  }

 private:
  const uint8_t byte_;
};

absl::StatusOr<LayerPtr> MakeLayer(const Config& config) {
  Facts facts;
  facts.size = config.size.bytes;
  facts.trim = facts.zero = facts.fast_zero = true;
  facts.extents = true;
  facts.fua = facts.cache = Support::kNative;
  facts.multi_conn = true;
  facts.shared_buffers_ok = true;
  return MakeOneDeviceLayer<OnesDevice>(facts, config.byte);
}

}  // namespace

const Spec& OnesSpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<Config>("ones", "every byte is 0xff or another; forgets what is written")
          .Param("size", &Config::size,
                 {.help = "size of the disk", .required = true, .magic = true})
          .Param("byte", &Config::byte, {.help = "the byte that fills the disk"})
          .Example("ones:1M")
          .Example("ones:1M(byte=0x55)")
          .Make(MakeLayer));
  return spec;
}

}  // namespace blk
