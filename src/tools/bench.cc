#include "src/tools/bench.h"

#include <sys/resource.h>

#include <algorithm>
#include <bit>
#include <cstdio>
#include <memory>

#include "absl/strings/str_format.h"
#include "src/core/buffer.h"
#include "src/core/scope.h"
#include "src/core/sync.h"
#include "src/tools/endpoint.h"
#include "src/tools/latency.h"

namespace blk {
namespace {

enum class Pattern { kRandom, kSequential };

struct BenchConfig : CommonOptions {
  Percent writes{0};
  Size block_size{4096};
  int depth = 32;
  int connections = 1;
  Pattern pattern = Pattern::kRandom;
  Nanoseconds seconds = std::chrono::seconds(5);
  std::optional<uint64_t> count;
  Size offset;
  std::optional<Size> length;
  int threads = 0;
  bool shm = true;
  bool json = false;
};

const ParamTable<BenchConfig>& BenchRows() {
  static const auto& table = *[] {
    auto* rows = new ParamTable<BenchConfig>;
    using C = BenchConfig;
    rows->Param("writes", &C::writes,
                {.help = "share of writes, which OVERWRITE the disk; the rest are reads",
                 .letter = 'w'})
        .Param("block-size", &C::block_size,
               {.help = "bytes of each request", .letter = 'b', .min = "1", .max = "32M"})
        .Param("depth", &C::depth,
               {.help = "requests in flight on each connection",
                .letter = 'd',
                .min = "1",
                .max = "256"})
        .Param("connections", &C::connections,
               {.help = "connections to an NBD server; else, workers",
                .letter = 'C',
                .min = "1",
                .max = "128"})
        .Param("pattern", &C::pattern,
               {{"random", Pattern::kRandom}, {"sequential", Pattern::kSequential}},
               {.help = "where the requests go"})
        .Param("seconds", &C::seconds, {.help = "how long", .letter = 's'})
        .Param("count", &C::count, {.help = "so many requests instead", .letter = 'n'})
        .Param("offset", &C::offset, {.help = "begin of the part of the disk that is used"})
        .Param("length", &C::length, {.help = "its length"})
        .Param("threads", &C::threads,
               {.help = "event loops; 0: one for each connection, at most one for each processor",
                .letter = 'T',
                .min = "0"})
        .Param("shm", &C::shm, {.help = "share memory with blk servers on Unix sockets"})
        .Param("json", &C::json, {.help = "print JSON"});
    return &AddCommonOptions(*rows);
  }();
  return table;
}

struct BenchJob {
  BenchJob(BenchConfig c, Endpoint d, LoopPool* l)
      : config(std::move(c)), disk(std::move(d)), loops(l) {}
  BenchConfig config;
  Endpoint disk;
  LoopPool* loops;
  std::shared_ptr<Arena> arena;          // the buffers are in it
  uint64_t first = 0, blocks = 0;        // the part that is used, in whole blocks
  std::atomic<uint64_t> next{0};         // sequential: the next block
  std::atomic<int64_t> left{INT64_MAX};  // requests
  std::atomic<bool> stop{false};
  int64_t end_ns = 0;
  std::mutex mutex = {};
  absl::Status failure;  // guarded by mutex, as are the next two
  LatencyHistogram reads = {}, writes = {};
};

// One request after the other.
Task<void> Worker(BenchJob* job, Device* device, uint64_t number, LatencyHistogram* reads,
                  LatencyHistogram* writes) {
  const uint64_t bytes = job->config.block_size.bytes;
  const auto write_share = static_cast<uint64_t>(job->config.writes.value / 100 * UINT32_MAX);
  Loop* loop = Loop::Current();
  ArenaPiece piece = job->arena ? ArenaPiece(job->arena.get(), bytes) : ArenaPiece();
  Buffer own(piece ? 0 : bytes);
  std::span<char> buffer(piece ? piece.data() : own.data(), bytes);
  for (size_t i = 0; i < bytes; ++i)
    buffer[i] = static_cast<char>((i + number) * 2654435761u >> 13);
  Call call;
  while (!job->stop.load(std::memory_order_relaxed) &&
         job->left.fetch_sub(1, std::memory_order_relaxed) > 0) {
    uint64_t random = loop->Random();
    uint64_t block =
        job->config.pattern == Pattern::kRandom
            ? static_cast<uint64_t>((static_cast<unsigned __int128>(random) * job->blocks) >> 64)
            : job->next.fetch_add(1, std::memory_order_relaxed) % job->blocks;
    uint64_t offset = job->first + block * bytes;
    const bool write = (random & UINT32_MAX) < write_share;
    int64_t start_ns = loop->NowNs();
    absl::Status status = write ? co_await device->Write(call, offset, buffer)
                                : co_await device->Read(call, offset, buffer);
    int64_t now_ns = loop->NowNs();
    (write ? writes : reads)->Add(now_ns - start_ns);
    if (now_ns >= job->end_ns) job->stop = true;
    if (!status.ok()) {
      std::lock_guard lock(job->mutex);
      if (job->failure.ok())
        job->failure =
            Annotate(status, absl::StrCat(write ? "write" : "read", " at offset ", offset));
      job->stop = true;
    }
  }
}

Task<void> LoopOfWorkers(BenchJob* job, Device* device, Loop* loop, size_t workers,
                         uint64_t first) {
  Loop* home = Loop::Current();
  co_await ResumeOn{loop};
  auto reads = std::make_unique<LatencyHistogram>(), writes = std::make_unique<LatencyHistogram>();
  {
    TaskScope scope;
    for (size_t i = 0; i < workers; ++i) {
      // Devices that never wait must let the other workers start, and the timer fire.
      scope.Spawn(Worker(job, device, first + i, reads.get(), writes.get()));
    }
    co_await scope.Join();
  }
  {
    std::lock_guard lock(job->mutex);
    job->reads.Merge(*reads);
    job->writes.Merge(*writes);
  }
  co_await ResumeOn{home};
}

double CpuSeconds() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  auto seconds = [](const timeval& t) { return t.tv_sec + t.tv_usec / 1e6; };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

void PrintOne(const char* name, const LatencyHistogram& h, double seconds, uint64_t bytes,
              bool json, bool* first) {
  if (h.count() == 0) return;
  double iops = h.count() / seconds;
  if (json) {
    std::printf(
        "%s  \"%s\": {\"requests\": %ju, \"iops\": %.0f, \"bytes_per_second\": %.0f, "
        "\"latency_ns\": {\"min\": %ju, \"mean\": %.0f, \"p50\": %ju, \"p90\": %ju, "
        "\"p99\": %ju, \"p99.9\": %ju, \"max\": %ju}}",
        *first ? "" : ",\n", name, uintmax_t{h.count()}, iops, iops * bytes, uintmax_t{h.min_ns()},
        h.mean_ns(), uintmax_t{h.Percentile(0.5)}, uintmax_t{h.Percentile(0.9)},
        uintmax_t{h.Percentile(0.99)}, uintmax_t{h.Percentile(0.999)}, uintmax_t{h.max_ns()});
  } else {
    auto us = [](double ns) { return ns / 1000; };
    std::printf(
        "%-6s %10.0f IOPS  %10s/s   latency us: mean %.1f  p50 %.1f  p90 %.1f  p99 %.1f  "
        "p99.9 %.1f  max %.1f\n",
        name, iops, FormatSizeRounded(static_cast<uint64_t>(iops * bytes)).c_str(), us(h.mean_ns()),
        us(h.Percentile(0.5)), us(h.Percentile(0.9)), us(h.Percentile(0.99)),
        us(h.Percentile(0.999)), us(h.max_ns()));
  }
  *first = false;
}

void PrintResults(const BenchJob& job, double seconds, double cpu_seconds) {
  const uint64_t bytes = job.config.block_size.bytes;
  const uint64_t requests = job.reads.count() + job.writes.count();
  bool first = true;
  if (job.config.json) std::printf("{\n");
  PrintOne("read", job.reads, seconds, bytes, job.config.json, &first);
  PrintOne("write", job.writes, seconds, bytes, job.config.json, &first);
  const double each_us = requests ? cpu_seconds * 1e6 / requests : 0;
  if (job.config.json) {
    std::printf(
        "%s  \"seconds\": %.3f, \"block_size\": %ju, \"depth\": %d, \"connections\": %d, "
        "\"client_cpu_us_per_request\": %.3f\n}\n",
        first ? "" : ",\n", seconds, uintmax_t{bytes}, job.config.depth, job.config.connections,
        each_us);
  } else {
    std::printf("%ju requests of %s in %.2f s, %.2f us of this process's CPU for each\n",
                uintmax_t{requests}, FormatSize(bytes).c_str(), seconds, each_us);
  }
}

absl::Status ChoosePart(BenchJob* job, uint64_t size) {
  const uint64_t bytes = job->config.block_size.bytes, offset = job->config.offset.bytes;
  if (offset > size)
    return absl::OutOfRangeError(
        absl::StrCat("--offset=", offset, " is beyond the disk's ", size, " bytes"));
  uint64_t length =
      job->config.length ? std::min(job->config.length->bytes, size - offset) : size - offset;
  if (length < bytes)
    return absl::OutOfRangeError(absl::StrCat("the disk (or the part of it) has ", length,
                                              " bytes, less than one block of ", bytes));
  job->first = offset;
  job->blocks = length / bytes;
  return absl::OkStatus();
}

Task<absl::Status> Load(BenchJob* job) {
  const BenchConfig& config = job->config;
  if (config.shm) {
    uint64_t bytes = std::bit_ceil(std::max<uint64_t>(config.block_size.bytes, 4096)) *
                     config.depth * config.connections;
    auto arena = Arena::Create(std::clamp<uint64_t>(bytes, 1 << 20, limits::kArenaBytesMax));
    if (arena.ok()) job->arena = *std::move(arena);
  }
  BLK_CO_ASSIGN_OR_RETURN(DevicePtr device,
                          co_await job->disk.Open({.read_only = config.writes.value == 0,
                                                   .connections = config.connections,
                                                   .arena = job->arena,
                                                   .shm = config.shm}));
  BLK_CO_RETURN_IF_ERROR(ChoosePart(job, device->size()));
  if (config.block_size.bytes > device->facts().block.maximum)
    co_return absl::InvalidArgumentError(absl::StrCat("--block-size is more than the ",
                                                      device->facts().block.maximum,
                                                      " bytes that the disk takes"));
  if (config.count) job->left = static_cast<int64_t>(*config.count);
  int64_t start_ns = Loop::Current()->NowNs();
  double start_cpu = CpuSeconds();
  job->end_ns = config.count ? INT64_MAX : start_ns + config.seconds.count();
  const size_t loops = job->loops->size();
  const size_t workers = static_cast<size_t>(config.depth) * config.connections;
  TaskScope scope;
  for (size_t i = 0; i < loops; ++i) {
    size_t first = workers * i / loops, end = workers * (i + 1) / loops;
    scope.Spawn(LoopOfWorkers(job, device.get(), job->loops->loop(i), end - first, first));
  }
  co_await scope.Join();
  double seconds = (Loop::Current()->NowNs() - start_ns) / 1e9;
  BLK_CO_RETURN_IF_ERROR(job->failure);
  PrintResults(*job, seconds, CpuSeconds() - start_cpu);
  co_return absl::OkStatus();
}

Task<absl::Status> Bench(BenchJob* job) {
  absl::Status status = co_await Load(job);
  absl::Status closed = co_await job->disk.Close();
  co_return status.ok() ? closed : status;
}

int BenchMain(std::span<const std::string> arguments) {
  BenchConfig config;
  int exit_status = 0;
  auto words =
      ParseTool("bench", BenchRows(), &config, arguments, &exit_status, {.brackets = true});
  if (!words) return exit_status;
  auto fail = [](const absl::Status& status) { return ExitStatusOf("bench", status); };
  auto disks = SplitEndpoints(*words);
  if (!disks.ok()) return fail(disks.status());
  if (disks->size() != 1)
    return fail(
        absl::InvalidArgumentError(absl::StrCat("name one disk; ", disks->size(), " given")));
  auto disk = Endpoint::Parse((*disks)[0]);
  if (!disk.ok()) return fail(disk.status());
  LoopPool loops(config.threads ? LoopCount(config.threads)
                                : std::min(config.connections, LoopCount(0)));
  BenchJob job(config, *std::move(disk), &loops);
  return fail(loops.RunMain(Bench(&job)));
}

}  // namespace

Tool BenchTool() {
  return {
      .name = "bench",
      .summary = "measure how fast a disk or an NBD server is",
      .synopsis = "[OPTIONS] DISK",
      .examples = {{"blk bench nbd://localhost", "random 4K reads, 32 in flight, for 5 seconds"},
                   {"blk bench -C 4 -w 30 --json nbd://localhost",
                    "with 30 % writes, four connections"},
                   {"blk bench --pattern=sequential -b 256K -d 16 memory:1G",
                    "a backend, without NBD"}},
      .rows = []() -> const ParamRows& { return BenchRows(); },
      .run = BenchMain};
}

}  // namespace blk
