#pragma once
// Request: one operation on a device as a value, and RequestFilter, a filter that sees every
// operation in one place. For filters that treat all operations much alike: delay them, refuse
// them, count them, write them down, repeat them.
//
// Owner: the filters. Threads: any loop, any number of requests at a time.
#include <string_view>

#include "src/core/device.h"

namespace blk {

enum class Operation : uint8_t { kRead, kWrite, kTrim, kZero, kExtents, kCache, kFlush };
inline constexpr int kOperations = 7;

// "read", "write", "trim", "zero", "extents", "cache", "flush".
std::string_view OperationName(Operation operation);

// What it points to lives as long as the operation that it was made from.
struct Request {
  Operation operation;
  const Call* call;
  uint64_t offset = 0, length = 0;
  std::span<char> into = {};        // kRead
  std::span<const char> from = {};  // kWrite
  std::string_view context = {};    // kExtents, as is the next
  ExtentList* list = nullptr;

  bool has(uint32_t flag) const { return (call->flags & flag) != 0; }
};

// Through the door of `device`.
Task<absl::Status> Perform(Device* device, const Request& request);

// Waits; ECANCELED when the call is stopped and ETIMEDOUT when it is late by then, at once.
Task<absl::Status> SleepFor(const Call& call, int64_t duration_ns);

class RequestFilter : public Filter {
 public:
  // FUA goes down with the request: the device below knows how to do it.
  explicit RequestFilter(DevicePtr below) : RequestFilter(below, below->facts()) {}
  RequestFilter(DevicePtr below, Facts facts);

 protected:
  // Does the request, usually by Perform(&below(), request) at some point.
  virtual Task<absl::Status> Handle(Request request) = 0;

 private:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) final;
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset, std::span<const char> from) final;
  Task<absl::Status> DoFlush(const Call& call) final;
  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) final;
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) final;
  Task<absl::Status> DoCache(const Call& call, uint64_t offset, uint64_t length) final;
  Task<absl::Status> DoExtents(const Call& call, std::string_view context, ExtentList* list) final;
};

}  // namespace blk
