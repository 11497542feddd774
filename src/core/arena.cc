#include "src/core/arena.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>

#include "absl/cleanup/cleanup.h"

namespace blk {
namespace {

absl::StatusOr<char*> Map(int fd, uint64_t bytes) {
  void* data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return ErrnoError(errno, "cannot map the shared memory");
  return static_cast<char*>(data);
}

}  // namespace

absl::StatusOr<std::shared_ptr<Arena>> Arena::Create(uint64_t bytes) {
  int fd = memfd_create("blk-arena", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return ErrnoError(errno, "cannot make shared memory");
  absl::Cleanup closer = [fd] { close(fd); };
  if (ftruncate(fd, static_cast<off_t>(bytes)) < 0 ||
      fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
    return ErrnoError(errno, "cannot size and seal shared memory");
  BLK_ASSIGN_OR_RETURN(char* data, Map(fd, bytes));
  std::move(closer).Cancel();
  return std::shared_ptr<Arena>(new Arena(fd, data, bytes));
}

absl::StatusOr<std::shared_ptr<Arena>> Arena::Adopt(int fd, uint64_t bytes) {
  absl::Cleanup closer = [fd] { close(fd); };
  auto refuse = [](std::string_view why) {
    return ErrnoErrorAsIs(EINVAL, absl::StrCat("shared memory refused: ", why));
  };
  int seals = fcntl(fd, F_GET_SEALS);
  if (seals < 0) return refuse("not a memfd");
  if (!(seals & F_SEAL_SHRINK)) return refuse("not sealed against shrinking");
  struct statfs system{};
  if (fstatfs(fd, &system) < 0 || system.f_type == HUGETLBFS_MAGIC)
    return refuse("made of huge pages");
  struct stat info{};
  if (fstat(fd, &info) < 0 || bytes == 0 || static_cast<uint64_t>(info.st_size) < bytes)
    return refuse("shorter than was said");
  BLK_ASSIGN_OR_RETURN(char* data, Map(fd, bytes));
  std::move(closer).Cancel();
  return std::shared_ptr<Arena>(new Arena(fd, data, bytes));
}

Arena::~Arena() {
  munmap(data_, size_);
  close(fd_);
}

int Arena::ClassOf(uint64_t bytes) {
  int shift = std::bit_width(bytes - 1);
  return shift <= kSmallestShift ? 0 : shift - kSmallestShift;
}

char* Arena::TakePiece(uint64_t bytes) {
  const int index = bytes ? ClassOf(bytes) : 0;
  if (index >= kClasses) return nullptr;
  const uint64_t class_bytes = uint64_t{1} << (index + kSmallestShift);
  std::lock_guard lock(mutex_);
  if (!free_[index].empty()) {
    char* piece = free_[index].back();
    free_[index].pop_back();
    return piece;
  }
  if (size_ - carved_ < class_bytes) return nullptr;
  return data_ + std::exchange(carved_, carved_ + class_bytes);
}

void Arena::GivePiece(char* piece, uint64_t bytes) {
  const int index = bytes ? ClassOf(bytes) : 0;
  std::lock_guard lock(mutex_);
  if (RetiredLocked(piece, uint64_t{1} << (index + kSmallestShift))) return;
  free_[index].push_back(piece);
}

void Arena::Retire(const char* at, uint64_t bytes) {
  std::lock_guard lock(mutex_);
  retired_.emplace_back(OffsetOf(at), bytes);
  any_retired_ = true;
}

bool Arena::Retired(const char* at, uint64_t bytes) const {
  if (!any_retired_) return false;
  std::lock_guard lock(mutex_);
  return RetiredLocked(at, bytes);
}

bool Arena::RetiredLocked(const char* at, uint64_t bytes) const {
  const uint64_t offset = OffsetOf(at);
  return std::any_of(retired_.begin(), retired_.end(), [&](const auto& range) {
    return offset < range.first + range.second && range.first < offset + bytes;
  });
}

}  // namespace blk
