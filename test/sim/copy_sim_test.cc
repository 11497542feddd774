// The engine of blk copy over disks that fail and wires that are cut: what it calls a success is an
// identical target on stable storage, everything else is an error that says where, and it ends.
#include <doctest/doctest.h>

#include "src/backends/nbd_pool.h"
#include "src/tools/copy_engine.h"
#include "test/sim/seeds.h"
#include "test/sim/sim_device.h"
#include "test/sim/sim_server.h"
#include "test/sim/world.h"

namespace blk::sim {
namespace {

// How one side of the copy is reached.
struct Side {
  std::unique_ptr<SimDevice> disk;
  std::unique_ptr<SimServer> server;    // null: used directly
  std::unique_ptr<NbdDevice> over_nbd;  // with a server
  bool faulty_wire = false;

  Device* device() const { return over_nbd ? static_cast<Device*>(over_nbd.get()) : disk.get(); }
};

struct Job {
  SimLoop loop;
  Side source, target;
  CopyOptions options;
  CopyProgress progress;
  absl::Status connected, copied;
  explicit Job(uint64_t seed) : loop(seed) {}
};

Facts RandomFacts(SimLoop* loop, uint64_t size) {
  Facts facts;
  facts.size = size;
  facts.block.minimum = size % 512 == 0 && loop->OneIn(2) ? 512 : 1;
  facts.trim = facts.zero = facts.fast_zero = true;
  facts.extents = !loop->OneIn(3);
  facts.fua = Support::kNative;
  facts.multi_conn = loop->OneIn(2);
  return facts;
}

// Runs of random bytes and of zeroes, of any length.
std::string RandomContent(SimLoop* loop, uint64_t size) {
  std::string bytes(size, '\0');
  for (uint64_t at = 0; at < size;) {
    uint64_t run = std::min(size - at, 1 + loop->Below(loop->OneIn(2) ? 20'000 : 700));
    if (loop->OneIn(2))
      for (uint64_t i = 0; i < run; ++i) bytes[at + i] = static_cast<char>(loop->Random());
    at += run;
  }
  return bytes;
}

CopyOptions RandomOptions(SimLoop* loop) {
  CopyOptions options;
  options.request_bytes = 512 << loop->Below(8);
  options.queue_bytes_max = options.request_bytes * (1 + loop->Below(20));
  options.requests_max = 1 + loop->Below(30);
  options.sparse_bytes = loop->OneIn(3) ? 0 : 512 << loop->Below(5);
  options.extents = !loop->OneIn(3);
  options.allocated = loop->OneIn(3);
  options.verify = loop->OneIn(3);
  options.whole_requests = loop->OneIn(3);
  if (loop->OneIn(3)) options.segment_bytes = options.request_bytes * (1 + loop->Below(10));
  return options;
}

StreamFaults RandomStreamFaults(SimLoop* loop, uint64_t size, bool* faulty) {
  StreamFaults faults;
  if (loop->OneIn(2)) return faults;
  uint64_t bytes = loop->OneIn(4) ? loop->Below(1500) : loop->Below(size * 2 + 1);
  if (loop->OneIn(2)) {
    faults.cut_after = bytes;
  } else {
    faults.stall_after = bytes;
    faults.stall_ns = kHourNs;
  }
  *faulty = true;
  return faults;
}

Task<absl::Status> ConnectSide(Job* job, Side* side) {
  side->server = std::make_unique<SimServer>(&job->loop, side->disk.get());
  NbdConnectOptions options;
  options.connect_seconds_max = 7200;
  options.structured_replies = !job->loop.OneIn(4);
  options.extended_headers = job->loop.OneIn(2);
  auto connect = [job, side, options] {
    return side->server->Connect(
        RandomStreamFaults(&job->loop, side->disk->size(), &side->faulty_wire), options);
  };
  auto first = co_await connect();
  if (!first.ok()) co_return first.status();
  side->over_nbd = std::make_unique<NbdDevice>(*std::move(first), connect,
                                               1 + static_cast<int>(job->loop.Below(4)));
  co_return absl::OkStatus();
}

Task<void> EndSide(Side* side) {
  if (side->over_nbd) (void)co_await side->over_nbd->Close();
  if (side->server) co_await side->server->Join(3 * kHourNs);
}

Task<int> Play(Job* job) {
  for (Side* side : {&job->source, &job->target})
    if (job->connected.ok() && job->loop.OneIn(2)) job->connected = co_await ConnectSide(job, side);
  if (job->connected.ok()) {
    Loop* loop = &job->loop;
    job->copied = co_await CopyDevice({&loop, 1}, job->source.device(), job->target.device(),
                                      job->options, &job->progress);
  }
  co_await EndSide(&job->source);
  co_await EndSide(&job->target);
  co_return 0;
}

bool SaysWhere(const absl::Status& status) {
  return status.message().find("at offset ") != std::string_view::npos ||
         status.message().find("flush of the target") != std::string_view::npos ||
         status.message().find("is not a multiple of") != std::string_view::npos;
}

std::string Judge(Job* job, const std::string& content, bool aligned) {
  const int failures = job->source.disk->failures() + job->target.disk->failures();
  const bool faulty = job->source.faulty_wire || job->target.faulty_wire;
  if (!job->connected.ok())
    return faulty ? "" : absl::StrCat("cannot connect: ", job->connected.message());
  if (!job->copied.ok()) {
    if (!SaysWhere(job->copied)) return absl::StrCat("does not say where: ", job->copied.message());
    const int extents_failures =
        job->source.disk->extents_failures() + job->target.disk->extents_failures();
    if (failures + extents_failures == 0 && !faulty && aligned)
      return absl::StrCat("nothing failed but: ", job->copied.message());
    return "";
  }
  if (failures > 0) return absl::StrCat("OK in spite of ", failures, " failures of the disks");
  if (job->target.disk->Crash().compare(0, content.size(), content) != 0)
    return "OK, but the target differs from the source after a crash";
  if (job->progress.done != content.size()) return "the progress is not the size of the disk";
  return "";
}

std::string Describe(const Job& job) {
  const CopyOptions& o = job.options;
  return absl::StrCat(
      "source ", job.source.disk->size(), job.source.over_nbd ? " over NBD" : "", ", target ",
      job.target.disk->size(), job.target.over_nbd ? " over NBD" : "", ", request_bytes ",
      o.request_bytes, " queue ", o.queue_bytes_max, " requests ", o.requests_max, " sparse ",
      o.sparse_bytes, o.extents ? " extents" : "", o.verify ? " verify" : "", ", failures ",
      job.source.disk->failures(), "+", job.target.disk->failures(), " wires ",
      job.source.faulty_wire, job.target.faulty_wire, ", done ", job.progress.done.load(),
      ", copied: ", job.copied.ToString(), " ", job.connected.ToString());
}

DeviceFaults RandomDeviceFaults(SimLoop* loop) {
  DeviceFaults faults;
  if (loop->OneIn(3)) faults.read_fails_one_in = 20 + loop->Below(200);
  if (loop->OneIn(3)) faults.write_fails_one_in = 20 + loop->Below(200);
  if (loop->OneIn(3)) faults.flush_fails_one_in = 2;
  return faults;
}

std::string RunCopy(uint64_t seed, DeviceFaults bugs) {
  auto* job = new Job(seed);  // leaked with its frames if they never end
  SimLoop& loop = job->loop;
  const uint64_t size = loop.OneIn(8)   ? loop.Below(3)
                        : loop.OneIn(2) ? 512 * loop.Below(400)
                                        : loop.Below(200'000);
  const uint64_t target_size = size + (loop.OneIn(3) ? loop.Below(5000) : 0);
  const bool failing = loop.OneIn(2);
  DeviceFaults source_faults = failing ? RandomDeviceFaults(&loop) : DeviceFaults{};
  DeviceFaults target_faults = failing ? RandomDeviceFaults(&loop) : DeviceFaults{};
  target_faults.flush_lies = bugs.flush_lies;
  target_faults.write_lies = bugs.write_lies;
  if (bugs.write_fails_one_in) target_faults.write_fails_one_in = bugs.write_fails_one_in;
  Facts source_facts = RandomFacts(&loop, size), target_facts = RandomFacts(&loop, target_size);
  job->source.disk = std::make_unique<SimDevice>(&loop, source_facts, source_faults);
  job->target.disk = std::make_unique<SimDevice>(&loop, target_facts, target_faults);
  const std::string content = RandomContent(&loop, size);
  job->source.disk->Fill(content);
  job->options = RandomOptions(&loop);
  job->options.destination_is_zero = loop.OneIn(3);
  if (!job->options.destination_is_zero) job->target.disk->Fill(RandomContent(&loop, target_size));
  if (!loop.Run(Play(job)))
    return "nothing left to run, but the copy has not ended; so far: " + Describe(*job);
  const uint64_t granule = std::max(source_facts.block.minimum, target_facts.block.minimum);
  std::string wrong = Judge(job, content, size % granule == 0);
  delete job;
  return wrong;
}

std::string Copy(uint64_t seed) { return RunCopy(seed, {}); }

}  // namespace

TEST_CASE("a copy is identical and durable, or an error that says where") {
  SeedsResult result = TrySeeds("copy", 6000, Copy);
  CHECK_MESSAGE(result.failure.empty(), result.failure);
  MESSAGE("copy: ", result.tried, " seeds");
}

TEST_CASE("the judge of copies finds a target that lies") {
  CHECK(AnySeedFails(300, [](uint64_t seed) { return RunCopy(seed, {.flush_lies = true}); }));
  CHECK(AnySeedFails(300, [](uint64_t seed) {
    return RunCopy(seed, {.write_fails_one_in = 50, .write_lies = true});
  }));
}

}  // namespace blk::sim
