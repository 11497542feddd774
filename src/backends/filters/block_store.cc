#include "src/backends/filters/block_store.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

namespace blk {
namespace {

// A block is here because it will be used again.
constexpr size_t kWriteStepBytes = 16 << 10;

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

absl::StatusOr<std::unique_ptr<BlockStore>> BlockStore::Create(uint64_t block_bytes,
                                                               size_t zero_ranges_max) {
  BLK_ASSIGN_OR_RETURN(int fd, OpenTemporaryFile());
  return std::unique_ptr<BlockStore>(new BlockStore(fd, block_bytes, zero_ranges_max));
}

BlockStore::BlockStore(int fd, uint64_t block_bytes, size_t zero_ranges_max)
    : block_bytes_(block_bytes),
      zero_ranges_max_(zero_ranges_max),
      file_(fd, "the temporary file") {
  file_.SetWriteStep(kWriteStepBytes);
}

// The first present block in [first, end), or `end`.
uint64_t BlockStore::NextPresent(uint64_t first, uint64_t end) const {
  for (auto page = pages_.lower_bound(first / kPageBlocks); page != pages_.end(); ++page) {
    const uint64_t base = page->first * kPageBlocks;
    if (base >= end) break;
    if (page->second->present == 0) continue;
    for (uint64_t block = std::max(base, first); block < std::min(base + kPageBlocks, end); ++block)
      if (page->second->has(block - base)) return block;
  }
  return end;
}

BlockStore::Run BlockStore::PresentRun(Page& page, uint64_t first, uint64_t end) const {
  const uint64_t base = first / kPageBlocks * kPageBlocks;
  const uint32_t entry = page.blocks[first - base];
  const bool dirty = page.dirty[first - base];
  page.used.set(first - base);
  uint64_t next = first + 1;
  end = std::min(end, base + kPageBlocks);
  for (; next < end; ++next) {
    if (page.blocks[next - base] != entry + (next - first) || page.dirty[next - base] != dirty)
      break;
    page.used.set(next - base);
  }
  return {State::kPresent, next - first, PositionOf(entry), dirty};
}

BlockStore::Run BlockStore::RunAt(uint64_t first, uint64_t blocks_max) const {
  std::lock_guard lock(mutex_);
  return RunLocked(first, blocks_max);
}

BlockStore::Run BlockStore::RunLocked(uint64_t first, uint64_t blocks_max) const {
  const uint64_t end = first + blocks_max;
  if (auto page = pages_.find(first / kPageBlocks); page != pages_.end()) {
    if (page->second->has(first % kPageBlocks)) return PresentRun(*page->second, first, end);
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

void BlockStore::SetPresent(uint64_t block, bool dirty) {
  std::lock_guard lock(mutex_);
  Page& page = *pages_[block / kPageBlocks];
  page.dirty[block % kPageBlocks] = dirty;
  page.used.set(block % kPageBlocks);
  if (page.has(block % kPageBlocks)) return;
  page.blocks[block % kPageBlocks] |= kPresentBit;
  ++page.present;
  ++present_blocks_;
}

void BlockStore::SetDirty(uint64_t first, uint64_t blocks, bool dirty) {
  std::lock_guard lock(mutex_);
  for (uint64_t block = first; block < first + blocks; ++block)
    pages_[block / kPageBlocks]->dirty[block % kPageBlocks] = dirty;
}

Task<absl::Status> BlockStore::SetZero(uint64_t first, uint64_t blocks) {
  const uint64_t end = first + blocks;
  {
    std::lock_guard lock(mutex_);
    uint64_t from = first, to = end;
    auto range = zeroes_.upper_bound(first);
    if (range != zeroes_.begin() && std::prev(range)->second >= first) --range;
    const bool joins_another = range != zeroes_.end() && range->first <= end;
    if (!joins_another && zeroes_.size() >= zero_ranges_max_)
      co_return ErrnoErrorAsIs(ENOSPC, absl::StrCat("there are ", zeroes_.size(),
                                                    " ranges of zeroes already, and no more can be "
                                                    "remembered"));
    while (range != zeroes_.end() && range->first <= end) {
      from = std::min(from, range->first);
      to = std::max(to, range->second);
      range = zeroes_.erase(range);
    }
    zeroes_[from] = to;
  }
  co_await Forget(first, end);
  co_return absl::OkStatus();
}

Task<void> BlockStore::Drop(uint64_t first, uint64_t blocks) {
  {
    std::lock_guard lock(mutex_);
    EraseZeroes(first, first + blocks);
  }
  return Forget(first, first + blocks);
}

void BlockStore::EraseZeroes(uint64_t first, uint64_t end) {
  auto range = zeroes_.upper_bound(first);
  if (range != zeroes_.begin() && std::prev(range)->second > first) --range;
  while (range != zeroes_.end() && range->first < end) {
    const auto [from, to] = *range;
    range = zeroes_.erase(range);
    if (from < first) zeroes_[from] = first;
    if (to > end) zeroes_[end] = to;
    range = zeroes_.lower_bound(std::min(to, end));
  }
}

// The present blocks of the range are no longer so.
Task<void> BlockStore::Forget(uint64_t first, uint64_t end) {
  for (uint64_t at = first; at < end;) {
    Run run;
    {
      std::lock_guard lock(mutex_);
      at = NextPresent(at, end);
      if (at == end) break;
      Page& page = *pages_[at / kPageBlocks];
      run = PresentRun(page, at, end);
      for (uint64_t i = at; i < at + run.blocks; ++i) {
        page.blocks[i % kPageBlocks] &= ~kPresentBit;
        page.dirty.reset(i % kPageBlocks);
      }
      page.present -= run.blocks;
      present_blocks_ -= run.blocks;
      ++drops_;
    }
    // A file system that cannot do this keeps the room: nothing else depends on it.
    (void)co_await file_.Allocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, run.position,
                                  run.blocks * block_bytes_);
    at += run.blocks;
  }
}

uint64_t BlockStore::NextDirtyPresent(uint64_t first) const {
  for (auto page = pages_.lower_bound(first / kPageBlocks); page != pages_.end(); ++page) {
    if (page->second->dirty.none()) continue;
    const uint64_t base = page->first * kPageBlocks;
    for (uint64_t block = std::max(base, first); block < base + kPageBlocks; ++block)
      if (page->second->dirty[block - base]) return block;
  }
  return UINT64_MAX;
}

uint64_t BlockStore::NextDirty(uint64_t first) const {
  std::lock_guard lock(mutex_);
  const uint64_t dirty = NextDirtyPresent(first);
  auto range = zeroes_.upper_bound(first);
  if (range != zeroes_.begin() && std::prev(range)->second > first) --range;
  // What is present inside a range of zeroes was written later, and hides them.
  for (; range != zeroes_.end() && range->first < dirty; ++range) {
    for (uint64_t at = std::max(first, range->first); at < std::min(range->second, dirty);) {
      const Run run = RunLocked(at, std::min(range->second, dirty) - at);
      if (run.state == State::kZero) return at;
      at += run.blocks;
    }
  }
  return dirty;
}

std::optional<uint64_t> BlockStore::FindUnused() {
  std::lock_guard lock(mutex_);
  std::optional<uint64_t> any;
  auto page = pages_.lower_bound(hand_ / kPageBlocks);
  for (size_t left = std::min(2 * pages_.size() + 2, kPagesSearched); left > 0; --left) {
    if (page == pages_.end()) {
      if (pages_.empty()) break;
      page = pages_.begin();
      hand_ = 0;
    }
    const uint64_t base = page->first * kPageBlocks;
    for (uint64_t block = std::max(base, hand_); block < base + kPageBlocks; ++block) {
      if (!page->second->has(block - base)) continue;
      if (!page->second->used[block - base]) {
        hand_ = block + 1;
        return block;
      }
      page->second->used.reset(block - base);
      if (!any) any = block;
    }
    hand_ = base + kPageBlocks;
    ++page;
  }
  return any;
}

uint64_t BlockStore::memory_bytes() const {
  std::lock_guard lock(mutex_);
  return pages_.size() * sizeof(Page) + zeroes_.size() * 2 * sizeof(uint64_t);
}

}  // namespace blk
