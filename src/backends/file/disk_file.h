#pragma once
// Files that serve as disks: opening and checking them, and the devices over them. Used by the
// backends file and split.
//
// Threads: opening blocks (before loops run, or on the offload pool); the rest is parallel-safe: a
// DiskFile has no state but hints, each of them one atomic.
#include <fcntl.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "src/core/device.h"
#include "src/core/file_io.h"

namespace blk {

struct FileOptions {
  int advice = POSIX_FADV_NORMAL;  // posix_fadvise(2) for the whole file
  bool keep_in_page_cache = true;
};

// One open file, shared by all devices over it.
struct DiskFile {
  DiskFile(int fd, std::string name) : io(fd, std::move(name)) {}

  FileIo io;
  FileOptions options;
  bool writable = false;
  bool is_block_device = false;
  bool finds_holes = false;
  bool rotational = false;
  uint32_t sector_bytes = 1;  // what discarding and zeroing on a block device are aligned to
  uint32_t preferred_bytes = 0;

  // What the file system or driver has not refused yet.
  std::atomic<bool> punches_holes{true}, zeroes_ranges{true}, allocates{true}, discards{true};
  std::atomic<uint64_t> written_bytes{0};  // by those who drop pages or write behind
};
using DiskFilePtr = std::shared_ptr<DiskFile>;

// Opens `path`, relative to `directory_fd` (AT_FDCWD or a directory). Without `read_only`, a file
// that may not be written is opened for reading. Errors say what is there instead of a disk.
absl::StatusOr<DiskFilePtr> OpenDiskFile(int directory_fd, const std::string& path, bool read_only,
                                         const FileOptions& options);
// Takes over an open descriptor; on an error it is closed.
absl::StatusOr<DiskFilePtr> AdoptDiskFile(int fd, std::string name, const FileOptions& options);

// True for what OpenDiskFile takes, by type.
bool IsDiskMode(mode_t mode);

// A device of the size that the file has now. With `writes_behind` the disk begins to write what
// came while more comes, instead of at the flush.
absl::StatusOr<DevicePtr> MakeFileDevice(DiskFilePtr file, bool read_only,
                                         bool writes_behind = false);

}  // namespace blk
