#pragma once
// FileIo: one open file or block device, read and written by coroutines.
//
// Owner: whoever opened it, usually shared by all devices over the file. Threads: any loop, any
// number of calls at a time; no call blocks its loop for long. What the page cache has is read in
// line (preadv2 with RWF_NOWAIT), writes go to the page cache in line as long as that is quick, and
// whatever may wait for a disk runs on the offload pool. Writes of one file are made by one thread
// at a time: the kernel would let them wait for one another anyway, spinning (a file copied to a
// file by two loops took two to three times the CPU of one loop). No io_uring: cold 4 KiB reads at
// depth 32 were as many a second without it (60-66k and 64-67k), since RWF_NOWAIT starts them all;
// it would save some 4 us of CPU for each of those. A Task resumes on its caller's loop. Spans live
// until the Task completes. Nothing here moves or uses the file position, except for FindExtents,
// which leaves it anywhere.
#include <sys/types.h>

#include <atomic>
#include <coroutine>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <string>

#include "src/core/extents.h"
#include "src/core/sync.h"
#include "src/core/task.h"

namespace blk {

class FileIo {
 public:
  // Closes `fd`, a regular file or block device, in the end. `name` is how messages call it.
  FileIo(int fd, std::string name);
  FileIo(const FileIo&) = delete;
  ~FileIo();

  int fd() const { return fd_; }
  const std::string& name() const { return name_; }
  // What offsets and lengths of reads and writes must be multiples of: 1 unless the descriptor has
  // O_DIRECT. Memory needs no alignment.
  uint32_t alignment_bytes() const { return alignment_bytes_; }

  // All of `into`, or an error: EIO also where the file ends too early (it was made shorter).
  Task<absl::Status> ReadAt(uint64_t offset, std::span<char> into);
  // Whether all of the range is in the file and in the page cache, so that sendfile(2) would not
  // wait now. False also where that cannot be known, and before anything was read.
  bool IsCached(uint64_t offset, uint64_t length);
  // What large writes are cut into where the file system makes small writes to the same place
  // dearer after large ones (ext4). Small pieces suit blocks that are written again and again,
  // whole ones (SIZE_MAX) what is written once. Before anything is written.
  void SetWriteStep(size_t bytes) {
    if (write_step_bytes_ != SIZE_MAX) write_step_bytes_ = bytes;
  }
  // All of `from`, or an error (ENOSPC ...; EIO where a device has vanished) after any part of it.
  Task<absl::Status> WriteAt(uint64_t offset, std::span<const char> from);
  // The same with zeroes. May take long, so the caller cuts what must stay stoppable.
  Task<absl::Status> WriteZeroesAt(uint64_t offset, uint64_t length);

  // Puts everything that was written before on stable storage. Callers that come while a sync runs
  // share the next one. After one failure this fails for ever, also for a FileIo made later for the
  // same file: the kernel reports lost writes once, and then believes the file to be clean. EROFS
  // where the file system has become read-only under a file that was opened for writing.
  Task<absl::Status> Sync();

  // Appends what lies at [list->next(), list->end()): data or hole; with `only_first`, one extent.
  // EINVAL: this file cannot tell. What is beyond the end of the file counts as data, so that
  // whoever reads it gets the error instead of silent zeroes.
  Task<absl::Status> FindExtents(ExtentList* list, bool only_first);

  // System calls that may wait. The result is 0 or an errno, for callers who know other ways.
  Task<int> Allocate(int mode, uint64_t offset, uint64_t length);  // fallocate(2)
  Task<int> Discard(uint64_t offset, uint64_t length);             // BLKDISCARD
  Task<int> Advise(uint64_t offset, uint64_t length, int advice);  // posix_fadvise(2)
  // Starts writing dirty pages to the disk.
  Task<int> StartWriting();
  // The same, and drops clean ones from the page cache.
  Task<int> DropPageCache();

  // For tests: the next sync fails with this errno, as if the storage had lost writes.
  void FailNextSyncForTest(int errno_value) { fail_next_sync_.store(errno_value); }

 private:
  enum class Reads { kNoWait, kMemory, kOffload };
  // The file's address range, never touched, for mincore(2).
  struct Mapping;

  Task<absl::Status> ReadOffloaded(uint64_t offset, std::span<char> into);
  // A write that waits for its turn, or has it; lives in its coroutine.
  struct PendingWrite {
    uint64_t offset;
    std::span<const char> from;
    size_t done = 0;
    int error = 0;
    Loop* loop = nullptr;  // where `handle` goes on when another has made the write
    std::coroutine_handle<> handle = nullptr;
    bool has_turn = false;  // it goes on to make its write itself
  };
  struct Turn;
  Task<absl::Status> WriteInTurn(uint64_t offset, std::span<const char> from);
  void MakeOthers(bool in_line);
  bool TryTurn();
  PendingWrite* NextPending();
  bool InLine(size_t bytes) const;
  void Make(PendingWrite* write);
  absl::Status ResultOf(const PendingWrite& write) const;
  Task<absl::Status> WriteOffloaded(uint64_t offset, std::span<const char> from);
  absl::Status Failed(std::string_view what, int errno_value, uint64_t offset) const;
  absl::Status WriteFailed(std::string_view what, int error, uint64_t offset) const;
  absl::Status EndsEarly(uint64_t offset) const;
  absl::Status SyncFailed(int errno_value) const;
  void TimedWrite(int64_t took_ns);
  int SeekExtents(ExtentList* list, bool only_first);
  uint64_t KnownDataEnd(uint64_t offset);
  void RememberData(uint64_t from, uint64_t to);

  const int fd_;
  const std::string name_;
  uint32_t alignment_bytes_ = 1;
  std::atomic<Reads> reads_{Reads::kNoWait};
  std::atomic<bool> reads_without_wait_{false};  // it has worked
  std::once_flag map_once_;
  std::unique_ptr<Mapping> mapping_;  // null: residency cannot be known
  bool writes_in_turn_ = false;
  size_t write_step_bytes_ = SIZE_MAX;  // of one system call; SIZE_MAX: it does not matter
  bool writes_to_file_ = false;         // a regular file, open for writing
  std::mutex turn_mutex_;
  bool writing_ = false;               // guarded by turn_mutex_, as is the next
  std::deque<PendingWrite*> pending_;  // to be made by whoever writes
  // Writes in line are on trust. One that was slow sets this to the number of quick ones, on the
  // offload pool, that it takes to trust again.
  std::atomic<int> distrusted_writes_{0};

  Mutex sync_mutex_;
  std::atomic<uint64_t> syncs_asked_{0};
  uint64_t syncs_done_ = 0;  // of those asked; guarded by sync_mutex_, as is the next
  int sync_errno_ = 0;       // the first failure
  std::atomic<int> fail_next_sync_{0};

  // The last data extent that was found, since finding the end of one may be slow (tmpfs walks all
  // its pages). Never a hole: a stale "data" costs a copy, a stale "hole" would lose bytes.
  std::mutex data_mutex_;
  uint64_t data_from_ = 0, data_to_ = 0;
};

}  // namespace blk
