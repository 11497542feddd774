// The parts of the contract that change nothing.
#include <unistd.h>

#include <algorithm>
#include <bit>

#include "src/core/file_io.h"
#include "test/conformance/contract.h"

namespace blk::test {
namespace {

constexpr uint64_t kWholeBytesMax = 256 << 10;  // a disk up to this size is one window
constexpr uint64_t kWindowBytes = 160 << 10;
constexpr uint64_t kAllPairsMax = 100;  // granules; in windows up to this, every pair is tried
constexpr size_t kFailuresKept = 5;

// Offsets within a window, in granules: all of them, or the edges of blocks and pages and a stride
// that no block size divides.
std::vector<uint64_t> PickOffsets(uint64_t granules, size_t wanted) {
  std::vector<uint64_t> picks;
  if (granules <= kAllPairsMax) {
    for (uint64_t i = 0; i <= granules; ++i) picks.push_back(i);
    return picks;
  }
  for (uint64_t edge : {uint64_t{0}, uint64_t{512}, uint64_t{4096}, uint64_t{32768},
                        uint64_t{65536}, granules / 2, granules}) {
    for (uint64_t at = edge - 1; at != edge + 2; ++at)
      if (at <= granules) picks.push_back(at);
  }
  uint64_t stride = std::max<uint64_t>(1, granules / wanted) | 1;
  for (uint64_t at = 0; at <= granules; at += stride) picks.push_back(at);
  std::sort(picks.begin(), picks.end());
  picks.erase(std::unique(picks.begin(), picks.end()), picks.end());
  return picks;
}

std::string Flatten(const Loan& loan) {
  std::string bytes;
  for (const iovec& span : loan.spans())
    bytes.append(static_cast<const char*>(span.iov_base), span.iov_len);
  if (const FileRange& range = loan.file(); range.file) {
    bytes.resize(range.length);
    BLK_CHECK(pread(range.file->fd(), bytes.data(), bytes.size(),
                    static_cast<off_t>(range.offset)) == static_cast<ssize_t>(bytes.size()));
  }
  return bytes;
}

Task<void> CheckOneRead(Trial* trial, const Window* window, uint64_t at, uint64_t length) {
  const uint64_t offset = window->begin + at;
  std::string_view want = std::string_view(window->bytes).substr(at, length);
  std::string got(length + 2, '\x5a');  // a byte on each side that must stay
  absl::Status status = co_await trial->device->Read({}, offset, {got.data() + 1, length});
  if (!status.ok() && trial->traits.lossy) co_return;
  trial->ExpectOk(status, "read", offset, length);
  trial->Expect(std::string_view(got).substr(1, length) == want, "read gives other bytes", offset,
                length);
  trial->Expect(got.front() == '\x5a' && got.back() == '\x5a', "read writes outside its span",
                offset, length);
  for (uint32_t flags : {uint32_t{0}, kLendFile}) {
    Loan loan;
    const bool lent = trial->device->Borrow({.flags = flags}, offset, length, &loan);
    trial->Expect(flags == kLendFile || !loan.file().file, "lends a file that was not asked for",
                  offset, length);
    trial->Expect(Flatten(loan) == (lent ? want : ""), "lent bytes differ from read ones", offset,
                  length);
  }
}

// Flags of each byte of a range, asked in whatever pieces the device gives; false on a failure.
Task<bool> CollectFlags(Trial* trial, uint64_t offset, uint64_t length, uint32_t call_flags,
                        size_t extents_max, std::vector<uint8_t>* flags) {
  flags->clear();
  while (flags->size() < length) {
    uint64_t start = offset + flags->size();
    ExtentList list(start, length - flags->size(), extents_max);
    Call call{.flags = call_flags};
    absl::Status status = co_await trial->device->Extents(call, kBaseAllocation, &list);
    if (!status.ok() && trial->traits.lossy) co_return false;
    trial->ExpectOk(status, "extents", start, list.end() - start);
    bool good = status.ok() && !list.empty() && list.size() <= extents_max &&
                list.start() == start && list.next() > start && list.next() <= list.end();
    trial->Expect(good, "extents make no progress or leave their range", start, list.end() - start);
    if (!good) co_return false;
    for (const Extent& extent : list.extents()) {
      trial->Expect((extent.flags & ~kExtentHoleZero) == 0, "unknown extent flags", start);
      flags->insert(flags->end(), extent.length, static_cast<uint8_t>(extent.flags));
    }
  }
  co_return true;
}

}  // namespace

// ---- Report and Trial

void Report::Fail(std::string what) {
  ++failures_;
  std::lock_guard lock(mutex_);
  if (first_.size() < kFailuresKept) first_.push_back(std::move(what));
}

std::string Report::text() const {
  std::lock_guard lock(mutex_);
  std::string text;
  for (const std::string& line : first_) absl::StrAppend(&text, "\n  ", line);
  return text;
}

void Trial::Expect(bool good, std::string_view what, uint64_t offset, uint64_t length) {
  if (!good) report->Fail(absl::StrCat(what, " (offset ", offset, " length ", length, ")"));
}

void Trial::ExpectOk(const absl::Status& status, std::string_view what, uint64_t offset,
                     uint64_t length) {
  if (!status.ok())
    report->Fail(
        absl::StrCat(what, " fails: ", status.message(), " (", offset, " length ", length, ")"));
}

void Trial::ExpectErrno(const absl::Status& status, int errno_value, std::string_view what,
                        uint64_t offset, uint64_t length) {
  if (ErrnoOf(status) != errno_value)
    report->Fail(absl::StrCat(what, " gives errno ", ErrnoOf(status), " instead of ", errno_value,
                              " (offset ", offset, " length ", length, ")"));
}

// ---- Windows

Task<absl::Status> ReadWindow(Device* device, Window* window) {
  window->bytes.assign(window->size(), '\x5a');
  const uint64_t step_max =
      device->facts().block.maximum / device->facts().block.minimum * device->facts().block.minimum;
  for (uint64_t at = 0; at < window->size();) {
    uint64_t step = std::min(window->size() - at, step_max);
    std::span<char> part(window->bytes.data() + at, step);
    BLK_CO_RETURN_IF_ERROR(co_await device->Read({}, window->begin + at, part));
    at += step;
  }
  co_return absl::OkStatus();
}

Task<std::vector<Window>> ReadWindows(Trial* trial) {
  const uint64_t size = trial->device->size(), granule = trial->granule();
  const uint64_t end = size / granule * granule;
  auto align = [granule](uint64_t offset) { return offset / granule * granule; };
  std::vector<Window> windows;
  if (end <= kWholeBytesMax) {
    windows.push_back({0, end, {}});
  } else {
    uint64_t middle = align(end / 2 + end / 7), last = align(end - kWindowBytes);
    windows.push_back({0, align(kWindowBytes), {}});
    if (middle >= kWindowBytes && middle + kWindowBytes / 4 <= last)
      windows.push_back({middle, align(middle + kWindowBytes / 4), {}});
    if (last >= kWindowBytes) windows.push_back({last, end, {}});
  }
  for (Window& window : windows) {
    absl::Status status = co_await ReadWindow(trial->device, &window);
    for (int i = 0; !status.ok() && trial->traits.lossy && i < 1000; ++i)
      status = co_await ReadWindow(trial->device, &window);
    trial->ExpectOk(status, "the first read of a window", window.begin, window.size());
  }
  co_return windows;
}

Task<void> CompareWindow(Trial* trial, const Window* window, std::string_view after) {
  Window now{window->begin, window->end, {}};
  absl::Status status = co_await ReadWindow(trial->device, &now);
  if (!status.ok() && trial->traits.lossy) co_return;
  trial->ExpectOk(status, absl::StrCat("read after ", after), window->begin, window->size());
  auto [a, b] = std::mismatch(now.bytes.begin(), now.bytes.end(), window->bytes.begin());
  trial->Expect(a == now.bytes.end(), absl::StrCat("wrong content after ", after),
                window->begin + (a - now.bytes.begin()), 1);
  std::vector<uint8_t> flags;
  if (!co_await CollectFlags(trial, window->begin, window->size(), 0, SIZE_MAX, &flags)) co_return;
  for (size_t i = 0; i < flags.size(); ++i) {
    if (!(flags[i] & kExtentZero) || window->bytes[i] == 0) continue;
    trial->Expect(false, absl::StrCat("extents call data zero after ", after), window->begin + i);
    co_return;
  }
}

// ---- Checks

void CheckFacts(Trial* trial) {
  const Facts& facts = trial->device->facts();
  const BlockSizes& block = facts.block;
  trial->Expect(trial->device->size() <= limits::kDiskBytesMax, "the size is over 2^63-1");
  trial->Expect(facts.size == trial->device->size(), "facts.size is not size()");
  trial->Expect(std::has_single_bit(block.minimum), "block.minimum is no power of two");
  trial->Expect(std::has_single_bit(block.preferred), "block.preferred is no power of two");
  trial->Expect(block.minimum <= block.preferred && block.preferred <= block.maximum,
                "block sizes are out of order");
  // NBD protocol, "Block size constraints": all ones mean that there is no limit.
  trial->Expect(block.maximum % block.minimum == 0 || block.maximum == UINT32_MAX,
                "block.maximum is no multiple of the minimum");
  trial->Expect(block.minimum <= 65536, "block.minimum is over 64K");
  trial->Expect(std::find(facts.contexts.begin(), facts.contexts.end(), kBaseAllocation) !=
                    facts.contexts.end(),
                "no context base:allocation");
}

Task<void> CheckReads(Trial* trial, const Window* window) {
  const uint64_t granule = trial->granule(), granules = window->size() / granule;
  std::vector<uint64_t> picks = PickOffsets(granules, trial->traits.slow ? 2 : 24);
  for (size_t i = 0; i < picks.size(); ++i) {
    for (size_t j = i + 1; j < picks.size(); ++j) {
      uint64_t at = picks[i] * granule, length = (picks[j] - picks[i]) * granule;
      if (trial->traits.slow && (i + j) % 16 != 0) continue;
      if (length <= trial->device->facts().block.maximum)
        co_await CheckOneRead(trial, window, at, length);
    }
    if (trial->report->failures() > 20) co_return;
  }
}

Task<void> CheckExtents(Trial* trial, const Window* window) {
  const uint64_t granule = trial->granule(), granules = window->size() / granule;
  std::vector<uint8_t> all, part;
  if (granules == 0 ||
      !co_await CollectFlags(trial, window->begin, window->size(), 0, SIZE_MAX, &all))
    co_return;
  const bool extents = trial->device->facts().extents;
  for (size_t i = 0; i < all.size(); ++i) {
    if (!extents) trial->Expect(all[i] == 0, "holes where facts.extents is false", i);
    if (!(all[i] & kExtentZero) || window->bytes[i] == 0) continue;
    trial->Expect(false, "an extent that reads as zeroes does not", window->begin + i);
    co_return;
  }
  std::mt19937_64 random(trial->seed);
  for (int round = 0; round < trial->rounds(60); ++round) {
    uint64_t from = random() % granules, to = from + 1 + random() % (granules - from);
    uint64_t at = from * granule, length = (to - from) * granule;
    uint32_t flags = round % 3 == 1 ? kRequestOne : 0;
    size_t extents_max = round % 3 == 2 ? 1 + random() % 4 : SIZE_MAX;
    uint64_t offset = window->begin + at;
    if (!co_await CollectFlags(trial, offset, length, flags, extents_max, &part)) co_return;
    if (trial->traits.hides_reserved) {
      // What a file system calls a hole changes while it writes back; the content does not.
      bool true_to_content = true;
      for (size_t i = 0; i < part.size(); ++i)
        true_to_content &= !(part[i] & kExtentZero) || window->bytes[at + i] == 0;
      trial->Expect(true_to_content, "an extent that reads as zeroes does not", offset, length);
      continue;
    }
    trial->Expect(std::equal(part.begin(), part.end(), all.begin() + at),
                  "extents from the middle differ from those of the whole", offset, length);
    if (trial->report->failures() > 20) co_return;
  }
}

namespace {

// All operations on one range; what they write is not looked at.
struct Operation {
  std::string_view name;
  bool writes;
  bool takes_space;
  Task<absl::Status> (*run)(Device* device, const Call* call, uint64_t offset, uint64_t length);
};

Task<absl::Status> RunRead(Device* device, const Call* call, uint64_t offset, uint64_t length) {
  std::string into(std::min<uint64_t>(length, 1 << 20), '\0');
  co_return co_await device->Read(*call, offset, into);
}
Task<absl::Status> RunWrite(Device* device, const Call* call, uint64_t offset, uint64_t length) {
  std::string from(std::min<uint64_t>(length, 1 << 20), 'w');
  co_return co_await device->Write(*call, offset, from);
}
Task<absl::Status> RunTrim(Device* device, const Call* call, uint64_t offset, uint64_t length) {
  return device->Trim(*call, offset, length);
}
Task<absl::Status> RunZero(Device* device, const Call* call, uint64_t offset, uint64_t length) {
  return device->Zero(*call, offset, length);
}
Task<absl::Status> RunCache(Device* device, const Call* call, uint64_t offset, uint64_t length) {
  return device->Cache(*call, offset, length);
}
Task<absl::Status> RunExtents(Device* device, const Call* call, uint64_t offset, uint64_t length) {
  ExtentList list(offset, length);
  co_return co_await device->Extents(*call, kBaseAllocation, &list);
}

constexpr Operation kOperations[] = {
    {"read", false, false, RunRead},   {"write", true, true, RunWrite},
    {"trim", true, false, RunTrim},    {"zero", true, true, RunZero},
    {"cache", false, false, RunCache}, {"extents", false, false, RunExtents}};

Task<void> CheckRangeRefusals(Trial* trial, const Operation* operation) {
  const uint64_t size = trial->device->size(), granule = trial->granule();
  // The NBD protocol document, "Error values": a write beyond the end has no space; a read or a
  // trim is invalid.
  const int outside_errno = operation->takes_space ? ENOSPC : EINVAL;
  const int beyond = operation->writes && !trial->writable() ? EPERM : outside_errno;
  const int empty = operation->writes && !trial->writable() ? EPERM : 0;
  const Call call;
  const std::pair<uint64_t, uint64_t> outside[] = {{size, granule},
                                                   {size - size % granule, 2 * granule},
                                                   {UINT64_MAX, 1},
                                                   {size + granule, granule},
                                                   {uint64_t{1} << 63, granule}};
  for (auto [offset, length] : outside)
    trial->ExpectErrno(co_await operation->run(trial->device, &call, offset, length), beyond,
                       absl::StrCat(operation->name, " beyond the end"), offset, length);
  for (uint64_t offset : {uint64_t{0}, size / granule * granule})
    trial->ExpectErrno(co_await operation->run(trial->device, &call, offset, 0), empty,
                       absl::StrCat(operation->name, " of length 0"), offset, 0);
  if (granule == 1 || size < 2 * granule) co_return;
  const int unaligned = operation->writes && !trial->writable() ? EPERM : EINVAL;
  for (auto [offset, length] : {std::pair(uint64_t{1}, granule), std::pair(granule, granule - 1)})
    trial->ExpectErrno(co_await operation->run(trial->device, &call, offset, length), unaligned,
                       absl::StrCat(operation->name, " off the block size"), offset, length);
}

Task<void> CheckStopRefusals(Trial* trial, const Operation* operation) {
  if (trial->device->size() < trial->granule()) co_return;
  std::stop_source source;
  source.request_stop();
  std::stop_token token = source.get_token();
  const bool refused = operation->writes && !trial->writable();
  Call stopped{.stop = &token};
  trial->ExpectErrno(co_await operation->run(trial->device, &stopped, 0, trial->granule()),
                     refused ? EPERM : ECANCELED, absl::StrCat("cancelled ", operation->name));
  Call late{.deadline_ns = Loop::Current()->NowNs() - 1};
  trial->ExpectErrno(co_await operation->run(trial->device, &late, 0, trial->granule()),
                     refused ? EPERM : ETIMEDOUT, absl::StrCat("late ", operation->name));
  if (refused) {
    Call call;
    trial->ExpectErrno(co_await operation->run(trial->device, &call, 0, trial->granule()), EPERM,
                       absl::StrCat("read-only ", operation->name));
  }
}

}  // namespace

Task<void> CheckRefusals(Trial* trial) {
  for (const Operation& operation : kOperations) {
    co_await CheckRangeRefusals(trial, &operation);
    co_await CheckStopRefusals(trial, &operation);
  }
  std::stop_source source;
  source.request_stop();
  std::stop_token token = source.get_token();
  Call stopped{.stop = &token};
  trial->ExpectErrno(co_await trial->device->Flush(stopped), ECANCELED, "cancelled flush");
  Call late{.deadline_ns = Loop::Current()->NowNs() - 1};
  trial->ExpectErrno(co_await trial->device->Flush(late), ETIMEDOUT, "late flush");
  Loan loan;
  trial->Expect(!trial->device->Borrow({}, trial->device->size(), 1, &loan) &&
                    !trial->device->Borrow({}, UINT64_MAX, 1, &loan),
                "a loan beyond the end");
}

}  // namespace blk::test
