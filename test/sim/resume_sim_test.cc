// A copy with a journal whose target loses power: the next run finishes the job with what the disk
// and the journal still hold, whatever part of them that is.
#include <doctest/doctest.h>

#include "src/tools/copy_engine.h"
#include "src/tools/copy_journal.h"
#include "test/sim/seeds.h"
#include "test/sim/sim_device.h"
#include "test/temporary.h"

namespace blk::sim {
namespace {

const CopyIdentity kIdentity{"source", "size", "target", "inode"};

struct Run {
  SimLoop loop;
  std::unique_ptr<SimDevice> source, target;
  CopyOptions options;
  CopyProgress progress;
  absl::Status status;
  std::string after_crash;
  explicit Run(uint64_t seed) : loop(seed) {}
};

Facts DiskFacts(uint64_t size) {
  Facts facts;
  facts.size = size;
  facts.trim = facts.zero = facts.extents = true;
  facts.multi_conn = true;
  facts.fua = Support::kNative;
  return facts;
}

std::string Content(SimLoop* loop, uint64_t size) {
  std::string bytes(size, '\0');
  for (uint64_t at = 0; at < size;) {
    const uint64_t run = std::min(size - at, 1 + loop->Below(30'000));
    if (loop->OneIn(2))
      for (uint64_t i = 0; i < run; ++i) bytes[at + i] = static_cast<char>(loop->Random());
    at += run;
  }
  return bytes;
}

Task<int> Copy(Run* run) {
  Loop* loop = &run->loop;
  run->status = co_await CopyDevice({&loop, 1}, run->source.get(), run->target.get(), run->options,
                                    &run->progress);
  co_return 0;
}

// What a crash, or somebody, may do to the journal.
void Harm(SimLoop* loop, const std::string& path) {
  std::string bytes = ReadWholeFile(path);
  if (bytes.empty()) return;
  switch (loop->Below(6)) {
    case 0:
      bytes.resize(loop->Below(bytes.size()));
      break;
    case 1:
      bytes[loop->Below(bytes.size() - 16) + 16] ^= static_cast<char>(1 << loop->Below(8));
      break;
    case 2:
      bytes.append(1 + loop->Below(60), '\0');
      break;
  }
  std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes;
}

struct Bugs {
  bool flush_lies = false;
};
struct Tally {
  uint64_t resumed = 0, spared_bytes = 0;
} tally;

std::string RunResume(uint64_t seed, Bugs bugs) {
  static const TemporaryDirectory folder;
  const std::string path = folder / "journal";
  unlink(path.c_str());
  SimLoop dice(seed);
  const uint64_t size = 1 + dice.Below(300'000);
  const std::string content = Content(&dice, size);
  CopyOptions options;
  options.request_bytes = 512 << dice.Below(6);
  options.queue_bytes_max = options.request_bytes * (1 + dice.Below(4));
  options.requests_max = 1 + dice.Below(6);
  options.extents = dice.OneIn(2);
  std::string disk = Content(&dice, size);  // what was there before
  for (int attempt = 0; attempt < 4; ++attempt) {
    auto journal = CopyJournal::Open(path, kIdentity, size);
    if (!journal.ok()) return absl::StrCat("the journal: ", journal.status().message());
    const uint64_t finished = (*journal)->finished().bytes();
    auto* run = new Run(seed * 4 + attempt);  // leaked with its frames if they never end
    DeviceFaults faults;
    faults.flush_lies = bugs.flush_lies;
    if (dice.OneIn(3)) faults.write_fails_one_in = 100;
    if (dice.OneIn(4)) faults.flush_fails_one_in = 6;
    faults.flush_forgets_once = seed % 2;
    if (attempt == 3) faults = {.flush_lies = bugs.flush_lies};
    run->source = std::make_unique<SimDevice>(&run->loop, DiskFacts(size), DeviceFaults{});
    run->source->Fill(content);
    run->target = std::make_unique<SimDevice>(&run->loop, DiskFacts(size), faults);
    run->target->Fill(disk);
    run->options = options;
    run->options.journal = journal->get();
    if (attempt < 3)
      run->loop.StartTimer(run->loop.NowNs() + static_cast<int64_t>(dice.Below(600'000'000)),
                           [run] { run->after_crash = run->target->Crash(); });
    if (!run->loop.Run(Copy(run))) return "nothing left to run, but the copy has not ended";
    if (finished > 0) {
      ++tally.resumed;
      tally.spared_bytes += finished;
      if (run->progress.read > size - finished)
        return absl::StrCat("read ", run->progress.read.load(), " bytes when only ",
                            size - finished, " were missing");
    }
    const bool done = run->status.ok();
    disk = run->after_crash.empty() ? run->target->Crash() : run->after_crash;
    journal->reset();
    delete run;
    if (done) {
      if (access(path.c_str(), F_OK) == 0) return "a finished copy left its journal behind";
      return disk == content ? "" : "the copy is done, but the target differs from the source";
    }
    Harm(&dice, path);
  }
  return "a copy without faults failed";
}

std::string Resume(uint64_t seed) { return RunResume(seed, {}); }

}  // namespace

TEST_CASE("a copy that lost its target's power goes on, and is right in the end") {
  SeedsResult result = TrySeeds("resume", 1500, Resume);
  CHECK_MESSAGE(result.failure.empty(), result.failure);
  MESSAGE("resume: ", result.tried, " seeds, ", tally.resumed, " copies resumed, ",
          tally.spared_bytes, " bytes not copied again");
  CHECK((tally.resumed > 0 || result.tried == 1));
}

TEST_CASE("the judge of resumed copies finds a target that forgets what it flushed") {
  CHECK(AnySeedFails(300, [](uint64_t seed) { return RunResume(seed, {.flush_lies = true}); }));
}

}  // namespace blk::sim
