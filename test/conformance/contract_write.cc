// The parts of the contract that write, or try to.
#include <algorithm>

#include "src/core/scope.h"
#include "test/conformance/contract.h"

namespace blk::test {
namespace {

constexpr uint64_t kLengthMax = 20'000;  // of most random requests

// A range of the window, in whole granules, often at an edge of it, sometimes all of it.
struct Range {
  uint64_t at, length;
};
Range PickRange(const Trial& trial, const Window& window, std::mt19937_64& random) {
  const uint64_t granule = trial.granule(), granules = window.size() / granule;
  const uint64_t most =
      std::min({granules, std::max<uint64_t>(1, kLengthMax / granule),
                std::max<uint64_t>(1, uint64_t{trial.device->facts().block.maximum} / granule)});
  uint64_t length = 1 + random() % most;
  if (random() % 4 == 0) length = std::min<uint64_t>(length, 3);
  uint64_t at = random() % (granules - length + 1);
  switch (random() % 8) {
    case 0:
      at = 0;
      break;
    case 1:
      at = granules - length;  // the very end
      break;
    case 2:
      at = std::min(at, at / 4096 * 4096);  // the beginning of a page
      break;
  }
  return {at * granule, length * granule};
}

std::string RandomBytes(std::mt19937_64& random, uint64_t length) {
  if (random() % 4 == 0) return std::string(length, static_cast<char>(random()));
  std::string bytes(length, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

Task<void> OneWrite(Trial* trial, Window* window, Range range, uint32_t flags, std::string data) {
  absl::Status status =
      co_await trial->device->Write({.flags = flags}, window->begin + range.at, data);
  if (!status.ok() && trial->traits.lossy) co_return;
  trial->ExpectOk(status, "write", window->begin + range.at, range.length);
  window->bytes.replace(range.at, range.length, data);
}

Task<void> OneZero(Trial* trial, Window* window, Range range, uint32_t flags) {
  const uint64_t offset = window->begin + range.at;
  absl::Status status = co_await trial->device->Zero({.flags = flags}, offset, range.length);
  if (!status.ok() && trial->traits.lossy) co_return;
  if ((flags & kFastZero) && ErrnoOf(status) == EOPNOTSUPP) co_return;  // nothing has changed
  trial->ExpectOk(status, "zero", offset, range.length);
  std::fill_n(window->bytes.begin() + range.at, range.length, '\0');
}

// Each byte is afterwards what it was, or zero.
Task<void> OneTrim(Trial* trial, Window* window, Range range, uint32_t flags) {
  const uint64_t offset = window->begin + range.at;
  absl::Status status = co_await trial->device->Trim({.flags = flags}, offset, range.length);
  if (!status.ok() && trial->traits.lossy) co_return;
  trial->ExpectOk(status, "trim", offset, range.length);
  Window now{offset, offset + range.length, {}};
  status = co_await ReadWindow(trial->device, &now);
  for (int i = 0; !status.ok() && trial->traits.lossy && i < 1000; ++i)
    status = co_await ReadWindow(trial->device, &now);
  trial->ExpectOk(status, "read after trim", offset, range.length);
  for (uint64_t i = 0; i < range.length; ++i) {
    char& old = window->bytes[range.at + i];
    if (now.bytes[i] != old && now.bytes[i] != 0) {
      trial->Expect(false, "a trim made something else than zeroes", offset + i);
      co_return;
    }
    old = now.bytes[i];
  }
}

Task<void> OneRandomRead(Trial* trial, const Window* window, Range range) {
  std::string got(range.length, '\x5a');
  absl::Status status = co_await trial->device->Read({}, window->begin + range.at, got);
  if (!status.ok() && trial->traits.lossy) co_return;
  trial->ExpectOk(status, "read", window->begin + range.at, range.length);
  trial->Expect(got == std::string_view(window->bytes).substr(range.at, range.length),
                "wrong content among random requests", window->begin + range.at, range.length);
}

Task<void> OneRequest(Trial* trial, Window* window, std::mt19937_64* random) {
  Range range = PickRange(*trial, *window, *random);
  const uint32_t fua = (*random)() % 8 == 0 ? kFua : 0;
  absl::Status status;
  switch ((*random)() % 12) {
    case 0:
      co_return co_await OneZero(trial, window, range, fua);
    case 1:
      co_return co_await OneZero(trial, window, range, fua | kNoHole);
    case 2:
      co_return co_await OneZero(trial, window, range, fua | kFastZero);
    case 3:
      co_return co_await OneTrim(trial, window, range, fua);
    case 4:
      status = co_await trial->device->Flush({});
      if (!trial->traits.lossy) trial->ExpectOk(status, "flush");
      co_return;
    case 5:
      status = co_await trial->device->Cache({}, window->begin + range.at, range.length);
      if (!trial->traits.lossy) trial->ExpectOk(status, "cache", window->begin + range.at);
      co_return;
    case 6:
    case 7:
      co_return co_await OneRandomRead(trial, window, range);
    default:
      co_return co_await OneWrite(trial, window, range, fua, RandomBytes(*random, range.length));
  }
}

// ---- Writes::kKeep

// A range that was written and then zeroed with NO_HOLE has no hole in it.
Task<void> CheckNoHole(Trial* trial, Window* window) {
  const uint64_t length = window->size();
  if (length == 0 || length > trial->device->facts().block.maximum) co_return;
  const Range range{0, length};
  co_await OneWrite(trial, window, range, 0, std::string(length, 'n'));
  co_await OneZero(trial, window, range, kNoHole);
  ExtentList list(window->begin, length);
  while (!list.full()) {
    uint64_t next = list.next();
    absl::Status status = co_await trial->device->Extents({}, kBaseAllocation, &list);
    if (!status.ok() || list.next() == next) co_return;  // found out by others
  }
  for (const Extent& extent : list.extents())
    trial->Expect(!(extent.flags & kExtentHole), "a hole in spite of NO_HOLE", window->begin);
}

Task<void> CheckCancelledWrite(Trial* trial, const Window* window) {
  if (window->size() < trial->granule()) co_return;
  std::stop_source source;
  source.request_stop();
  std::stop_token token = source.get_token();
  std::string data(trial->granule(), static_cast<char>(~window->bytes[0]));
  Call call{.stop = &token};
  trial->ExpectErrno(co_await trial->device->Write(call, window->begin, data), ECANCELED,
                     "cancelled write", window->begin);
  co_await CompareWindow(trial, window, "a cancelled write");
}

Task<void> CheckKeeping(Trial* trial, std::vector<Window>* windows) {
  std::mt19937_64 random(trial->seed);
  for (Window& window : *windows) {
    if (window.size() == 0) continue;
    co_await CheckCancelledWrite(trial, &window);
    for (int round = 0; round < trial->rounds(6); ++round) {
      for (int i = 0; i < trial->rounds(40); ++i) co_await OneRequest(trial, &window, &random);
      for (const Window& each : *windows) co_await CompareWindow(trial, &each, "random requests");
      if (trial->report->failures() > 20) co_return;
    }
    const Traits& traits = trial->traits;
    if (!traits.lossy && !traits.slow && !traits.hides_reserved)
      co_await CheckNoHole(trial, &window);
  }
}

// ---- The others: nothing ever changes

Task<void> ExpectWrite(Trial* trial, const Window* window, Range range, std::string data,
                       int errno_value) {
  const uint64_t offset = window->begin + range.at;
  for (uint32_t flags : {0u, kFua})
    trial->ExpectErrno(co_await trial->device->Write({.flags = flags}, offset, data), errno_value,
                       "write", offset, range.length);
}

Task<void> ExpectClear(Trial* trial, const Window* window, Range range, int errno_value) {
  const uint64_t offset = window->begin + range.at;
  for (uint32_t flags : {0u, kNoHole, kFua})
    trial->ExpectErrno(co_await trial->device->Zero({.flags = flags}, offset, range.length),
                       errno_value, "zero", offset, range.length);
  absl::Status fast = co_await trial->device->Zero({.flags = kFastZero}, offset, range.length);
  if (ErrnoOf(fast) != EOPNOTSUPP)
    trial->ExpectErrno(fast, errno_value, "fast zero", offset, range.length);
  trial->ExpectErrno(co_await trial->device->Trim({}, offset, range.length), errno_value, "trim",
                     offset, range.length);
}

Task<void> CheckUnchanging(Trial* trial, const Window* window) {
  std::mt19937_64 random(trial->seed);
  const Writes writes = trial->traits.writes;
  for (int i = 0; i < trial->rounds(60) && window->size() > 0; ++i) {
    Range range = PickRange(*trial, *window, random);
    std::string same = window->bytes.substr(range.at, range.length), other = same;
    other[random() % other.size()] ^= static_cast<char>(1 + random() % 255);
    bool zero = same.find_first_not_of('\0') == same.npos;
    int refusal = writes == Writes::kNoSpace ? ENOSPC : writes == Writes::kCompare ? EIO : 0;
    co_await ExpectWrite(trial, window, range, same, writes == Writes::kNoSpace ? ENOSPC : 0);
    co_await ExpectWrite(trial, window, range, other, refusal);
    co_await ExpectClear(trial, window, range, zero && writes == Writes::kCompare ? 0 : refusal);
  }
  trial->ExpectOk(co_await trial->device->Flush({}), "flush");
  co_await CompareWindow(trial, window, "writes that change nothing");
}

// ---- From all loops

struct Worker {
  Window window;
  std::mt19937_64 random;
};

Task<void> Work(Trial* trial, Loop* loop, Worker* worker) {
  Loop* home = Loop::Current();
  co_await ResumeOn{loop};
  for (int i = 0; i < trial->rounds(60) && worker->window.size() > 0; ++i) {
    co_await OneRequest(trial, &worker->window, &worker->random);
    if (i % 5 == 0) co_await Yield();
  }
  co_await ResumeOn{home};
}

}  // namespace

Task<void> CheckWrites(Trial* trial, std::vector<Window>* windows) {
  if (!trial->writable()) co_return;
  if (trial->traits.writes == Writes::kKeep) co_return co_await CheckKeeping(trial, windows);
  for (const Window& window : *windows) co_await CheckUnchanging(trial, &window);
}

Task<void> CheckConcurrentWrites(Trial* trial, Window* window) {
  if (!trial->writable() || trial->traits.writes != Writes::kKeep) co_return;
  constexpr uint64_t kWorkers = 6;
  // Borders on granules, and on nothing else.
  const uint64_t part = window->size() / kWorkers / trial->granule() * trial->granule();
  std::vector<Worker> workers(kWorkers);
  TaskScope scope;
  for (uint64_t i = 0; i < kWorkers; ++i) {
    uint64_t from = i * part, to = i + 1 == kWorkers ? window->size() : from + part;
    workers[i].window = {window->begin + from, window->begin + to,
                         window->bytes.substr(from, to - from)};
    workers[i].random.seed(trial->seed + i);
    scope.Spawn(Work(trial, trial->pool->loop(i % trial->pool->size()), &workers[i]));
  }
  co_await scope.Join();
  window->bytes.clear();
  for (const Worker& worker : workers) window->bytes += worker.window.bytes;
  co_await CompareWindow(trial, window, "requests of several loops");
}

Task<void> CheckTwoOpens(Trial* trial, Device* other, Window* window) {
  trial->Expect(other->size() == trial->device->size(), "two opens have different sizes");
  Trial second = *trial;
  second.device = other;
  if (!trial->device->facts().multi_conn || trial->traits.lossy) co_return;
  co_await CompareWindow(&second, window, "a second open");
  if (!trial->writable() || trial->traits.writes != Writes::kKeep || window->size() == 0) co_return;
  std::mt19937_64 random(trial->seed);
  for (int i = 0; i < trial->rounds(10); ++i) {
    Trial* writer = i % 2 ? trial : &second;
    Trial* reader = i % 2 ? &second : trial;
    for (int j = 0; j < 3; ++j) co_await OneRequest(writer, window, &random);
    writer->ExpectOk(co_await writer->device->Flush({}), "flush of one of two opens");
    co_await CompareWindow(reader, window, "writes and a flush through another open");
  }
}

}  // namespace blk::test
