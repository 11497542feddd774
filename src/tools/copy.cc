#include "src/tools/copy.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>

#include "src/tools/copy_job.h"

namespace blk {
namespace {

struct CopyConfig : CommonOptions {
  bool allocated = false;
  int connections = 4;
  bool destination_is_zero = false;
  bool flush = true;
  bool extents = true;
  std::optional<std::string> progress;
  Size queue_size{16 << 20};
  Size request_size{256 << 10};
  int requests = 64;
  std::optional<std::string> resume;
  Size sparse{4096};
  bool synchronous = false;
  int threads = 0;
  bool shm = true;
  bool verify = false;
};

const ParamTable<CopyConfig>& CopyRows() {
  static const auto& table = *[] {
    auto* rows = new ParamTable<CopyConfig>;
    using C = CopyConfig;
    rows->Param("allocated", &C::allocated,
                {.help = "write zeroes as allocated zeroes, make no holes"})
        .Param("connections", &C::connections,
               {.help = "connections to an NBD server that allows several",
                .letter = 'C',
                .min = "1",
                .max = "128"})
        .Param(
            "destination-is-zero", &C::destination_is_zero,
            {.help = "the target reads as zeroes: write only data", .aliases = {"target-is-zero"}})
        .Param("flush", &C::flush, {.help = "flush the target once at the end"})
        .Param("extents", &C::extents, {.help = "ask the source where its holes are"})
        .Param("progress", &C::progress,
               {.help = "show progress: bar, json, percent, none, or a descriptor for percent",
                .letter = 'p',
                .word = "FORM",
                .if_bare = "bar"})
        .Param("queue-size", &C::queue_size,
               {.help = "most memory for requests in flight", .min = "4K", .max = "16G"})
        .Param("request-size", &C::request_size,
               {.help = "largest read or write", .min = "4K", .max = "32M"})
        .Param("requests", &C::requests,
               {.help = "requests in flight on each connection",
                .letter = 'R',
                .min = "1",
                .max = "4096"})
        .Param("resume", &C::resume,
               {.help = "keep a journal in FILE; if it is there, go on where that copy was ended",
                .word = "FILE",
                .path = PathUse::kReadWrite})
        .Param("shm", &C::shm, {.help = "share memory with blk servers on Unix sockets"})
        .Param("sparse", &C::sparse,
               {.help = "smallest run of zeroes to find in data; 0: do not look", .letter = 'S'})
        .Param("synchronous", &C::synchronous, {.help = "one request at a time"})
        .Param("threads", &C::threads,
               {.help = "event loops; 0: one for each processor, one if the target is a file",
                .letter = 'T',
                .min = "0"})
        .Param("verify", &C::verify, {.help = "read the target back and compare"});
    return &AddCommonOptions(*rows);
  }();
  return table;
}

CopyOptions EngineOptions(const CopyConfig& config) {
  CopyOptions options;
  options.request_bytes = config.request_size.bytes;
  options.queue_bytes_max = std::max(config.queue_size.bytes, config.request_size.bytes);
  options.requests_max = static_cast<size_t>(config.requests) * config.connections;
  options.sparse_bytes = config.sparse.bytes;
  options.extents = config.extents;
  options.allocated = config.allocated;
  options.destination_is_zero = config.destination_is_zero;
  options.flush = config.flush;
  options.verify = config.verify;
  if (config.synchronous) {
    options.requests_max = 1;
    options.queue_bytes_max = options.request_bytes;
  }
  return options;
}

absl::StatusOr<ProgressChoice> ChooseDisplay(const CopyConfig& config) {
  using Form = ProgressDisplay::Form;
  std::string wanted = config.progress.value_or(isatty(STDERR_FILENO) ? "bar" : "none");
  if (wanted == "none") return ProgressChoice{Form::kNone};
  if (wanted == "bar") return ProgressChoice{isatty(STDERR_FILENO) ? Form::kBar : Form::kPercent};
  if (wanted == "json") return ProgressChoice{Form::kJson};
  if (wanted == "percent") return ProgressChoice{Form::kPercent};
  auto fd = ParseUnsigned(wanted, 0, 65535);
  if (fd.ok() && fcntl(static_cast<int>(*fd), F_GETFD) >= 0)
    return ProgressChoice{Form::kPercent, static_cast<int>(*fd)};
  return absl::InvalidArgumentError(
      absl::StrCat("--progress=", wanted,
                   ": write bar, json, percent, none, or the number of an open descriptor"));
}

int CopyMain(std::span<const std::string> arguments) {
  CopyConfig config;
  int exit_status = 0;
  auto words = ParseTool("copy", CopyRows(), &config, arguments, &exit_status, {.brackets = true});
  if (!words) return exit_status;
  auto fail = [](const absl::Status& status) { return ExitStatusOf("copy", status); };
  auto disks = SplitEndpoints(*words);
  if (!disks.ok()) return fail(disks.status());
  if (disks->size() != 2)
    return fail(absl::InvalidArgumentError(absl::StrCat(
        "a copy has a source and a target; ", disks->size(), " given. Try `blk copy -h`")));
  auto display = ChooseDisplay(config);
  if (!display.ok()) return fail(display.status());
  auto source = Endpoint::Parse((*disks)[0]);
  if (!source.ok()) return fail(source.status());
  auto target = Endpoint::Parse((*disks)[1]);
  if (!target.ok()) return fail(target.status());
  if (source->kind() == Endpoint::Kind::kNull)
    return fail(absl::InvalidArgumentError("null: can only be the target"));
  if (config.resume &&
      (source->kind() == Endpoint::Kind::kStream || target->kind() == Endpoint::Kind::kStream))
    return fail(absl::InvalidArgumentError(
        "--resume needs two disks: a stream cannot be read again from the middle"));
  LoopPool loops(CopyLoopCount(config.synchronous ? 1 : config.threads, *target));
  CopyJob job{.options = EngineOptions(config),
              .source = *std::move(source),
              .target = *std::move(target),
              .connections = config.connections,
              .shm = config.shm,
              .resume = config.resume,
              .progress = *display,
              .loops = &loops};
  return fail(loops.RunMain(RunCopy(&job)));
}

}  // namespace

Tool CopyTool() {
  return {.name = "copy",
          .summary = "copy a disk to another, holes as holes",
          .synopsis = "[OPTIONS] SOURCE TARGET",
          .examples = {{"blk copy disk.img nbd://localhost", "a file to an NBD server"},
                       {"blk copy -- [ qemu-nbd -f qcow2 disk.qcow2 ] disk.raw",
                        "through a server that is started for it"},
                       {"blk copy nbd://localhost - | hexdump -C", "to a pipe"},
                       {"blk copy 'partition(partition=2)+disk.img' part2.img", "one partition"},
                       {"blk copy --resume disk.journal nbd://host/disk disk.img",
                        "may be killed and started again"},
                       {"blk copy sparse-random:1T null:", "how fast can it read?"}},
          .rows = []() -> const ParamRows& { return CopyRows(); },
          .run = CopyMain};
}

}  // namespace blk
