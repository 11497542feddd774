#include "src/backends/file/disk_file.h"

#include <linux/fs.h>
#include <linux/openat2.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>

#include "src/core/limits.h"
#include "src/core/trace.h"

namespace blk {
namespace {

constexpr uint32_t kPreferredBytesMax = 1u << 20;

// Why something of this type is no disk, and what to do instead.
absl::Status NotADisk(mode_t mode, const std::string& path) {
  auto error = [&](int code, std::string_view text) {
    return ErrnoErrorAsIs(code, absl::StrCat(path, " ", text));
  };
  if (S_ISDIR(mode))
    return error(EISDIR, "is a directory: to serve the files in it, use dir= instead of file=");
  if (S_ISFIFO(mode))
    return error(ESPIPE,
                 "is a pipe, which cannot be read at any offset: copy what comes out of it into a "
                 "file and serve that");
  if (S_ISSOCK(mode))
    return error(EOPNOTSUPP,
                 "is a socket: for the NBD server behind it, use nbd+unix:///?socket=PATH");
  return error(ENODEV,
               "is a character device, not a disk: serve a regular file or a block device (for "
               "zeroes or random bytes there are the backends null and random)");
}

absl::Status CannotOpen(int error, const std::string& path, bool read_only) {
  std::string_view advice = "";
  if (error == ENOENT) advice = " (check the name; a relative one starts in the current directory)";
  if (error == EACCES) advice = " (check the permissions of the file and of its directories)";
  return ErrnoError(error,
                    absl::StrCat("cannot open ", path, read_only ? " for reading" : "", advice));
}

bool WriteRefused(int error) {
  return error == EACCES || error == EPERM || error == EROFS || error == ETXTBSY;
}

// O_NONBLOCK: a pipe that took the place of a file must not hang us. In a directory, a link to
// /proc/self/fd/N, which would lead to our own descriptors, is not followed.
int OpenAt(int directory_fd, const std::string& path, int flags) {
  flags |= O_CLOEXEC | O_NOCTTY | O_NONBLOCK;
  if (directory_fd == AT_FDCWD) return open(path.c_str(), flags);
  open_how how = {};
  how.flags = static_cast<uint64_t>(flags);
  how.resolve = RESOLVE_NO_MAGICLINKS;
  long fd = syscall(SYS_openat2, directory_fd, path.c_str(), &how, sizeof how);
  if (fd == -1 && errno == ENOSYS) return openat(directory_fd, path.c_str(), flags);
  return static_cast<int>(fd);
}

bool ReadsOne(const std::string& path) {
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd == -1) return false;
  char digit = 0;
  bool is_one = read(fd, &digit, 1) == 1 && digit == '1';
  close(fd);
  return is_one;
}

// Of the device, or of the disk that the file is on; of a partition, its disk's.
bool IsRotational(dev_t device) {
  std::string base = absl::StrCat("/sys/dev/block/", major(device), ":", minor(device));
  return ReadsOne(base + "/queue/rotational") || ReadsOne(base + "/../queue/rotational");
}

absl::Status ReadBlockDeviceFacts(DiskFile* file) {
  int sector_bytes = 0;
  if (ioctl(file->io.fd(), BLKSSZGET, &sector_bytes) != 0)
    return ErrnoError(errno, absl::StrCat("cannot ask ", file->io.name(), " for its sector size"));
  file->sector_bytes = static_cast<uint32_t>(std::max(sector_bytes, 1));
  uint32_t optimal_bytes = 0;
  (void)ioctl(file->io.fd(), BLKIOOPT, &optimal_bytes);
  file->preferred_bytes = std::max(file->sector_bytes, optimal_bytes);
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> SizeOf(const DiskFile& file) {
  struct stat info;
  uint64_t bytes = 0;
  bool ok = file.is_block_device ? ioctl(file.io.fd(), BLKGETSIZE64, &bytes) == 0
                                 : fstat(file.io.fd(), &info) == 0;
  if (!ok) return ErrnoError(errno, absl::StrCat("cannot find the size of ", file.io.name()));
  if (!file.is_block_device) bytes = static_cast<uint64_t>(info.st_size);
  if (uint32_t step = file.io.alignment_bytes(); bytes % step != 0)
    return ErrnoErrorAsIs(
        EINVAL, absl::StrCat(file.io.name(), " was opened with O_DIRECT, but its ", bytes,
                             " bytes are not a multiple of ", step, ": open it without O_DIRECT"));
  return bytes;
}

// ---- The device

absl::Status Stopped() { return ErrnoErrorAsIs(ECANCELED, "the request was cancelled"); }

// Reads and writes at the speed of the page cache; what the file system refuses is remembered. FUA
// is left to the door, a write and then a flush, because an error that the kernel reports once must
// not go to one of several syncs that run at a time. The price: a disk that takes many RWF_DSYNC
// writes at once (eight made 15500 a second here) could make more of them durable than one
// fdatasync after the other does (5600 with an unfair lock; the fair one here is not measured yet).
class FileDevice final : public Device {
 public:
  FileDevice(DiskFilePtr file, Facts facts, bool writes_behind)
      : Device(std::move(facts)), file_(std::move(file)), writes_behind_(writes_behind) {}

 protected:
  Task<absl::Status> DoRead(const Call&, uint64_t offset, std::span<char> into) override {
    if (file_->options.keep_in_page_cache) return file_->io.ReadAt(offset, into);
    return ReadAndDrop(offset, into);
  }
  Task<absl::Status> DoWrite(const Call&, uint64_t offset, std::span<const char> from) override {
    if (file_->options.keep_in_page_cache && !writes_behind_)
      return file_->io.WriteAt(offset, from);
    return WriteInWindows(offset, from);
  }
  Task<absl::Status> DoFlush(const Call&) override {
    if (!file_->writable) return absl::OkStatus();
    if (file_->options.keep_in_page_cache) return file_->io.Sync();
    return SyncAndDrop();
  }
  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override;
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override;
  Task<absl::Status> DoCache(const Call&, uint64_t offset, uint64_t length) override {
    int error = co_await file_->io.Advise(offset, length, POSIX_FADV_WILLNEED);
    if (error) co_return ErrnoError(error, absl::StrCat("cannot prefetch ", file_->io.name()));
    co_return absl::OkStatus();
  }
  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override {
    if (!file_->finds_holes) return Device::DoExtents(call, context, list);
    return file_->io.FindExtents(list, (call.flags & kRequestOne) != 0);
  }
  bool DoBorrow(const Call& call, uint64_t offset, uint64_t length, Loan* loan) override {
    if (!(call.flags & kLendFile) || !file_->options.keep_in_page_cache ||
        !file_->io.IsCached(offset, length))
      return false;
    loan->SetFile({&file_->io, offset, length});
    return true;
  }

 private:
  Task<absl::Status> ReadAndDrop(uint64_t offset, std::span<char> into);
  Task<absl::Status> WriteInWindows(uint64_t offset, std::span<const char> from);
  Task<absl::Status> SyncAndDrop();
  Task<bool> Try(std::atomic<bool>* known_to_work, int mode, uint64_t offset, uint64_t length);
  Task<bool> ZeroWithoutWriting(uint32_t flags, uint64_t offset, uint64_t length);
  Task<absl::Status> ZeroSectors(const Call& call, uint64_t offset, uint64_t length);

  DiskFilePtr file_;
  const bool writes_behind_;
};

// What is written goes to the disk in windows of so much. With cache=none, pages leave the cache
// one window later; clean ones at once.
constexpr uint64_t kWindowBytes = 8 << 20;

Task<absl::Status> FileDevice::ReadAndDrop(uint64_t offset, std::span<char> into) {
  BLK_CO_RETURN_IF_ERROR(co_await file_->io.ReadAt(offset, into));
  // Never waits: it skips what is dirty or in use. Failing is no reason to fail the read.
  (void)posix_fadvise(file_->io.fd(), static_cast<off_t>(offset), static_cast<off_t>(into.size()),
                      POSIX_FADV_DONTNEED);
  co_return absl::OkStatus();
}

Task<absl::Status> FileDevice::WriteInWindows(uint64_t offset, std::span<const char> from) {
  BLK_CO_RETURN_IF_ERROR(co_await file_->io.WriteAt(offset, from));
  uint64_t before = file_->written_bytes.fetch_add(from.size());
  if (before / kWindowBytes != (before + from.size()) / kWindowBytes) {
    // A disk that fails says so at the flush.
    FileIo& io = file_->io;
    (void)co_await (file_->options.keep_in_page_cache ? io.StartWriting() : io.DropPageCache());
  }
  co_return absl::OkStatus();
}

Task<absl::Status> FileDevice::SyncAndDrop() {
  BLK_CO_RETURN_IF_ERROR(co_await file_->io.Sync());
  (void)co_await file_->io.DropPageCache();  // all of it is clean
  co_return absl::OkStatus();
}

bool NotSupported(int error) {
  return error == EOPNOTSUPP || error == ENOSYS || error == ENOTTY || error == ENODEV;
}

// One fallocate(2). Any failure means "try otherwise": the last way, writing, reports what is
// really wrong.
Task<bool> FileDevice::Try(std::atomic<bool>* known_to_work, int mode, uint64_t offset,
                           uint64_t length) {
  if (!known_to_work->load(std::memory_order_relaxed)) co_return false;
  int error = co_await file_->io.Allocate(mode | FALLOC_FL_KEEP_SIZE, offset, length);
  if (NotSupported(error)) known_to_work->store(false, std::memory_order_relaxed);
  co_return error == 0;
}

// Block devices understand the same two modes: a punched hole is zeroed by the hardware or refused,
// a zeroed range is never unmapped but may be written by the kernel, which is not fast.
Task<bool> FileDevice::ZeroWithoutWriting(uint32_t flags, uint64_t offset, uint64_t length) {
  DiskFile& file = *file_;
  if (!(flags & kNoHole) && co_await Try(&file.punches_holes, FALLOC_FL_PUNCH_HOLE, offset, length))
    co_return true;
  if (!(file.is_block_device && (flags & kFastZero)) &&
      co_await Try(&file.zeroes_ranges, FALLOC_FL_ZERO_RANGE, offset, length))
    co_return true;
  if (file.is_block_device || !(flags & kNoHole)) co_return false;
  if (!co_await Try(&file.punches_holes, FALLOC_FL_PUNCH_HOLE, offset, length)) co_return false;
  co_return co_await Try(&file.allocates, 0, offset, length);
}

// Long ranges go in steps, so that they can be stopped.
constexpr uint64_t kZeroStepBytes = 64 << 20;
constexpr uint64_t kWrittenStepBytes = 4 << 20;

Task<absl::Status> FileDevice::ZeroSectors(const Call& call, uint64_t offset, uint64_t length) {
  bool in_steps = file_->is_block_device;  // files: a range of any length costs about the same
  uint64_t step = in_steps ? kZeroStepBytes : length;
  while (length > 0) {
    uint64_t part = std::min(length, step);
    if (!co_await ZeroWithoutWriting(call.flags, offset, part)) {
      if (call.flags & kFastZero)
        co_return ErrnoErrorAsIs(EOPNOTSUPP, "zeroing here is no faster than writing");
      part = std::min(part, kWrittenStepBytes);
      BLK_CO_RETURN_IF_ERROR(co_await file_->io.WriteZeroesAt(offset, part));
    }
    offset += part;
    length -= part;
    if (length > 0 && call.stopped()) co_return Stopped();
  }
  co_return absl::OkStatus();
}

// The part of a range that consists of whole sectors.
struct Inner {
  uint64_t from, to;
  Inner(uint64_t offset, uint64_t length, uint64_t sector_bytes)
      : from((offset + sector_bytes - 1) / sector_bytes * sector_bytes),
        to((offset + length) / sector_bytes * sector_bytes) {}
  bool empty() const { return from >= to; }
};

Task<absl::Status> FileDevice::DoZero(const Call& call, uint64_t offset, uint64_t length) {
  if (file_->sector_bytes == 1) co_return co_await ZeroSectors(call, offset, length);
  Inner inner(offset, length, file_->sector_bytes);
  if (inner.empty()) co_return co_await file_->io.WriteZeroesAt(offset, length);
  // The middle first: when it cannot be fast, nothing has been touched.
  BLK_CO_RETURN_IF_ERROR(co_await ZeroSectors(call, inner.from, inner.to - inner.from));
  if (offset < inner.from)
    BLK_CO_RETURN_IF_ERROR(co_await file_->io.WriteZeroesAt(offset, inner.from - offset));
  if (offset + length > inner.to)
    BLK_CO_RETURN_IF_ERROR(co_await file_->io.WriteZeroesAt(inner.to, offset + length - inner.to));
  co_return absl::OkStatus();
}

Task<absl::Status> FileDevice::DoTrim(const Call&, uint64_t offset, uint64_t length) {
  DiskFile& file = *file_;
  Inner inner(offset, length, file.sector_bytes);
  std::atomic<bool>& works = file.is_block_device ? file.discards : file.punches_holes;
  if (inner.empty() || !works.load(std::memory_order_relaxed)) co_return absl::OkStatus();
  uint64_t bytes = inner.to - inner.from;
  int error = file.is_block_device
                  ? co_await file.io.Discard(inner.from, bytes)
                  : co_await file.io.Allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                              inner.from, bytes);
  if (NotSupported(error)) {  // it is only advice
    works.store(false, std::memory_order_relaxed);
    co_return absl::OkStatus();
  }
  if (error)
    co_return ErrnoError(error, absl::StrCat("cannot trim ", file.io.name(), " at ", offset));
  co_return absl::OkStatus();
}

}  // namespace

bool IsDiskMode(mode_t mode) { return S_ISREG(mode) || S_ISBLK(mode); }

absl::StatusOr<DiskFilePtr> OpenDiskFile(int directory_fd, const std::string& path, bool read_only,
                                         const FileOptions& options) {
  // Asked by name first, since opening some devices does something.
  struct stat info;
  if (fstatat(directory_fd, path.c_str(), &info, 0) != 0) return CannotOpen(errno, path, read_only);
  if (!IsDiskMode(info.st_mode)) return NotADisk(info.st_mode, path);
  int fd = OpenAt(directory_fd, path, read_only ? O_RDONLY : O_RDWR);
  if (fd == -1 && !read_only && WriteRefused(errno)) {
    LogDebug(path, " may not be written (errno ", errno, "): it is opened read-only");
    fd = OpenAt(directory_fd, path, O_RDONLY);
  }
  if (fd == -1) return CannotOpen(errno, path, read_only);
  return AdoptDiskFile(fd, path, options);
}

absl::StatusOr<DiskFilePtr> AdoptDiskFile(int fd, std::string name, const FileOptions& options) {
  DiskFilePtr file = std::make_shared<DiskFile>(fd, std::move(name));
  struct stat info;
  int flags = fcntl(fd, F_GETFL);
  if (flags == -1 || fstat(fd, &info) != 0)
    return ErrnoError(errno, absl::StrCat("cannot use ", file->io.name()));
  if (!IsDiskMode(info.st_mode)) return NotADisk(info.st_mode, file->io.name());
  if ((flags & O_ACCMODE) == O_WRONLY || (flags & O_PATH))
    return ErrnoErrorAsIs(EBADF, absl::StrCat(file->io.name(),
                                              " is not open for reading: open it "
                                              "for reading, or for both"));
  // Every write would land at the end, wherever it was meant for.
  file->writable = (flags & O_ACCMODE) == O_RDWR && !(flags & O_APPEND);
  file->options = options;
  file->is_block_device = S_ISBLK(info.st_mode);
  file->rotational = IsRotational(file->is_block_device ? info.st_rdev : info.st_dev);
  file->preferred_bytes = static_cast<uint32_t>(info.st_blksize);
  if (file->is_block_device) BLK_RETURN_IF_ERROR(ReadBlockDeviceFacts(file.get()));
  file->finds_holes = lseek(fd, 0, SEEK_DATA) != -1 || errno == ENXIO;
  if (options.advice != POSIX_FADV_NORMAL) (void)posix_fadvise(fd, 0, 0, options.advice);
  BLK_RETURN_IF_ERROR(SizeOf(*file).status());
  return file;
}

absl::StatusOr<DevicePtr> MakeFileDevice(DiskFilePtr file, bool read_only, bool writes_behind) {
  Facts facts;
  BLK_ASSIGN_OR_RETURN(facts.size, SizeOf(*file));
  // Whoever copied it would take nothing for the content of the disk.
  if (file->is_block_device && facts.size == 0)
    return ErrnoErrorAsIs(ENODEV, absl::StrCat(file->io.name(),
                                               " has no bytes: its medium is not there, or the "
                                               "device has gone"));
  facts.block.minimum = file->io.alignment_bytes();
  // NBD wants a power of two; some file systems ask for more than any client would send at once.
  facts.block.preferred = std::bit_floor(
      std::clamp(file->preferred_bytes, limits::kPreferredBlockBytes, kPreferredBytesMax));
  facts.read_only = read_only || !file->writable;
  facts.rotational = file->rotational;
  facts.flush = true;
  facts.trim = facts.zero = facts.fast_zero = true;
  facts.extents = file->finds_holes;
  facts.fua = Support::kEmulate;
  facts.cache = Support::kNative;
  facts.multi_conn = true;
  facts.shared_buffers_ok = true;
  if (writes_behind) file->io.SetWriteStep(SIZE_MAX);
  return std::make_shared<FileDevice>(std::move(file), std::move(facts), writes_behind);
}

}  // namespace blk
