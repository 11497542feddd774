#include "src/core/file_io.h"

#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <set>
#include <tuple>

#include "src/core/buffer.h"
#include "src/core/loop.h"

namespace blk {
namespace {

// Copying this much takes about 0.1 ms; more in line would make the loop's other clients wait.
constexpr size_t kInLineBytesMax = 1 << 20;
// Since Linux 6.16, ext4 keeps what one call writes in as few large folios as it can, and goes
// through every block of a folio at each later write to one of them. A 4k write into a file that
// was written in pieces of 1M costs five times as much as into one of 64k pieces.
constexpr size_t kExt4StepBytes = 64 << 10;
constexpr size_t kZeroBytes = 256 << 10;
constexpr size_t kZeroVectorsMax = 16;
constexpr int64_t kSlowWriteNs = 2'000'000;
constexpr int kDistrustedWrites = 64;
constexpr int64_t kTurnNs = 500'000;
constexpr uint32_t kDirectBytes = 4096;  // suits every sector size in use
constexpr int kEndOfFile = -1;           // beside errno values

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Moves all bytes with `step(done)`, a system call that returns what read and write return.
// 0, an errno or kEndOfFile; *done counts in any case.
template <typename Step>
int MoveAll(size_t bytes, size_t* done, Step step) {
  while (*done < bytes) {
    ssize_t moved = step(*done);
    if (moved > 0) {
      *done += static_cast<size_t>(moved);
    } else if (moved == 0) {
      return kEndOfFile;
    } else if (errno != EINTR) {
      return errno;
    }
  }
  return 0;
}

int ReadAll(int fd, char* into, size_t bytes, uint64_t offset, size_t* done) {
  return MoveAll(bytes, done, [&](size_t at) {
    return pread(fd, into + at, bytes - at, static_cast<off_t>(offset + at));
  });
}
// In pieces that end at multiples of `step`.
int WriteAll(int fd, const char* from, size_t bytes, uint64_t offset, size_t step, size_t* done) {
  return MoveAll(bytes, done, [&](size_t at) {
    const size_t piece = std::min(bytes - at, step - (offset + at) % step);
    return pwrite(fd, from + at, piece, static_cast<off_t>(offset + at));
  });
}
int WriteAllZeroes(int fd, uint64_t length, uint64_t offset, size_t* done) {
  alignas(4096) static char zeroes[kZeroBytes];  // never written: all of it is the zero page
  return MoveAll(length, done, [&](size_t at) {
    iovec parts[kZeroVectorsMax];
    int count = 0;
    for (size_t left = length - at; left > 0 && count < static_cast<int>(kZeroVectorsMax);) {
      size_t part = std::min(left, kZeroBytes);
      parts[count++] = {zeroes, part};
      left -= part;
    }
    return pwritev(fd, parts, count, static_cast<off_t>(offset + at));
  });
}

// The kind of file system that a regular file is on; 0 for device nodes, wherever they live.
int64_t FileSystemOf(int fd) {
  struct stat file;
  struct statfs system;
  if (fstat(fd, &file) != 0 || !S_ISREG(file.st_mode) || fstatfs(fd, &system) != 0) return 0;
  return system.f_type;
}

// fdatasync(2), and whether to believe it. ext4 that became read-only under an open file (an
// emergency remount, as by SysRq u) takes writes into the page cache, answers that they are stable,
// and drops them. Nothing but such a change makes the file system of a file that is open for
// writing read-only. Device nodes live on one that does not matter.
int SyncToDisk(int fd, bool writes_to_file) {
  int error;
  do error = fdatasync(fd) == 0 ? 0 : errno;
  while (error == EINTR);
  struct statfs system;
  if (error == 0 && writes_to_file && fstatfs(fd, &system) == 0 && (system.f_flags & ST_RDONLY))
    return EROFS;
  return error;
}

bool Aligned(const void* data) { return reinterpret_cast<uintptr_t>(data) % kDirectBytes == 0; }

// Files that have lost writes, for the life of the process. The time of birth tells a file from an
// earlier one with its number.
using FileIdentity = std::tuple<uint64_t, uint64_t, uint64_t, int64_t, int64_t>;
struct LostWrites {
  std::mutex mutex;
  std::set<FileIdentity> files;
  static LostWrites& Get() {
    static LostWrites& all = *new LostWrites;
    return all;
  }
};

FileIdentity IdentityOf(int fd) {
  struct statx info = {};
  (void)statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS | STATX_BTIME, &info);
  // A block device is the same through any of its nodes.
  if (S_ISBLK(info.stx_mode)) return {info.stx_rdev_major, info.stx_rdev_minor, 0, 0, 0};
  return {(uint64_t{info.stx_dev_major} << 32) | info.stx_dev_minor, ~uint64_t{0}, info.stx_ino,
          info.stx_btime.tv_sec, info.stx_btime.tv_nsec};
}

}  // namespace

FileIo::FileIo(int fd, std::string name) : fd_(fd), name_(std::move(name)) {
  const int flags = fcntl(fd, F_GETFL);
  const int64_t system = FileSystemOf(fd);
  if (flags != -1 && (flags & O_DIRECT)) {
    alignment_bytes_ = kDirectBytes;
    reads_ = Reads::kOffload;
  } else if (system == TMPFS_MAGIC || system == RAMFS_MAGIC) {
    reads_ = Reads::kMemory;  // knows no RWF_NOWAIT, and needs none
  } else if (system == EXT4_SUPER_MAGIC) {
    write_step_bytes_ = kExt4StepBytes;
  }
  writes_in_turn_ = alignment_bytes_ == 1 && system != 0;
  writes_to_file_ = system != 0 && flags != -1 && (flags & O_ACCMODE) != O_RDONLY;
  LostWrites& lost = LostWrites::Get();
  std::lock_guard lock(lost.mutex);
  if (!lost.files.empty() && lost.files.contains(IdentityOf(fd))) sync_errno_ = EIO;
}

// The kernel says of a file that we might not write that all of it is there. One page more than
// the file has tells such an answer from a true one.
struct FileIo::Mapping {
  static constexpr uint64_t kPageBytes = 4096;
  static constexpr uint64_t kBytesMax = uint64_t{1} << 45;  // a quarter of the address space

  static std::unique_ptr<Mapping> Of(int fd) {
    const off_t end = lseek(fd, 0, SEEK_END);
    if (end <= 0 || static_cast<uint64_t>(end) > kBytesMax) return nullptr;
    const uint64_t bytes = (static_cast<uint64_t>(end) + kPageBytes - 1) / kPageBytes * kPageBytes;
    void* start = mmap(nullptr, bytes + kPageBytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, fd, 0);
    if (start == MAP_FAILED) return nullptr;
    auto mapping = std::make_unique<Mapping>();
    mapping->start = static_cast<char*>(start);
    mapping->bytes = bytes;
    unsigned char beyond = 1;
    if (mincore(mapping->start + bytes, kPageBytes, &beyond) != 0 || (beyond & 1)) return nullptr;
    return mapping;
  }
  ~Mapping() { munmap(start, bytes + kPageBytes); }

  bool IsResident(uint64_t offset, uint64_t length) const {
    if (length > bytes || offset > bytes - length) return false;
    const uint64_t end = (offset + length + kPageBytes - 1) / kPageBytes;
    for (uint64_t page = offset / kPageBytes; page < end;) {
      unsigned char pages[256];
      const uint64_t count = std::min<uint64_t>(end - page, sizeof pages);
      if (mincore(start + page * kPageBytes, count * kPageBytes, pages) != 0) return false;
      for (uint64_t i = 0; i < count; ++i)
        if (!(pages[i] & 1)) return false;
      page += count;
    }
    return true;
  }

  char* start = nullptr;
  uint64_t bytes = 0;
};

FileIo::~FileIo() {
  mapping_.reset();
  close(fd_);
}

absl::Status FileIo::Failed(std::string_view what, int errno_value, uint64_t offset) const {
  return ErrnoError(errno_value, absl::StrCat("cannot ", what, " ", name_, " at ", offset));
}

// `error`: an errno or kEndOfFile. write(2) returns 0 for no regular file; a device that does has
// no room. But one that has shrunk says ENOSPC, too, and one that was taken out has shrunk to
// nothing.
absl::Status FileIo::WriteFailed(std::string_view what, int error, uint64_t offset) const {
  if (error == kEndOfFile) error = ENOSPC;
  uint64_t bytes = 0;
  if (error == ENOSPC && ioctl(fd_, BLKGETSIZE64, &bytes) == 0 && bytes <= offset)
    return ErrnoErrorAsIs(EIO, absl::StrCat("cannot ", what, " ", name_, " at ", offset,
                                            ": the device has only ", bytes, " bytes now"));
  return Failed(what, error, offset);
}

absl::Status FileIo::EndsEarly(uint64_t offset) const {
  return ErrnoErrorAsIs(EIO, absl::StrCat(name_, " ends at or before ", offset,
                                          ": it was made shorter while in use"));
}

absl::Status FileIo::SyncFailed(int errno_value) const {
  return ErrnoError(errno_value,
                    absl::StrCat("flushing ", name_,
                                 " failed, now or earlier: some of what was written is lost; check "
                                 "the storage, then start again from a copy that is known good"));
}

// ---- Reading and writing

Task<absl::Status> FileIo::ReadAt(uint64_t offset, std::span<char> into) {
  size_t done = 0;
  Reads reads = reads_.load(std::memory_order_relaxed);
  if (reads != Reads::kOffload && into.size() <= kInLineBytesMax) {
    iovec part{into.data(), into.size()};
    ssize_t got = preadv2(fd_, &part, 1, static_cast<off_t>(offset),
                          reads == Reads::kNoWait ? RWF_NOWAIT : 0);
    if (got == static_cast<ssize_t>(into.size())) {
      if (!reads_without_wait_.load(std::memory_order_relaxed)) reads_without_wait_ = true;
      return absl::OkStatus();
    }
    if (got == 0) return EndsEarly(offset);
    if (got < 0 && (errno == EOPNOTSUPP || errno == ENOSYS)) reads_ = Reads::kOffload;
    if (got > 0) done = static_cast<size_t>(got);
  }
  // The rest is not in memory, or whatever failed will fail again there.
  return ReadOffloaded(offset + done, into.subspan(done));
}

Task<absl::Status> FileIo::ReadOffloaded(uint64_t offset, std::span<char> into) {
  Buffer bounce;
  if (alignment_bytes_ > 1 && !Aligned(into.data()))
    bounce = Buffer(std::max<size_t>(into.size(), kDirectBytes));
  char* to = bounce ? bounce.data() : into.data();
  size_t done = 0;
  int error = 0;
  co_await Loop::Current()->Offload([&] {
    error = ReadAll(fd_, to, into.size(), offset, &done);
    if (bounce) std::copy_n(to, done, into.data());
  });
  if (error == kEndOfFile) co_return EndsEarly(offset + done);
  if (error) co_return Failed("read", error, offset + done);
  co_return absl::OkStatus();
}

// Where RWF_NOWAIT is not known, as on network file systems, even what is cached may wait.
bool FileIo::IsCached(uint64_t offset, uint64_t length) {
  if (!reads_without_wait_.load(std::memory_order_relaxed)) return false;
  std::call_once(map_once_, [this] { mapping_ = Mapping::Of(fd_); });
  if (!mapping_ || !mapping_->IsResident(offset, length)) return false;
  const off_t end = lseek(fd_, 0, SEEK_END);  // its last page may be there, and lie half outside
  return end >= 0 && offset + length <= static_cast<uint64_t>(end);
}

void FileIo::TimedWrite(int64_t took_ns) {
  if (took_ns > kSlowWriteNs) {
    distrusted_writes_.store(kDistrustedWrites, std::memory_order_relaxed);
  } else if (int left = distrusted_writes_.load(std::memory_order_relaxed); left > 0) {
    distrusted_writes_.compare_exchange_strong(left, left - 1, std::memory_order_relaxed);
  }
}

// Writes to the page cache have no RWF_NOWAIT on ext4. They wait when too much is dirty or when
// part of a page must be read first; that shows in the time they take.
bool FileIo::InLine(size_t bytes) const {
  return bytes <= kInLineBytesMax && alignment_bytes_ == 1 &&
         distrusted_writes_.load(std::memory_order_relaxed) == 0;
}

Task<absl::Status> FileIo::WriteAt(uint64_t offset, std::span<const char> from) {
  if (!InLine(from.size()) || !TryTurn())
    return writes_in_turn_ ? WriteInTurn(offset, from) : WriteOffloaded(offset, from);
  PendingWrite write{offset, from};
  Make(&write);
  if (writes_in_turn_) MakeOthers(/*in_line=*/true);
  return ResultOf(write);
}

absl::Status FileIo::ResultOf(const PendingWrite& write) const {
  if (write.error == 0) return absl::OkStatus();
  return WriteFailed("write", write.error, write.offset + write.done);
}

// The write is gone when this returns, if somebody waits for it.
void FileIo::Make(PendingWrite* write) {
  const int64_t start_ns = NowNs();
  write->error = WriteAll(fd_, write->from.data(), write->from.size(), write->offset,
                          write_step_bytes_, &write->done);
  TimedWrite(NowNs() - start_ns);
  if (write->handle) write->loop->Post(write->handle);
}

// ---- Turns: one thread writes to a regular file, and makes the writes that others want meanwhile

bool FileIo::TryTurn() {
  if (!writes_in_turn_) return true;
  std::lock_guard lock(turn_mutex_);
  return !std::exchange(writing_, true);
}

// The turn stays ours. Null: nobody waits, and it has ended.
FileIo::PendingWrite* FileIo::NextPending() {
  std::lock_guard lock(turn_mutex_);
  writing_ = !pending_.empty();
  if (!writing_) return nullptr;
  PendingWrite* next = pending_.front();
  pending_.pop_front();
  return next;
}

// True: it is our turn. False: another has made the write.
struct FileIo::Turn {
  FileIo* file;
  PendingWrite* write;
  bool await_ready() const { return file->TryTurn(); }
  bool await_suspend(std::coroutine_handle<> handle) const {
    std::lock_guard lock(file->turn_mutex_);
    if (!std::exchange(file->writing_, true)) return false;
    write->loop = Loop::Current();
    write->handle = handle;
    file->pending_.push_back(write);
    return true;
  }
  bool await_resume() const { return !write->handle || write->has_turn; }
};

Task<absl::Status> FileIo::WriteInTurn(uint64_t offset, std::span<const char> from) {
  PendingWrite write{offset, from};
  if (!co_await Turn{this, &write}) co_return ResultOf(write);
  write.handle = nullptr;
  if (InLine(from.size())) {
    Make(&write);
    MakeOthers(/*in_line=*/true);
  } else {
    co_await Loop::Current()->Offload([&] {
      Make(&write);
      MakeOthers(/*in_line=*/false);
    });
  }
  co_return ResultOf(write);
}

// Ends our turn: makes what others want, for a moment, since this thread has other work and our own
// write an answer to give; then the next one has its turn.
void FileIo::MakeOthers(bool in_line) {
  const int64_t until_ns = NowNs() + kTurnNs;
  while (PendingWrite* next = NextPending()) {
    if ((!in_line || InLine(next->from.size())) && NowNs() < until_ns) {
      Make(next);
    } else {
      next->has_turn = true;
      return next->loop->Post(next->handle);
    }
  }
}

Task<absl::Status> FileIo::WriteOffloaded(uint64_t offset, std::span<const char> from) {
  Buffer bounce;
  if (alignment_bytes_ > 1 && !Aligned(from.data()))
    bounce = Buffer(std::max<size_t>(from.size(), kDirectBytes));
  size_t done = 0;
  int error = 0;
  co_await Loop::Current()->Offload([&] {
    if (bounce) std::copy_n(from.data(), from.size(), bounce.data());
    int64_t start_ns = NowNs();
    error = WriteAll(fd_, bounce ? bounce.data() : from.data(), from.size(), offset,
                     write_step_bytes_, &done);
    TimedWrite(NowNs() - start_ns);
  });
  if (error) co_return WriteFailed("write", error, offset + done);
  co_return absl::OkStatus();
}

Task<absl::Status> FileIo::WriteZeroesAt(uint64_t offset, uint64_t length) {
  size_t done = 0;
  int error = 0;
  co_await Loop::Current()->Offload([&] { error = WriteAllZeroes(fd_, length, offset, &done); });
  if (error) co_return WriteFailed("write zeroes to", error, offset + done);
  co_return absl::OkStatus();
}

// ---- Durability

Task<absl::Status> FileIo::Sync() {
  uint64_t ticket = ++syncs_asked_;
  MutexGuard guard = co_await sync_mutex_.Lock();
  if (sync_errno_) co_return SyncFailed(sync_errno_);
  // A sync that began after we asked has covered what was written before.
  if (syncs_done_ >= ticket) co_return absl::OkStatus();
  uint64_t covers = syncs_asked_.load();
  int error = fail_next_sync_.exchange(0);
  if (error == 0) {
    co_await Loop::Current()->Offload([&] { error = SyncToDisk(fd_, writes_to_file_); });
  }
  if (error == 0) {
    syncs_done_ = covers;
    co_return absl::OkStatus();
  }
  sync_errno_ = error;
  LostWrites& lost = LostWrites::Get();
  std::lock_guard lock(lost.mutex);
  lost.files.insert(IdentityOf(fd_));
  co_return SyncFailed(error);
}

// ---- Extents

uint64_t FileIo::KnownDataEnd(uint64_t offset) {
  std::lock_guard lock(data_mutex_);
  return offset >= data_from_ ? data_to_ : 0;
}

void FileIo::RememberData(uint64_t from, uint64_t to) {
  std::lock_guard lock(data_mutex_);
  data_from_ = from;
  data_to_ = to;
}

Task<absl::Status> FileIo::FindExtents(ExtentList* list, bool only_first) {
  if (uint64_t end = KnownDataEnd(list->next()); end > list->next()) {
    list->Append(end - list->next(), kExtentData);
    if (only_first || list->full()) co_return absl::OkStatus();
  }
  int error = 0;
  uint64_t at = list->next();
  co_await Loop::Current()->Offload([&] { error = SeekExtents(list, only_first); });
  if (error) co_return Failed("find the holes of", error, at);
  co_return absl::OkStatus();
}

// The position of the descriptor is shared by all threads, but a seek answers with its own result
// and nothing else uses the position: no lock is needed.
int FileIo::SeekExtents(ExtentList* list, bool only_first) {
  while (!list->full()) {
    uint64_t at = list->next();
    off_t data = lseek(fd_, static_cast<off_t>(at), SEEK_DATA);
    if (data < 0 && errno != ENXIO) return errno;
    if (data < 0) {  // a hole up to the end of the file; what else was asked for is not there
      struct stat info;
      if (fstat(fd_, &info) != 0) return errno;
      uint64_t end = static_cast<uint64_t>(info.st_size);
      if (end > at) list->Append(end - at, kExtentHoleZero);
      if (!only_first || list->empty()) list->Append(list->end() - list->next(), kExtentData);
      return 0;
    }
    uint64_t from = static_cast<uint64_t>(data);
    if (from > at) list->Append(from - at, kExtentHoleZero);
    if (list->full() || (only_first && !list->empty())) return 0;
    off_t hole = lseek(fd_, data, SEEK_HOLE);
    if (hole < 0 && errno != ENXIO) return errno;
    if (hole <= data) {  // it changes under our hands; data is never wrong
      list->Append(list->end() - list->next(), kExtentData);
      return 0;
    }
    RememberData(from, static_cast<uint64_t>(hole));
    list->Append(static_cast<uint64_t>(hole - data), kExtentData);
    if (only_first) return 0;
  }
  return 0;
}

// ---- Other calls

namespace {
// `call` is a system call that returns -1 and sets errno.
template <typename Call>
Task<int> Offloaded(Call call) {
  int error = 0;
  co_await Loop::Current()->Offload([&] {
    do error = call() == 0 ? 0 : errno;
    while (error == EINTR);
  });
  co_return error;
}
}  // namespace

Task<int> FileIo::Allocate(int mode, uint64_t offset, uint64_t length) {
  RememberData(0, 0);  // it may become a hole
  return Offloaded([fd = fd_, mode, offset, length] {
    return fallocate(fd, mode, static_cast<off_t>(offset), static_cast<off_t>(length));
  });
}

Task<int> FileIo::Discard(uint64_t offset, uint64_t length) {
  return Offloaded([fd = fd_, offset, length] {
    uint64_t range[2] = {offset, length};
    return ioctl(fd, BLKDISCARD, range);
  });
}

Task<int> FileIo::Advise(uint64_t offset, uint64_t length, int advice) {
  return Offloaded([fd = fd_, offset, length, advice] {
    errno = posix_fadvise(fd, static_cast<off_t>(offset), static_cast<off_t>(length), advice);
    return errno == 0 ? 0 : -1;
  });
}

Task<int> FileIo::StartWriting() {
  return Offloaded([fd = fd_] { return sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE); });
}

Task<int> FileIo::DropPageCache() {
  return Offloaded([fd = fd_] {
    int result = sync_file_range(fd, 0, 0, SYNC_FILE_RANGE_WRITE);
    (void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    return result;
  });
}

}  // namespace blk
