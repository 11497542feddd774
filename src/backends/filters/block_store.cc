#include "src/backends/filters/block_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

namespace blk {
namespace {

absl::StatusOr<int> OpenTemporaryFile() {
  const char* directory = std::getenv("TMPDIR");
  std::string path = absl::StrCat(directory && *directory ? directory : "/var/tmp", "/blkXXXXXX");
  int fd = mkostemp(path.data(), O_CLOEXEC);
  if (fd < 0)
    return ErrnoError(errno,
                      absl::StrCat("cannot make a temporary file ", path, " (TMPDIR says where)"));
  unlink(path.c_str());
  return fd;
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlockStore>> BlockStore::Create(uint64_t block_bytes) {
  BLK_ASSIGN_OR_RETURN(int fd, OpenTemporaryFile());
  return std::unique_ptr<BlockStore>(new BlockStore(fd, block_bytes));
}

BlockStore::BlockStore(int fd, uint64_t block_bytes)
    : block_bytes_(block_bytes), file_(fd, "the temporary file") {}

// The first present block in [first, end), or `end`.
uint64_t BlockStore::NextPresent(uint64_t first, uint64_t end) const {
  for (auto page = pages_.lower_bound(first / kPageBlocks); page != pages_.end(); ++page) {
    const uint64_t base = page->first * kPageBlocks;
    if (base >= end) break;
    if (page->second->present == 0) continue;
    for (uint64_t block = std::max(base, first); block < std::min(base + kPageBlocks, end); ++block)
      if (page->second->blocks[block - base] & kPresentBit) return block;
  }
  return end;
}

BlockStore::Run BlockStore::PresentRun(const Page& page, uint64_t first, uint64_t end) const {
  const uint64_t base = first / kPageBlocks * kPageBlocks;
  const uint32_t entry = page.blocks[first - base];
  uint64_t next = first + 1;
  end = std::min(end, base + kPageBlocks);
  while (next < end && page.blocks[next - base] == entry + (next - first)) ++next;
  return {State::kPresent, next - first, PositionOf(entry)};
}

BlockStore::Run BlockStore::RunAt(uint64_t first, uint64_t blocks_max) const {
  const uint64_t end = first + blocks_max;
  std::lock_guard lock(mutex_);
  if (auto page = pages_.find(first / kPageBlocks); page != pages_.end()) {
    if (page->second->blocks[first % kPageBlocks] & kPresentBit)
      return PresentRun(*page->second, first, end);
  }
  auto after = zeroes_.upper_bound(first);
  if (after != zeroes_.begin() && std::prev(after)->second > first)
    return {State::kZero, NextPresent(first, std::min(std::prev(after)->second, end)) - first, 0};
  if (after != zeroes_.end()) blocks_max = std::min(blocks_max, after->first - first);
  return {State::kAbsent, NextPresent(first, first + blocks_max) - first, 0};
}

absl::StatusOr<uint64_t> BlockStore::Place(uint64_t block) {
  std::lock_guard lock(mutex_);
  std::unique_ptr<Page>& page = pages_[block / kPageBlocks];
  if (!page) page = std::make_unique<Page>();
  uint32_t& entry = page->blocks[block % kPageBlocks];
  if (entry == 0) {
    if (places_ == kPresentBit - 1)
      return ErrnoErrorAsIs(ENOSPC,
                            absl::StrCat("the temporary file holds ", places_,
                                         " blocks and can hold no more: choose larger ones"));
    entry = ++places_;
  }
  return PositionOf(entry);
}

void BlockStore::SetPresent(uint64_t block) {
  std::lock_guard lock(mutex_);
  Page& page = *pages_[block / kPageBlocks];
  uint32_t& entry = page.blocks[block % kPageBlocks];
  if (entry & kPresentBit) return;
  entry |= kPresentBit;
  ++page.present;
}

Task<void> BlockStore::SetZero(uint64_t first, uint64_t blocks) {
  const uint64_t end = first + blocks;
  {
    std::lock_guard lock(mutex_);
    uint64_t from = first, to = end;
    auto range = zeroes_.upper_bound(first);
    if (range != zeroes_.begin() && std::prev(range)->second >= first) --range;
    while (range != zeroes_.end() && range->first <= end) {
      from = std::min(from, range->first);
      to = std::max(to, range->second);
      range = zeroes_.erase(range);
    }
    zeroes_[from] = to;
  }
  for (uint64_t at = first; at < end;) {
    Run run;
    {
      std::lock_guard lock(mutex_);
      at = NextPresent(at, end);
      if (at == end) break;
      Page& page = *pages_[at / kPageBlocks];
      run = PresentRun(page, at, end);
      for (uint64_t i = at; i < at + run.blocks; ++i) page.blocks[i % kPageBlocks] &= ~kPresentBit;
      page.present -= run.blocks;
    }
    // A file system that cannot do this keeps the room: nothing else depends on it.
    (void)co_await file_.Allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, run.position,
                                  run.blocks * block_bytes_);
    at += run.blocks;
  }
}

uint64_t BlockStore::memory_bytes() const {
  std::lock_guard lock(mutex_);
  return pages_.size() * sizeof(Page) + zeroes_.size() * 2 * sizeof(uint64_t);
}

}  // namespace blk
