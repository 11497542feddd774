// The malloc allocator: the whole disk as one mapping. Everything counts as allocated. Fastest,
// with huge pages, for who has the memory.
#include <sys/mman.h>

#include <cerrno>

#include "src/backends/page_store/disk_bytes.h"
#include "src/backends/page_store/stores.h"

namespace blk::page_store {
namespace {

constexpr uint64_t kPageBytes = 4096;

class MallocStore : public PageStore {
 public:
  MallocStore(char* data, uint64_t size_bytes) : data_(data), size_bytes_(size_bytes) {}
  ~MallocStore() override { munmap(data_, size_bytes_); }

  absl::Status Read(uint64_t offset, std::span<char> into) override {
    ReadDiskBytes(into.data(), data_ + offset, into.size());
    return absl::OkStatus();
  }
  absl::Status Write(uint64_t offset, std::span<const char> from) override {
    WriteDiskBytes(data_ + offset, from.data(), from.size());
    return absl::OkStatus();
  }
  absl::Status Zero(uint64_t offset, uint64_t length, bool may_trim) override;
  void Extents(ExtentList* list) override { list->Append(list->end() - list->next(), kExtentData); }
  bool Borrow(uint64_t offset, uint64_t length, Loan* loan) override {
    loan->Add(data_ + offset, length);
    return true;
  }
  bool in_place() const override { return true; }
  Stats stats() const override {
    return {.logical_bytes = size_bytes_, .stored_bytes = size_bytes_};
  }

 private:
  char* const data_;
  const uint64_t size_bytes_;
};

// Whole pages are dropped, also when the caller wants to keep its space: the mapping is promised
// anyway, and filling a large, untouched range would take all its memory. Locked memory refuses to
// be dropped and is filled; it is resident as it is.
absl::Status MallocStore::Zero(uint64_t offset, uint64_t length, bool) {
  const uint64_t end = offset + length;
  const uint64_t first = (offset + kPageBytes - 1) & ~(kPageBytes - 1);
  const uint64_t last = end & ~(kPageBytes - 1);
  if (first >= last || madvise(data_ + first, last - first, MADV_DONTNEED) != 0) {
    ZeroDiskBytes(data_ + offset, length);
    return absl::OkStatus();
  }
  ZeroDiskBytes(data_ + offset, first - offset);
  ZeroDiskBytes(data_ + last, end - last);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<StorePtr> MakeMalloc(uint64_t size_bytes, bool lock) {
  const uint64_t mapped_bytes = std::max<uint64_t>(size_bytes, 1);
  void* data = mmap(nullptr, mapped_bytes, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED)
    return ErrnoError(errno, absl::StrCat("memory: allocator=malloc cannot map ", size_bytes,
                                          " bytes; use allocator=sparse"));
  auto store = std::make_unique<MallocStore>(static_cast<char*>(data), mapped_bytes);
  madvise(data, mapped_bytes, MADV_HUGEPAGE);
  madvise(data, mapped_bytes, MADV_DONTDUMP);
  if (lock && mlock(data, mapped_bytes) != 0)
    return ErrnoError(errno,
                      absl::StrCat("memory: cannot lock ", size_bytes,
                                   " bytes; raise the limit (ulimit -l) or leave mlock out"));
  return store;
}

}  // namespace blk::page_store
