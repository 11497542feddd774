// memory: a RAM disk, up to 2^63-1 bytes; the content ends with the process.
//
// Parallel-safe: all connections share one device over a PageStore, which takes care of itself
// (page_store.h).
#include <memory>
#include <string>

#include "absl/strings/str_format.h"
#include "src/backends/page_store.h"
#include "src/core/error.h"
#include "src/core/loop.h"
#include "src/core/spec.h"
#include "src/core/trace.h"

namespace blk {
namespace {

// Compressing a few pages takes longer than handing them to another thread, where requests of one
// connection go on side by side; below, the loop does it at once.
constexpr uint64_t kPackBytesInline = 64 << 10;
// Giving memory back: 1 GiB takes 6 to 30 ms.
constexpr uint64_t kZeroBytesInline = 64 << 20;

struct Config {
  Size size;
  std::string allocator = "sparse";
};

class MemoryDevice final : public Device {
 public:
  MemoryDevice(std::unique_ptr<PageStore> store, Facts facts)
      : Device(std::move(facts)), store_(std::move(store)) {}

  std::string Summary() const {
    const PageStore::Stats stats = store_->stats();
    return absl::StrFormat("memory: %d bytes allocated, %d bytes stored, ratio %.2f",
                           stats.logical_bytes, stats.stored_bytes,
                           stats.stored_bytes ? 1.0 * stats.logical_bytes / stats.stored_bytes : 1);
  }

 protected:
  Task<absl::Status> DoRead(const Call&, uint64_t offset, std::span<char> into) override {
    if (into.size() > inline_bytes())
      return Elsewhere([=, this] { return store_->Read(offset, into); });
    return store_->Read(offset, into);
  }
  Task<absl::Status> DoWrite(const Call&, uint64_t offset, std::span<const char> from) override {
    if (from.size() > inline_bytes())
      return Elsewhere([=, this] { return store_->Write(offset, from); });
    return store_->Write(offset, from);
  }
  Task<absl::Status> DoTrim(const Call&, uint64_t offset, uint64_t length) override {
    return Clear(offset, length, true);
  }
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override {
    return Clear(offset, length, !(call.flags & kNoHole));
  }
  Task<absl::Status> DoExtents(const Call&, std::string_view, ExtentList* list) override {
    store_->Extents(list);
    return absl::OkStatus();
  }
  bool DoBorrow(const Call&, uint64_t offset, uint64_t length, Loan* loan) override {
    return store_->Borrow(offset, length, loan);
  }

 private:
  uint64_t inline_bytes() const { return store_->in_place() ? UINT64_MAX : kPackBytesInline; }

  Task<absl::Status> Clear(uint64_t offset, uint64_t length, bool may_trim) {
    if (length > kZeroBytesInline)
      return Elsewhere([=, this] { return store_->Zero(offset, length, may_trim); });
    return store_->Zero(offset, length, may_trim);
  }
  template <typename Work>
  static Task<absl::Status> Elsewhere(Work work) {
    absl::Status status;
    co_await Loop::Current()->Offload([&] { status = work(); });
    co_return status;
  }

  const std::unique_ptr<PageStore> store_;
};

class MemoryLayer final : public Layer {
 public:
  explicit MemoryLayer(Config config) : config_(std::move(config)) {}

  absl::Status Ready() override {
    BLK_ASSIGN_OR_RETURN(auto store, PageStore::Create(config_.allocator, config_.size.bytes));
    Facts facts;
    facts.size = config_.size.bytes;
    facts.trim = facts.zero = facts.fast_zero = facts.extents = true;
    // There is nothing that a flush could make safer.
    facts.fua = Support::kNative;
    facts.cache = Support::kNative;
    facts.multi_conn = true;
    facts.shared_buffers_ok = store->in_place();
    device_ = std::make_shared<MemoryDevice>(std::move(store), std::move(facts));
    return absl::OkStatus();
  }
  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs) override {
    return absl::StatusOr<DevicePtr>(device_);
  }
  Task<absl::Status> Stop() override {
    LogDebug(device_->Summary());
    return absl::OkStatus();
  }

 private:
  const Config config_;
  std::shared_ptr<MemoryDevice> device_;
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
