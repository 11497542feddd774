// zero: a read-only disk of no bytes, for the corner cases of protocol and clients.
// Parallel-safe: it has no state.
#include "src/backends/one_device_layer.h"
#include "src/core/spec.h"

namespace blk {
namespace {

class ZeroDevice final : public Device {
 public:
  using Device::Device;

 protected:
  Task<absl::Status> DoRead(const Call&, uint64_t, std::span<char>) override {
    return absl::OkStatus();  // the door lets no read of more than 0 bytes through
  }
};

absl::StatusOr<LayerPtr> MakeLayer(const NoConfig&) {
  Facts facts;
  facts.read_only = true;
  facts.flush = false;
  facts.fua = Support::kNone;
  facts.cache = Support::kNative;
  facts.multi_conn = true;
  facts.shared_buffers_ok = true;
  return MakeOneDeviceLayer<ZeroDevice>(facts);
}

}  // namespace

const Spec& ZeroSpec() {
  static const Spec& spec = *new Spec(BackendSpec<NoConfig>("zero", "a read-only disk of no bytes")
                                          .Example("zero")
                                          .Make(MakeLayer));
  return spec;
}

}  // namespace blk
