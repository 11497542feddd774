#include "src/core/device.h"

#include <algorithm>
#include <cerrno>

#include "src/core/loop.h"

namespace blk {
namespace {
constexpr size_t kZeroBytes = 64 << 10;
alignas(4096) constexpr char kZeroes[kZeroBytes] = {};
}  // namespace

std::atomic<bool> Device::shortcuts_off_{false};

absl::Status Device::RangeError(uint64_t offset, uint64_t length, Access access) const {
  const BlockSizes& block = facts_.block;
  if (offset > size() || length > size() - offset)
    return ErrnoErrorAsIs(access == Access::kWrite ? ENOSPC : EINVAL,
                          absl::StrCat("offset ", offset, " length ", length,
                                       " is beyond the end of the device (", size(), " bytes)"));
  return ErrnoErrorAsIs(EINVAL, absl::StrCat("offset ", offset, " length ", length,
                                             " is not a multiple of the minimum block size of ",
                                             block.minimum, " bytes"));
}

namespace {
inline absl::Status CheckTime(const Call& call) {
  if (call.stopped()) return ErrnoErrorAsIs(ECANCELED, "the request was cancelled");
  if (call.deadline_ns != INT64_MAX && Loop::Current()->NowNs() >= call.deadline_ns)
    return ErrnoErrorAsIs(ETIMEDOUT, "the request came too late");
  return absl::OkStatus();
}
}  // namespace

// The one check of every request that has a range.
inline absl::Status Device::CheckRange(const Call& call, uint64_t offset, uint64_t length,
                                       Access access) const {
  if (access != Access::kRead && facts_.read_only)
    return ErrnoErrorAsIs(EPERM, "the device is read-only");
  uint64_t bytes = size();
  if (offset > bytes || length > bytes - offset) return RangeError(offset, length, access);
  if (facts_.block.minimum > 1 && (offset | length) % facts_.block.minimum != 0 &&
      !facts_.block_is_advice)
    return RangeError(offset, length, access);
  return CheckTime(call);
}

// FUA where the device has none of its own: the operation, then a flush.
template <typename Argument>
Task<absl::Status> Device::ThenFlush(Task<absl::Status> (Device::*operation)(const Call&, uint64_t,
                                                                             Argument),
                                     Call call, uint64_t offset, Argument argument) {
  call.flags &= ~kFua;
  BLK_CO_RETURN_IF_ERROR(co_await (this->*operation)(call, offset, argument));
  co_return co_await DoFlush(call.With(0));
}

#define BLK_CHECK_RANGE(length, access)                                           \
  if (absl::Status blk_status = CheckRange(call, offset, length, Access::access); \
      !blk_status.ok())                                                           \
    return blk_status;                                                            \
  if ((length) == 0) return absl::OkStatus()

Task<absl::Status> Device::Read(const Call& call, uint64_t offset, std::span<char> into) {
  BLK_CHECK_RANGE(into.size(), kRead);
  return DoRead(call, offset, into);
}

Task<absl::Status> Device::Write(const Call& call, uint64_t offset, std::span<const char> from) {
  BLK_CHECK_RANGE(from.size(), kWrite);
  if ((call.flags & kFua) && facts_.fua != Support::kNative)
    return ThenFlush(&Device::DoWrite, call, offset, from);
  return DoWrite(call, offset, from);
}

Task<absl::Status> Device::Flush(const Call& call) {
  if (absl::Status status = CheckTime(call); !status.ok()) return status;
  return DoFlush(call);
}

Task<absl::Status> Device::Trim(const Call& call, uint64_t offset, uint64_t length) {
  BLK_CHECK_RANGE(length, kTrim);
  if ((call.flags & kFua) && facts_.fua != Support::kNative)
    return ThenFlush(&Device::DoTrim, call, offset, length);
  return DoTrim(call, offset, length);
}

Task<absl::Status> Device::Zero(const Call& call, uint64_t offset, uint64_t length) {
  BLK_CHECK_RANGE(length, kWrite);
  if ((call.flags & kFua) && facts_.fua != Support::kNative)
    return ThenFlush(&Device::DoZero, call, offset, length);
  return DoZero(call, offset, length);
}

Task<absl::Status> Device::Cache(const Call& call, uint64_t offset, uint64_t length) {
  BLK_CHECK_RANGE(length, kRead);
  return DoCache(call, offset, length);
}

Task<absl::Status> Device::Extents(const Call& call, std::string_view context, ExtentList* list) {
  uint64_t offset = list->next();
  BLK_CHECK_RANGE(list->end() - offset, kRead);
  return DoExtents(call, context, list);
}

bool Device::Borrow(const Call& call, uint64_t offset, uint64_t length, Loan* loan) {
  if (shortcuts_off_.load(std::memory_order_relaxed)) return false;
  if (length == 0 || !CheckRange(call, offset, length, Access::kRead).ok()) return false;
  return DoBorrow(call, offset, length, loan);
}

Task<absl::Status> Device::DoWrite(const Call&, uint64_t, std::span<const char>) {
  return ErrnoErrorAsIs(EPERM, "the device cannot be written");
}
Task<absl::Status> Device::DoFlush(const Call&) { return absl::OkStatus(); }
Task<absl::Status> Device::DoTrim(const Call&, uint64_t, uint64_t) { return absl::OkStatus(); }

Task<absl::Status> Device::DoZero(const Call& call, uint64_t offset, uint64_t length) {
  if (call.flags & kFastZero)
    co_return ErrnoErrorAsIs(EOPNOTSUPP, "zeroing here is no faster than writing");
  Call write = call.With(call.flags & kFua);
  while (length > 0) {
    size_t step = std::min<uint64_t>(length, std::min<size_t>(kZeroBytes, facts_.block.maximum));
    BLK_CO_RETURN_IF_ERROR(co_await DoWrite(write, offset, {kZeroes, step}));
    offset += step;
    length -= step;
    if (call.stopped()) co_return ErrnoErrorAsIs(ECANCELED, "the request was cancelled");
  }
  co_return absl::OkStatus();
}

Task<absl::Status> Device::DoCache(const Call&, uint64_t, uint64_t) { return absl::OkStatus(); }

Task<absl::Status> Device::DoExtents(const Call&, std::string_view, ExtentList* list) {
  list->Append(list->end() - list->next(), kExtentData);
  return absl::OkStatus();
}

Task<absl::Status> Device::DoClose() { return absl::OkStatus(); }
bool Device::DoBorrow(const Call&, uint64_t, uint64_t, Loan*) { return false; }

namespace {
Facts FilterFacts(Facts facts, bool passes_data) {
  facts.shared_buffers_ok = facts.shared_buffers_ok && passes_data;
  return facts;
}
}  // namespace

Filter::Filter(DevicePtr below, Facts facts, bool passes_data)
    : Device(FilterFacts(std::move(facts), passes_data)),
      below_(std::move(below)),
      passes_data_(passes_data) {}

Task<absl::Status> Filter::DoRead(const Call& call, uint64_t offset, std::span<char> into) {
  return below_->Read(call, offset, into);
}
Task<absl::Status> Filter::DoWrite(const Call& call, uint64_t offset, std::span<const char> from) {
  return below_->Write(call, offset, from);
}
Task<absl::Status> Filter::DoFlush(const Call& call) { return below_->Flush(call); }
Task<absl::Status> Filter::DoTrim(const Call& call, uint64_t offset, uint64_t length) {
  return below_->Trim(call, offset, length);
}
Task<absl::Status> Filter::DoZero(const Call& call, uint64_t offset, uint64_t length) {
  return below_->Zero(call, offset, length);
}
Task<absl::Status> Filter::DoCache(const Call& call, uint64_t offset, uint64_t length) {
  return below_->Cache(call, offset, length);
}
Task<absl::Status> Filter::DoExtents(const Call& call, std::string_view context, ExtentList* list) {
  return below_->Extents(call, context, list);
}
Task<absl::Status> Filter::DoClose() { return below_->Close(); }
bool Filter::DoBorrow(const Call& call, uint64_t offset, uint64_t length, Loan* loan) {
  return passes_data_ && below_->Borrow(call, offset, length, loan);
}

}  // namespace blk
