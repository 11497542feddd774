#include "test/sim/sim_device.h"

#include <algorithm>
#include <cstring>

namespace blk::sim {

SimDevice::SimDevice(SimLoop* loop, Facts facts, DeviceFaults faults)
    : Device(facts),
      loop_(loop),
      faults_(faults),
      durable_(facts.size, '\0'),
      current_(facts.size, '\0') {}

void SimDevice::Fill(std::string bytes) {
  BLK_CHECK(bytes.size() == size());
  durable_ = current_ = std::move(bytes);
  dirty_.clear();
}

std::string SimDevice::Crash() {
  crashed_ = true;
  // The order in which a disk writes its cache back is its own, but of two writes to one place the
  // newer wins if both were written.
  for (const Dirty& piece : dirty_)
    if (loop_->OneIn(2)) durable_.replace(piece.offset, piece.bytes.size(), piece.bytes);
  dirty_.clear();
  return durable_;
}

bool SimDevice::Fails(uint64_t one_in) {
  if (one_in == 0 || !loop_->OneIn(one_in)) return false;
  ++failures_;
  return true;
}

absl::Status SimDevice::Failure() {
  constexpr int kErrnos[] = {EIO, ENOSPC, ENOMEM};
  return ErrnoErrorAsIs(kErrnos[loop_->Below(std::size(kErrnos))], "the simulated disk failed");
}

Task<absl::Status> SimDevice::DoRead(const Call&, uint64_t offset, std::span<char> into) {
  co_await loop_->Delay(faults_.delay_ns_max);
  if (crashed_) co_return ErrnoErrorAsIs(EIO, "the simulated disk has no power");
  if (Fails(faults_.read_fails_one_in)) {
    std::fill(into.begin(), into.end(), '\xee');  // whoever uses it all the same is found out
    co_return Failure();
  }
  std::memcpy(into.data(), current_.data() + offset, into.size());
  co_return absl::OkStatus();
}

Task<absl::Status> SimDevice::DoWrite(const Call& call, uint64_t offset,
                                      std::span<const char> from) {
  return Change(&call, offset, from.data(), from.size());
}
Task<absl::Status> SimDevice::DoZero(const Call& call, uint64_t offset, uint64_t length) {
  return Change(&call, offset, nullptr, length);
}
Task<absl::Status> SimDevice::DoTrim(const Call& call, uint64_t offset, uint64_t length) {
  return Change(&call, offset, nullptr, length);
}

// Sector by sector, in two halves with a pause between, so that others see it half done and a crash
// finds it half done.
Task<absl::Status> SimDevice::Change(const Call* call, uint64_t offset, const char* from,
                                     uint64_t length) {
  const bool fua = call->flags & kFua;
  ++under_way_;
  co_await loop_->Delay(faults_.delay_ns_max);
  const bool fails = Fails(faults_.write_fails_one_in);
  if (fails && faults_.write_lies) --failures_;  // nobody can be blamed for not telling it
  uint64_t sectors = (offset + length + kSectorBytes - 1) / kSectorBytes - offset / kSectorBytes;
  uint64_t first = loop_->Below(sectors + 1);  // how many before the pause, or the failure
  uint64_t cut =
      std::clamp((offset / kSectorBytes + first) * kSectorBytes, offset, offset + length);
  if (!crashed_) Apply(offset, from, cut - offset);
  if (!fails) {
    co_await loop_->Delay(faults_.delay_ns_max);
    if (!crashed_) Apply(cut, from ? from + (cut - offset) : nullptr, offset + length - cut);
    if (!crashed_ && fua) MakeDurable(offset, length);
  }
  --under_way_;
  if (crashed_) co_return ErrnoErrorAsIs(EIO, "the simulated disk has no power");
  if (fails && !faults_.write_lies) co_return Failure();
  co_return absl::OkStatus();
}

void SimDevice::Apply(uint64_t offset, const char* from, uint64_t length) {
  if (length == 0) return;
  if (from) {
    current_.replace(offset, length, from, length);
  } else {
    current_.replace(offset, length, length, '\0');
  }
  for (uint64_t at = offset / kSectorBytes * kSectorBytes; at < offset + length; at += kSectorBytes)
    dirty_.push_back({at, current_.substr(at, kSectorBytes)});
}

// Whole sectors, as they are now: what was written to them before is overtaken.
void SimDevice::MakeDurable(uint64_t offset, uint64_t length) {
  const uint64_t begin = offset / kSectorBytes * kSectorBytes, end = offset + length;
  std::erase_if(dirty_, [&](const Dirty& d) { return d.offset >= begin && d.offset < end; });
  for (uint64_t at = begin; at < end; at += kSectorBytes)
    durable_.replace(at, kSectorBytes, current_, at, kSectorBytes);
}

Task<absl::Status> SimDevice::DoFlush(const Call&) {
  co_await loop_->Delay(faults_.delay_ns_max);
  if (crashed_) co_return ErrnoErrorAsIs(EIO, "the simulated disk has no power");
  if (faults_.flush_lies || (faults_.flush_early && under_way_ > 0)) co_return absl::OkStatus();
  if (flush_broken_) {
    ++failures_;
    co_return ErrnoErrorAsIs(EIO, "an earlier flush of the disk failed");
  }
  if (Fails(faults_.flush_fails_one_in)) {
    flush_broken_ = faults_.flush_failure_forgets;
    if (faults_.flush_failure_forgets || faults_.flush_forgets_once) dirty_.clear();
    co_return Failure();
  }
  for (const Dirty& piece : dirty_) durable_.replace(piece.offset, piece.bytes.size(), piece.bytes);
  dirty_.clear();
  co_return absl::OkStatus();
}

Task<absl::Status> SimDevice::DoExtents(const Call&, std::string_view, ExtentList* list) {
  co_await loop_->Delay(faults_.delay_ns_max);
  if (crashed_) co_return ErrnoErrorAsIs(EIO, "the simulated disk has no power");
  if (Fails(faults_.read_fails_one_in)) {
    --failures_;
    ++extents_failures_;
    co_return Failure();
  }
  size_t left = 1 + loop_->Below(6);  // answers end early
  for (uint64_t at = list->next(); at < list->end() && left > 0;) {
    uint64_t next = std::min(list->end(), (at / kSectorBytes + 1) * kSectorBytes);
    bool zero = std::all_of(current_.begin() + at, current_.begin() + next,
                            [](char byte) { return byte == 0; });
    size_t before = list->size();
    list->Append(next - at, zero ? kExtentHoleZero : kExtentData);
    if (list->size() > before) --left;
    at = next;
  }
  co_return absl::OkStatus();
}

}  // namespace blk::sim
