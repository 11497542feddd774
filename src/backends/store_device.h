#pragma once
// A PageStore as a Device: what the memory and data backends open.
//
// Parallel-safe: the store is. What would keep the loop for long goes to the offload pool.
#include <cstdint>
#include <memory>
#include <utility>

#include "src/backends/page_store.h"
#include "src/core/device.h"
#include "src/core/loop.h"

namespace blk {

class StoreDevice final : public Device {
 public:
  // A store of `size` bytes.
  StoreDevice(std::unique_ptr<PageStore> store, uint64_t size)
      : Device(MakeFacts(*store, size)), store_(std::move(store)) {}

  const PageStore& store() const { return *store_; }

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
  // Compressing a few pages takes longer than handing them to another thread, where requests of one
  // connection go on side by side; below, the loop does it at once.
  static constexpr uint64_t kPackBytesInline = 64 << 10;
  // Giving memory back: 1 GiB takes 6 to 30 ms.
  static constexpr uint64_t kZeroBytesInline = 64 << 20;

  static Facts MakeFacts(const PageStore& store, uint64_t size) {
    Facts facts;
    facts.size = size;
    facts.trim = facts.zero = facts.fast_zero = facts.extents = true;
    // There is nothing that a flush could make safer.
    facts.fua = Support::kNative;
    facts.cache = Support::kNative;
    facts.multi_conn = true;
    facts.shared_buffers_ok = store.in_place();
    return facts;
  }
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

}  // namespace blk
