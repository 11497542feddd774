#pragma once
// WindowDevice: a range of the device below as a device of its own. Passes data through untouched,
// so that borrowing and shared buffers go on working.
//
// Parallel-safe: no state. Owner: filters that select a part of a disk (offset, partition, ...).
#include "src/core/device.h"

namespace blk {

class WindowDevice : public Filter {
 public:
  // [start, start + size) must lie inside `below`.
  WindowDevice(DevicePtr below, uint64_t start, uint64_t size);

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    return below().Read(call, start_ + offset, into);
  }
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override {
    return below().Write(call, start_ + offset, from);
  }
  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override {
    return below().Trim(call, start_ + offset, length);
  }
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override {
    return below().Zero(call, start_ + offset, length);
  }
  Task<absl::Status> DoCache(const Call& call, uint64_t offset, uint64_t length) override {
    return below().Cache(call, start_ + offset, length);
  }
  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override;
  bool DoBorrow(const Call& call, uint64_t offset, uint64_t length, Loan* loan) override {
    return below().Borrow(call, start_ + offset, length, loan);
  }

 private:
  const uint64_t start_;
};

// EINVAL when the start is no multiple of the block size that the device below insists on: no
// request would be possible.
absl::StatusOr<DevicePtr> MakeWindow(DevicePtr below, uint64_t start, uint64_t size);

// Asks `device` for what lies at list->next() and after, there moved by `start`, and appends it.
Task<absl::Status> ExtentsMoved(Device* device, const Call& call, std::string_view context,
                                uint64_t start, ExtentList* list);

}  // namespace blk
