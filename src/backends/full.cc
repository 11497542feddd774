// full: reads as zeroes and has no space left for any write, as a thin disk on a full host.
// Parallel-safe: it has no state.
#include <cerrno>
#include <cstring>

#include "src/backends/one_device_layer.h"
#include "src/core/spec.h"

namespace blk {
namespace {

struct Config {
  Size size;
};

class FullDevice final : public Device {
 public:
  using Device::Device;

 protected:
  Task<absl::Status> DoRead(const Call&, uint64_t, std::span<char> into) override {
    std::memset(into.data(), 0, into.size());
    return absl::OkStatus();
  }
  Task<absl::Status> DoWrite(const Call&, uint64_t, std::span<const char>) override {
    return NoSpace();
  }
  Task<absl::Status> DoTrim(const Call&, uint64_t, uint64_t) override { return NoSpace(); }
  Task<absl::Status> DoZero(const Call&, uint64_t, uint64_t) override { return NoSpace(); }
  Task<absl::Status> DoExtents(const Call&, std::string_view, ExtentList* list) override {
    list->Append(list->end() - list->next(), kExtentHoleZero);
    return absl::OkStatus();
  }

 private:
  static absl::Status NoSpace() {
    return ErrnoErrorAsIs(ENOSPC, "the disk is full, as it is meant to be");
  }
};

absl::StatusOr<LayerPtr> MakeLayer(const Config& config) {
  Facts facts;
  facts.size = config.size.bytes;
  facts.flush = false;
  facts.trim = facts.zero = facts.fast_zero = true;
  facts.extents = true;
  facts.fua = Support::kNone;
  facts.cache = Support::kNative;
  facts.multi_conn = true;
  facts.shared_buffers_ok = true;
  return MakeOneDeviceLayer<FullDevice>(facts);
}

}  // namespace

const Spec& FullSpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<Config>("full", "reads as zeroes, fails every write with ENOSPC")
          .Description("As a thinly provisioned disk whose host has run out of space: writes, "
                       "zeroes and trims all fail with ENOSPC.")
          .Param("size", &Config::size,
                 {.help = "size of the disk", .required = true, .magic = true})
          .Example("full:1M")
          .Make(MakeLayer));
  return spec;
}

}  // namespace blk
