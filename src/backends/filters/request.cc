#include "src/backends/filters/request.h"

#include <algorithm>
#include <cerrno>

#include "src/core/loop.h"

namespace blk {
namespace {

constexpr int64_t kSleepNsMax = INT64_MAX / 4;  // 73 years: added to a clock it still fits

Facts WithFua(Facts facts) {
  if (facts.fua != Support::kEmulate) return facts;
  facts.fua = Support::kNative;
  facts.fua_by_flush = true;
  return facts;
}

}  // namespace

std::string_view OperationName(Operation operation) {
  constexpr std::string_view kNames[kOperations] = {"read",    "write", "trim", "zero",
                                                    "extents", "cache", "flush"};
  return kNames[static_cast<int>(operation)];
}

Task<absl::Status> Perform(Device* device, const Request& request) {
  const Call& call = *request.call;
  switch (request.operation) {
    case Operation::kRead:
      return device->Read(call, request.offset, request.into);
    case Operation::kWrite:
      return device->Write(call, request.offset, request.from);
    case Operation::kTrim:
      return device->Trim(call, request.offset, request.length);
    case Operation::kZero:
      return device->Zero(call, request.offset, request.length);
    case Operation::kExtents:
      return device->Extents(call, request.context, request.list);
    case Operation::kCache:
      return device->Cache(call, request.offset, request.length);
    case Operation::kFlush:
      break;
  }
  return device->Flush(call);
}

Task<absl::Status> SleepFor(const Call& call, int64_t duration_ns) {
  if (duration_ns <= 0) co_return absl::OkStatus();
  duration_ns = std::min(duration_ns, kSleepNsMax);
  const int64_t left_ns = call.deadline_ns == INT64_MAX
                              ? INT64_MAX
                              : std::max<int64_t>(call.deadline_ns - Loop::Current()->NowNs(), 0);
  BLK_CO_RETURN_IF_ERROR(
      co_await Loop::Current()->Sleep(std::min(duration_ns, left_ns), call.stop));
  if (left_ns <= duration_ns) co_return ErrnoErrorAsIs(ETIMEDOUT, "the request took too long");
  co_return absl::OkStatus();
}

RequestFilter::RequestFilter(DevicePtr below, Facts facts)
    : Filter(std::move(below), WithFua(std::move(facts))) {}

Task<absl::Status> RequestFilter::DoRead(const Call& call, uint64_t offset, std::span<char> into) {
  return Handle({Operation::kRead, &call, offset, into.size(), into});
}
Task<absl::Status> RequestFilter::DoWrite(const Call& call, uint64_t offset,
                                          std::span<const char> from) {
  return Handle({Operation::kWrite, &call, offset, from.size(), {}, from});
}
Task<absl::Status> RequestFilter::DoFlush(const Call& call) {
  return Handle({Operation::kFlush, &call});
}
Task<absl::Status> RequestFilter::DoTrim(const Call& call, uint64_t offset, uint64_t length) {
  return Handle({Operation::kTrim, &call, offset, length});
}
Task<absl::Status> RequestFilter::DoZero(const Call& call, uint64_t offset, uint64_t length) {
  return Handle({Operation::kZero, &call, offset, length});
}
Task<absl::Status> RequestFilter::DoCache(const Call& call, uint64_t offset, uint64_t length) {
  return Handle({Operation::kCache, &call, offset, length});
}
Task<absl::Status> RequestFilter::DoExtents(const Call& call, std::string_view context,
                                            ExtentList* list) {
  return Handle({Operation::kExtents,
                 &call,
                 list->next(),
                 list->end() - list->next(),
                 {},
                 {},
                 context,
                 list});
}

}  // namespace blk
