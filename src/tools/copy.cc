#include "src/tools/copy.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "src/core/buffer.h"
#include "src/core/trace.h"
#include "src/core/zeroes.h"
#include "src/tools/copy_engine.h"
#include "src/tools/copy_journal.h"
#include "src/tools/endpoint.h"
#include "src/tools/progress.h"

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
               {.help = "event loops; 0: one for each processor", .letter = 'T', .min = "0"})
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

struct DisplayChoice {
  ProgressDisplay::Form form = ProgressDisplay::Form::kNone;
  int fd = STDERR_FILENO;
};

absl::StatusOr<DisplayChoice> ChooseDisplay(const CopyConfig& config) {
  using Form = ProgressDisplay::Form;
  std::string wanted = config.progress.value_or(isatty(STDERR_FILENO) ? "bar" : "none");
  if (wanted == "none") return DisplayChoice{Form::kNone};
  if (wanted == "bar") return DisplayChoice{isatty(STDERR_FILENO) ? Form::kBar : Form::kPercent};
  if (wanted == "json") return DisplayChoice{Form::kJson};
  if (wanted == "percent") return DisplayChoice{Form::kPercent};
  auto fd = ParseUnsigned(wanted, 0, 65535);
  if (fd.ok() && fcntl(static_cast<int>(*fd), F_GETFD) >= 0)
    return DisplayChoice{Form::kPercent, static_cast<int>(*fd)};
  return absl::InvalidArgumentError(
      absl::StrCat("--progress=", wanted,
                   ": write bar, json, percent, none, or the number of an open descriptor"));
}

// ---- Streams

// Standard output is blocking, and maybe shared with others: plain writes, off the loop if it is no
// file.
Task<absl::Status> WriteToStdout(std::span<const char> piece) {
  absl::Status status;
  co_await Loop::Current()->Offload([&] {
    while (!piece.empty()) {
      ssize_t written = write(STDOUT_FILENO, piece.data(), piece.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) {
        status = ErrnoError(errno, "cannot write to standard output");
        return;
      }
      piece = piece.subspan(written);
    }
  });
  co_return status;
}

// As much as fits, less only at the end.
Task<absl::StatusOr<size_t>> ReadFromStdin(std::span<char> into) {
  absl::StatusOr<size_t> result = size_t{0};
  co_await Loop::Current()->Offload([&] {
    size_t got = 0;
    while (got < into.size()) {
      ssize_t n = read(STDIN_FILENO, into.data() + got, into.size() - got);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        result = ErrnoError(errno, "cannot read from standard input");
        return;
      }
      if (n == 0) break;
      got += n;
    }
    result = got;
  });
  co_return result;
}

Task<absl::Status> StdinToStdout(const CopyOptions& options, CopyProgress* progress) {
  Buffer buffer(options.request_bytes);
  for (;;) {
    BLK_CO_ASSIGN_OR_RETURN(size_t got, co_await ReadFromStdin(buffer.span()));
    if (got == 0) co_return absl::OkStatus();
    BLK_CO_RETURN_IF_ERROR(co_await WriteToStdout({buffer.data(), got}));
    progress->done += got;
    progress->read += got;
    progress->written += got;
  }
}

// A local file that grows with what comes; runs of zeroes become holes.
Task<absl::Status> StdinToFile(const std::string& path, const CopyOptions& options,
                               CopyProgress* progress) {
  int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) co_return ErrnoError(errno, absl::StrCat("cannot create ", path));
  absl::Cleanup closer = [fd] { close(fd); };
  Buffer buffer(options.request_bytes);
  uint64_t offset = 0;
  for (;;) {
    BLK_CO_ASSIGN_OR_RETURN(size_t got, co_await ReadFromStdin(buffer.span()));
    if (got == 0) break;
    absl::Status status;
    bool hole = !options.allocated && options.sparse_bytes && IsZero(buffer.data(), got);
    if (!hole) {
      co_await Loop::Current()->Offload([&] {
        size_t done = 0;
        while (done < got) {
          ssize_t n = pwrite(fd, buffer.data() + done, got - done, offset + done);
          if (n < 0 && errno == EINTR) continue;
          if (n < 0) {
            status =
                ErrnoError(errno, absl::StrCat("write at offset ", offset + done, " of ", path));
            return;
          }
          done += n;
        }
      });
    }
    BLK_CO_RETURN_IF_ERROR(status);
    offset += got;
    progress->done += got;
    progress->read += got;
    (hole ? progress->zeroed : progress->written) += got;
  }
  absl::Status status;
  co_await Loop::Current()->Offload([&] {
    if (ftruncate(fd, offset) < 0) status = ErrnoError(errno, absl::StrCat("cannot size ", path));
    if (status.ok() && options.flush && fdatasync(fd) < 0)
      status = ErrnoError(errno, absl::StrCat("cannot flush ", path));
  });
  co_return status;
}

// What does not fit into the target is an error that says so.
Task<absl::Status> StdinToDevice(Device* target, const CopyOptions& options,
                                 CopyProgress* progress) {
  const uint64_t granule = target->facts().block.minimum;
  uint64_t request_bytes = std::min<uint64_t>(options.request_bytes, target->facts().block.maximum);
  Buffer buffer(request_bytes - request_bytes % granule);
  uint64_t offset = 0;
  Call call;
  for (;;) {
    BLK_CO_ASSIGN_OR_RETURN(size_t got, co_await ReadFromStdin(buffer.span()));
    if (got == 0) break;
    // The last piece is filled up with zeroes to a whole block.
    size_t bytes = (got + granule - 1) / granule * granule;
    std::memset(buffer.data() + got, 0, bytes - got);
    std::span<const char> piece(buffer.data(), bytes);
    bool zero = options.sparse_bytes && IsZero(piece.data(), bytes);
    absl::Status status =
        zero ? co_await target->Zero(call.With(options.allocated ? kNoHole : 0), offset, bytes)
             : co_await target->Write(call, offset, piece);
    if (!status.ok()) co_return Annotate(status, absl::StrCat("write at offset ", offset));
    offset += got;
    progress->done += got;
    progress->read += got;
    (zero ? progress->zeroed : progress->written) += got;
  }
  co_return options.flush ? Annotate(co_await target->Flush(call), "flush of the target")
                          : absl::OkStatus();
}

// ---- The tool

struct CopyJob {
  CopyConfig config;
  CopyOptions options;
  Endpoint source, target;
  DisplayChoice display;
  LoopPool* loops = nullptr;
};

Task<absl::Status> CopyFromStream(CopyJob* job, CopyProgress* progress) {
  if (job->target.kind() == Endpoint::Kind::kStream)
    co_return co_await StdinToStdout(job->options, progress);
  if (!job->target.path().empty()) {
    struct stat info;
    bool device = stat(job->target.path().c_str(), &info) == 0 && !S_ISREG(info.st_mode);
    if (!device) co_return co_await StdinToFile(job->target.path(), job->options, progress);
  }
  Endpoint::Wish wish{.read_only = false, .connections = job->config.connections};
  if (job->target.kind() == Endpoint::Kind::kNull) wish.create_bytes = limits::kDiskBytesMax;
  BLK_CO_ASSIGN_OR_RETURN(DevicePtr target, co_await job->target.Open(wish));
  co_return co_await StdinToDevice(target.get(), job->options, progress);
}

// What tells the target from another that took its place: not its content, which the copy changes.
// `path` is empty if it is no file.
std::string StateOfTarget(const std::string& path, uint64_t bytes) {
  std::string state = absl::StrCat("size ", bytes);
  struct statx info;
  if (path.empty() || statx(AT_FDCWD, path.c_str(), 0, STATX_INO | STATX_BTIME, &info) != 0)
    return state;
  absl::StrAppend(&state, ", inode ", info.stx_ino, " on ", info.stx_dev_major, ":",
                  info.stx_dev_minor);
  if (info.stx_mask & STATX_BTIME)
    absl::StrAppend(&state, ", made ", info.stx_btime.tv_sec, ".", info.stx_btime.tv_nsec);
  return state;
}

// What changes with its content, as far as that can be known.
std::string StateOfSource(const std::string& file, const Device& source) {
  std::string state = absl::StrCat("size ", source.size());
  const std::string& name = source.facts().export_name;
  if (!name.empty()) absl::StrAppend(&state, ", export ", name);
  struct stat info;
  if (file.empty() || stat(file.c_str(), &info) != 0) return state;
  if (S_ISBLK(info.st_mode))
    return absl::StrCat(state, ", device ", major(info.st_rdev), ":", minor(info.st_rdev));
  return absl::StrCat(state, ", inode ", info.st_ino, " on ", major(info.st_dev), ":",
                      minor(info.st_dev), ", modified ", info.st_mtim.tv_sec, ".",
                      info.st_mtim.tv_nsec);
}

absl::StatusOr<std::unique_ptr<CopyJournal>> OpenJournal(const CopyJob& job, const Device& source,
                                                         const std::string& target_path,
                                                         const Device& target) {
  CopyIdentity identity;
  identity.source = job.source.text();
  identity.target = job.target.text();
  identity.source_state = StateOfSource(job.source.file(), source);
  identity.target_state = StateOfTarget(target_path, target.size());
  BLK_ASSIGN_OR_RETURN(auto journal,
                       CopyJournal::Open(*job.config.resume, identity, source.size()));
  if (journal->was_damaged())
    LogError(absl::StrCat("the journal ", *job.config.resume,
                          " is damaged and not believed: everything is copied again"));
  return journal;
}

Task<absl::Status> CopyToDisk(CopyJob* job, Device* source, CopyProgress* progress) {
  const std::string path = job->target.path();  // opening it takes the plan that knows
  BLK_CO_ASSIGN_OR_RETURN(DevicePtr target,
                          co_await job->target.Open({.read_only = false,
                                                     .create_bytes = source->size(),
                                                     .connections = job->config.connections,
                                                     .arena = job->options.arena,
                                                     .shm = job->config.shm}));
  job->options.destination_is_zero |= job->target.reads_as_zeroes();
  std::unique_ptr<CopyJournal> journal;
  if (job->config.resume) {
    BLK_CO_ASSIGN_OR_RETURN(journal, OpenJournal(*job, *source, path, *target));
    job->options.journal = journal.get();
  }
  co_return co_await CopyDevice(job->loops->loops(), source, target.get(), job->options, progress);
}

Task<absl::Status> CopyFromDisk(CopyJob* job, CopyProgress* progress) {
  BLK_CO_ASSIGN_OR_RETURN(DevicePtr source,
                          co_await job->source.Open({.connections = job->config.connections,
                                                     .arena = job->options.arena,
                                                     .shm = job->config.shm}));
  ProgressDisplay display(job->display.form, job->display.fd, source->size(), progress);
  display.Start();
  absl::Status status;
  if (job->target.kind() == Endpoint::Kind::kStream) {
    status = co_await StreamDevice(source.get(), job->options, progress, WriteToStdout);
  } else {
    status = co_await CopyToDisk(job, source.get(), progress);
  }
  co_await display.Finish(status.ok());
  co_return status;
}

Task<absl::Status> Copy(CopyJob* job) {
  CopyProgress progress;
  absl::Status status;
  if (job->source.kind() == Endpoint::Kind::kStream) {
    ProgressDisplay display(job->display.form, job->display.fd, 0, &progress);
    display.Start();
    status = co_await CopyFromStream(job, &progress);
    co_await display.Finish(status.ok());
  } else {
    status = co_await CopyFromDisk(job, &progress);
  }
  // A target that cannot be closed may have lost something.
  for (Endpoint* endpoint : {&job->target, &job->source}) {
    absl::Status closed = co_await endpoint->Close();
    if (status.ok()) status = closed;
  }
  co_return status;
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
  LoopPool loops(LoopCount(config.synchronous ? 1 : config.threads));
  CopyOptions options = EngineOptions(config);
  if (config.shm) {
    // One arena for both sides: between two servers that take it, no byte passes through here.
    auto arena =
        Arena::Create(std::clamp<uint64_t>(2 * options.queue_bytes_max, 16 << 20, 64 << 20));
    if (arena.ok()) options.arena = *std::move(arena);
  }
  CopyJob job{config, std::move(options), *std::move(source), *std::move(target), *display, &loops};
  return fail(loops.RunMain(Copy(&job)));
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
