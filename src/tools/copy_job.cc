#include "src/tools/copy_job.h"

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
#include "src/tools/copy_journal.h"
#include "src/tools/tool.h"

namespace blk {
namespace {

// Standard output and its like are blocking, and maybe shared with others: plain writes, off the
// loop.
Task<absl::Status> WriteToStream(int fd, std::span<const char> piece) {
  absl::Status status;
  co_await Loop::Current()->Offload([&] {
    while (!piece.empty()) {
      ssize_t written = write(fd, piece.data(), piece.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) {
        status = ErrnoError(errno, "cannot write the stream");
        return;
      }
      piece = piece.subspan(written);
    }
  });
  co_return status;
}

// As much as fits, less only at the end.
Task<absl::StatusOr<size_t>> ReadFromStream(int fd, std::span<char> into) {
  absl::StatusOr<size_t> result = size_t{0};
  co_await Loop::Current()->Offload([&] {
    size_t got = 0;
    while (got < into.size()) {
      ssize_t n = read(fd, into.data() + got, into.size() - got);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) {
        result = ErrnoError(errno, "cannot read the stream");
        return;
      }
      if (n == 0) break;
      got += n;
    }
    result = got;
  });
  co_return result;
}

Task<absl::Status> StreamToStream(int source, int target, const CopyOptions& options,
                                  CopyProgress* progress) {
  Buffer buffer(options.request_bytes);
  for (;;) {
    BLK_CO_ASSIGN_OR_RETURN(size_t got, co_await ReadFromStream(source, buffer.span()));
    if (got == 0) co_return absl::OkStatus();
    BLK_CO_RETURN_IF_ERROR(co_await WriteToStream(target, {buffer.data(), got}));
    progress->done += got;
    progress->read += got;
    progress->written += got;
  }
}

// A local file that grows with what comes; runs of zeroes become holes.
Task<absl::Status> StreamToFile(int source, const std::string& path, const CopyOptions& options,
                                CopyProgress* progress) {
  int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (fd < 0) co_return ErrnoError(errno, absl::StrCat("cannot create ", path));
  absl::Cleanup closer = [fd] { close(fd); };
  Buffer buffer(options.request_bytes);
  uint64_t offset = 0;
  for (;;) {
    BLK_CO_ASSIGN_OR_RETURN(size_t got, co_await ReadFromStream(source, buffer.span()));
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
Task<absl::Status> StreamToDevice(int source, Device* target, const CopyOptions& options,
                                  CopyProgress* progress) {
  const uint64_t granule = target->facts().block.minimum;
  uint64_t request_bytes = std::min<uint64_t>(options.request_bytes, target->facts().block.maximum);
  Buffer buffer(request_bytes - request_bytes % granule);
  uint64_t offset = 0;
  Call call;
  for (;;) {
    BLK_CO_ASSIGN_OR_RETURN(size_t got, co_await ReadFromStream(source, buffer.span()));
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

Task<absl::Status> FromStream(CopyJob* job, CopyProgress* progress) {
  const int source = job->source.stream_fd(/*writing=*/false);
  auto opened = [job](Device* target) {
    return job->opened ? job->opened(nullptr, target, &job->options) : absl::OkStatus();
  };
  if (job->target.kind() == Endpoint::Kind::kStream) {
    BLK_CO_RETURN_IF_ERROR(opened(nullptr));
    co_return co_await StreamToStream(source, job->target.stream_fd(true), job->options, progress);
  }
  if (!job->target.path().empty()) {
    struct stat info;
    bool device = stat(job->target.path().c_str(), &info) == 0 && !S_ISREG(info.st_mode);
    if (!device) {
      BLK_CO_RETURN_IF_ERROR(opened(nullptr));
      co_return co_await StreamToFile(source, job->target.path(), job->options, progress);
    }
  }
  Endpoint::Wish wish{.read_only = false, .connections = job->connections};
  if (job->target.kind() == Endpoint::Kind::kNull) wish.create_bytes = limits::kDiskBytesMax;
  BLK_CO_ASSIGN_OR_RETURN(DevicePtr target, co_await job->target.Open(wish));
  BLK_CO_RETURN_IF_ERROR(opened(target.get()));
  co_return co_await StreamToDevice(source, target.get(), job->options, progress);
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
  BLK_ASSIGN_OR_RETURN(auto journal, CopyJournal::Open(*job.resume, identity, source.size()));
  if (journal->was_damaged())
    LogError(absl::StrCat("the journal ", *job.resume,
                          " is damaged and not believed: everything is copied again"));
  return journal;
}

Task<absl::Status> FromDisk(CopyJob* job, CopyProgress* progress) {
  Endpoint::Wish wish{
      .connections = job->connections, .arena = job->options.arena, .shm = job->shm};
  BLK_CO_ASSIGN_OR_RETURN(DevicePtr source, co_await job->source.Open(wish));
  const std::string path = job->target.path();  // opening it takes the plan that knows
  DevicePtr target;
  std::unique_ptr<CopyJournal> journal;
  if (job->target.kind() != Endpoint::Kind::kStream) {
    wish.read_only = false;
    wish.create_bytes = source->size();
    wish.writes_behind = job->options.flush;
    BLK_CO_ASSIGN_OR_RETURN(target, co_await job->target.Open(wish));
    job->options.destination_is_zero |= job->target.reads_as_zeroes();
    if (job->resume) {
      BLK_CO_ASSIGN_OR_RETURN(journal, OpenJournal(*job, *source, path, *target));
      job->options.journal = journal.get();
    }
  }
  if (job->opened) BLK_CO_RETURN_IF_ERROR(job->opened(source.get(), target.get(), &job->options));
  ProgressDisplay display(job->progress, source->size(), progress);
  display.Start();
  absl::Status status;
  if (target) {
    status = co_await CopyDevice(job->loops->loops(), source.get(), target.get(), job->options,
                                 progress);
  } else {
    auto write = [fd = job->target.stream_fd(true)](std::span<const char> piece) {
      return WriteToStream(fd, piece);
    };
    status = co_await StreamDevice(source.get(), job->options, progress, write);
  }
  co_await display.Finish(status.ok());
  co_return status;
}

}  // namespace

int CopyLoopCount(int wanted, const Endpoint& target) {
  if (wanted > 0 || target.file().empty()) return LoopCount(wanted);
  struct stat info;
  const bool device = stat(target.file().c_str(), &info) == 0 && !S_ISREG(info.st_mode);
  return device ? LoopCount(0) : 1;
}

Task<absl::Status> RunCopy(CopyJob* job) {
  if (job->shm) {
    // One arena for both sides: between two servers that take it, no byte passes through here.
    auto arena =
        Arena::Create(std::clamp<uint64_t>(2 * job->options.queue_bytes_max, 16 << 20, 64 << 20));
    if (arena.ok()) job->options.arena = *std::move(arena);
  }
  CopyProgress progress;
  absl::Status status;
  if (job->source.kind() == Endpoint::Kind::kStream) {
    ProgressDisplay display(job->progress, 0, &progress);
    display.Start();
    status = co_await FromStream(job, &progress);
    co_await display.Finish(status.ok());
  } else {
    status = co_await FromDisk(job, &progress);
  }
  // A target that cannot be closed may have lost something.
  for (Endpoint* endpoint : {&job->target, &job->source}) {
    absl::Status closed = co_await endpoint->Close();
    if (status.ok()) status = closed;
  }
  co_return status;
}

}  // namespace blk
