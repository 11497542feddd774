// example1: a fixed, read-only disk of zeroes, as nbdkit's first example has it. Parallel-safe: no
// state.
#include <cstring>

#include "src/backends/one_device_layer.h"
#include "src/core/spec.h"

namespace blk {
namespace {

Facts ExampleFacts() {
  Facts facts;
  facts.size = 100 << 20;
  facts.read_only = true;
  facts.flush = false;
  facts.fua = Support::kNone;
  facts.multi_conn = true;
  return facts;
}

class ExampleDevice final : public Device {
 public:
  ExampleDevice() : Device(ExampleFacts()) {}

 protected:
  Task<absl::Status> DoRead(const Call&, uint64_t, std::span<char> into) override {
    std::memset(into.data(), 0, into.size());
    return absl::OkStatus();
  }
};

}  // namespace

const Spec& Example1Spec() {
  static const Spec& spec =
      *new Spec(BackendSpec<NoConfig>("example1", "the smallest of backends: 100M of zeroes")
                    .Example("example1", "its disk")
                    .Make([](NoConfig) { return MakeOneDeviceLayer<ExampleDevice>(); }));
  return spec;
}

}  // namespace blk
