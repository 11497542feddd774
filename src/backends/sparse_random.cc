// sparse-random: islands of random data in a sea of holes, in the shape of a virtual machine's
// disk, held nowhere.
// Parallel-safe: the layout never changes and every request is computed from it alone.
#include <optional>

#include "src/backends/generate/checked_device.h"
#include "src/backends/generate/seed.h"
#include "src/backends/generate/sparse_layout.h"
#include "src/backends/one_device_layer.h"
#include "src/core/spec.h"

namespace blk {
namespace {

using generate::Run;
using generate::SparseLayout;

// One call puts at most this many extents on a list; a map of a large disk is asked for in pieces.
constexpr size_t kExtentsPerCallMax = size_t{1} << 16;

struct Config {
  Size size;
  std::optional<uint64_t> seed;
  Percent percent{10};
  Size runlength{16 << 20};
  bool random_content = false;
};

class SparseRandomDevice final : public CheckedDevice<SparseLayout> {
 public:
  using CheckedDevice::CheckedDevice;

 protected:
  Task<absl::Status> DoExtents(const Call& call, std::string_view, ExtentList* list) override {
    size_t left = (call.flags & kRequestOne) ? 1 : kExtentsPerCallMax;
    content().ForEachRun(list->next(), list->end() - list->next(), [&](const Run& run) {
      list->Append(run.end - run.begin, run.data ? kExtentData : kExtentHoleZero);
      return --left > 0 && !list->full();
    });
    return absl::OkStatus();
  }
};

absl::StatusOr<LayerPtr> MakeLayer(const Config& config) {
  BLK_ASSIGN_OR_RETURN(const uint64_t seed, generate::SeedOrDraw(config.seed));
  Facts facts;
  facts.size = config.size.bytes;
  facts.trim = facts.zero = facts.fast_zero = true;  // a look at the layout, whatever the length
  facts.extents = true;
  facts.fua = Support::kNative;  // nothing is stored, so nothing can be lost
  facts.cache = Support::kNative;
  facts.multi_conn = true;
  return MakeOneDeviceLayer<SparseRandomDevice>(
      facts, SparseLayout({.size = config.size.bytes,
                           .seed = seed,
                           .percent = config.percent.value,
                           .run_length = config.runlength.bytes,
                           .random_content = config.random_content}));
}

}  // namespace

const Spec& SparseRandomSpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<Config>("sparse-random", "random data in a sparse layout; writes are compared")
          .Description(
              "A disk in the shape of a virtual machine's: runs of data between larger holes. It "
              "is computed, not stored, so that a disk of any size takes no memory; the same "
              "size, seed, percent and runlength always give the same disk.\n\n"
              "What is written must be what the disk holds already, else the write fails with "
              "EIO. Copied onto itself, the disk tests whatever did the copying.\n\n"
              "A block of data is one byte, repeated, different from those of the blocks beside "
              "it; with random-content=true every byte is random. Where percent and runlength "
              "exclude each other (short runs, hardly any hole), percent is kept and the runs "
              "grow.")
          .Param("size", &Config::size,
                 {.help = "size of the disk", .required = true, .magic = true})
          .Param("seed", &Config::seed,
                 {.help = "number that the disk follows from; another one each time if not given"})
          .Param("percent", &Config::percent, {.help = "share of the disk that is data"})
          .Param("runlength", &Config::runlength,
                 {.help = "mean length of a run of data", .min = "1"})
          .Param("random-content", &Config::random_content,
                 {.help = "make every byte random, not one byte a block"})
          .Example("sparse-random:1T(seed=7)", "a terabyte, a tenth of it data")
          .Example("sparse-random:64M(seed=1,percent=50,runlength=32K,random-content=true)",
                   "short runs that do not compress")
          .Make(MakeLayer));
  return spec;
}

}  // namespace blk
