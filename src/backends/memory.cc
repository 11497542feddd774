// memory: a RAM disk, up to 2^63-1 bytes; the content ends with the process.
//
// Parallel-safe: all connections share one device over a PageStore, which takes care of itself
// (page_store.h).
#include <memory>
#include <string>

#include "absl/strings/str_format.h"
#include "src/backends/page_store.h"
#include "src/backends/store_device.h"
#include "src/core/error.h"
#include "src/core/spec.h"
#include "src/core/trace.h"

namespace blk {
namespace {

struct Config {
  Size size;
  std::string allocator = "sparse";
};

std::string Summary(const PageStore& store) {
  const PageStore::Stats stats = store.stats();
  return absl::StrFormat("memory: %d bytes allocated, %d bytes stored, ratio %.2f",
                         stats.logical_bytes, stats.stored_bytes,
                         stats.stored_bytes ? 1.0 * stats.logical_bytes / stats.stored_bytes : 1);
}

class MemoryLayer final : public Layer {
 public:
  explicit MemoryLayer(Config config) : config_(std::move(config)) {}

  absl::Status Ready() override {
    BLK_ASSIGN_OR_RETURN(auto store, PageStore::Create(config_.allocator, config_.size.bytes));
    device_ = std::make_shared<StoreDevice>(std::move(store), config_.size.bytes);
    return absl::OkStatus();
  }
  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs) override {
    return absl::StatusOr<DevicePtr>(device_);
  }
  Task<absl::Status> Stop() override {
    LogDebug(Summary(device_->store()));
    return absl::OkStatus();
  }

 private:
  const Config config_;
  std::shared_ptr<StoreDevice> device_;
};

}  // namespace

const Spec& MemorySpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<Config>("memory", "RAM disk, which takes memory only for what is written")
          .Param("size", &Config::size,
                 {.help = "size of the disk", .required = true, .magic = true})
          .Param("allocator", &Config::allocator,
                 {.help = "sparse, malloc[,mlock=true], zstd[,level=N] or dedup"})
          .Description(
              "All clients share one disk, zeroes at first, which is gone when the process "
              "ends.\n\n"
              "The sparse allocator takes memory only for what is written, and gives it back when "
              "that is trimmed, so that a disk may be larger than any memory. malloc maps the "
              "whole disk, reports all of it as data, and with mlock=true pins it. zstd keeps the "
              "content compressed. dedup stores equal pages of 4 KiB once. With -v a line at the "
              "end tells what was allocated, what it took, and the ratio.")
          .Example("memory:1M")
          .Example("memory:7E", "larger than all memory")
          .Example("memory:64M(allocator=zstd)", "compressed")
          .Example("memory:64M(allocator=dedup)", "equal pages are stored once")
          .Example("memory:1M(allocator=malloc)")
          .Make([](Config config) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<MemoryLayer>(std::move(config));
          }));
  return spec;
}

}  // namespace blk
