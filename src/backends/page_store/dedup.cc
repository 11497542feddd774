// The dedup allocator: equal pages are stored once.
//
// Content is found by its xxHash3-128 and then compared, so that a collision of hashes costs time,
// never data. A page is never changed in place: a write stores (or finds) the new content and
// swaps the pointer, so a block lives until its last page lets go of it.
//
// Locks: one per region for its pointers (readers share it), one per shard of the block table. A
// shard is locked inside a region, never the other way round.
#include <atomic>
#include <cstring>
#include <new>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "src/backends/page_store/arena.h"
#include "src/backends/page_store/directory.h"
#include "src/backends/page_store/stores.h"

namespace blk::page_store {
namespace {

constexpr uint64_t kPageBytes = 4096;
constexpr int kRegionPages = kRegionBytes / kPageBytes;

struct Block {
  Block* next;  // in its bucket, or in the list of the free
  char* data;
  XXH128_hash_t hash;
  uint64_t references;
};

// One part of the table of blocks. Memory is out where a method says so; nothing is lost then.
class Shard {
 public:
  ~Shard() { ::operator delete[](buckets_); }

  // A block with this content and one more reference; null when memory is out.
  Block* Intern(Arena* arena, const XXH128_hash_t& hash, const char* content);
  void Release(Block* block);
  uint64_t block_count() {
    absl::MutexLock lock(&mutex_);
    return block_count_;
  }

 private:
  static constexpr int kWarmBlocks = 4;  // free ones that keep their memory

  Block* NewBlock(Arena* arena) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  bool GrowIfFull() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  Block** Bucket(const XXH128_hash_t& hash) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return &buckets_[hash.low64 & (bucket_count_ - 1)];
  }

  absl::Mutex mutex_;
  Block** buckets_ ABSL_GUARDED_BY(mutex_) = nullptr;
  uint64_t bucket_count_ ABSL_GUARDED_BY(mutex_) = 0;  // a power of two
  uint64_t block_count_ ABSL_GUARDED_BY(mutex_) = 0;
  Block* warm_ ABSL_GUARDED_BY(mutex_) = nullptr;
  Block* cold_ ABSL_GUARDED_BY(mutex_) = nullptr;
  int warm_count_ ABSL_GUARDED_BY(mutex_) = 0;
};

Block* Shard::Intern(Arena* arena, const XXH128_hash_t& hash, const char* content) {
  absl::MutexLock lock(&mutex_);
  if (!GrowIfFull()) return nullptr;
  for (Block* block = *Bucket(hash); block; block = block->next) {
    if (XXH128_isEqual(block->hash, hash) && std::memcmp(block->data, content, kPageBytes) == 0) {
      ++block->references;
      return block;
    }
  }
  Block* block = NewBlock(arena);
  if (!block) return nullptr;
  std::memcpy(block->data, content, kPageBytes);
  block->hash = hash;
  block->references = 1;
  block->next = std::exchange(*Bucket(hash), block);
  ++block_count_;
  return block;
}

void Shard::Release(Block* block) {
  absl::MutexLock lock(&mutex_);
  if (--block->references > 0) return;
  Block** link = Bucket(block->hash);
  while (*link != block) link = &(*link)->next;
  *link = block->next;
  --block_count_;
  const bool warm = warm_count_ < kWarmBlocks;
  if (warm)
    ++warm_count_;
  else
    Arena::Discard(block->data, kPageBytes);
  Block*& list = warm ? warm_ : cold_;
  block->next = std::exchange(list, block);
}

// Blocks are carved from the arena, their pages side by side, and recycled for ever.
Block* Shard::NewBlock(Arena* arena) {
  constexpr int kBatch = 64;
  if (!warm_ && !cold_) {
    auto* blocks = static_cast<Block*>(arena->Allocate(kBatch * sizeof(Block), alignof(Block)));
    auto* data = static_cast<char*>(arena->Allocate(kBatch * kPageBytes, kPageBytes));
    if (!blocks || !data) return nullptr;
    for (int i = kBatch - 1; i >= 0; --i)
      cold_ = new (&blocks[i]) Block{cold_, data + i * kPageBytes, {}, 0};
  }
  if (!warm_) return std::exchange(cold_, cold_->next);
  --warm_count_;
  return std::exchange(warm_, warm_->next);
}

// Doubles the buckets when there are as many blocks. A table that cannot grow only gets slower.
bool Shard::GrowIfFull() {
  if (block_count_ < bucket_count_) return true;
  const uint64_t count = std::max<uint64_t>(bucket_count_ * 2, 64);
  void* memory = ::operator new[](count * sizeof(Block*), std::nothrow);
  if (!memory) return buckets_ != nullptr;
  Block** old = std::exchange(buckets_, static_cast<Block**>(memory));
  const uint64_t old_count = std::exchange(bucket_count_, count);
  std::fill_n(buckets_, count, nullptr);
  for (uint64_t i = 0; i < old_count; ++i) {
    for (Block* block = old[i]; block;) {
      Block* next = block->next;
      block->next = std::exchange(*Bucket(block->hash), block);
      block = next;
    }
  }
  ::operator delete[](old);
  return true;
}

struct Region {
  absl::Mutex mutex;
  Block* pages[kRegionPages] ABSL_GUARDED_BY(mutex) = {};
};

class DedupStore : public PageStore {
 public:
  DedupStore(uint64_t size_bytes, PageHash hash)
      : size_bytes_(size_bytes), hash_(hash), regions_(&arena_, RegionCount(size_bytes)) {}
  ~DedupStore() override;
  bool ok() const { return regions_.ok(); }

  absl::Status Read(uint64_t offset, std::span<char> into) override;
  absl::Status Write(uint64_t offset, std::span<const char> from) override;
  absl::Status Zero(uint64_t offset, uint64_t length, bool may_trim) override;
  void Extents(ExtentList* list) override;
  Stats stats() const override;

 private:
  static constexpr int kShards = 64;

  // The high bits: the low ones choose the bucket.
  Shard& ShardOf(const XXH128_hash_t& hash) { return shards_[hash.high64 >> 58]; }
  Block* Intern(const char* content);
  void Release(Block* block);
  // Replaces the block of a page; null makes a hole.
  Block* Swap(Region& region, int page, Block* block) ABSL_EXCLUSIVE_LOCKS_REQUIRED(region.mutex);
  // Changes part of a page, filling it with zeroes where `from` is null.
  absl::Status Merge(Region& region, uint64_t offset, const char* from, uint64_t bytes);
  absl::Status ZeroPage(Region& region, uint64_t offset, uint64_t bytes, bool may_trim);

  const uint64_t size_bytes_;
  const PageHash hash_;
  Arena arena_;
  Directory<Region> regions_;
  mutable Shard shards_[kShards];
  std::atomic<uint64_t> pages_{0};
};

DedupStore::~DedupStore() {
  const uint64_t end = RegionCount(size_bytes_);
  for (uint64_t index = 0; (index = regions_.Next(index, end)) < end; ++index)
    regions_.Find(index)->~Region();
}

Block* DedupStore::Intern(const char* content) {
  const XXH128_hash_t hash = hash_(content, kPageBytes);
  return ShardOf(hash).Intern(&arena_, hash, content);
}

void DedupStore::Release(Block* block) {
  if (block) ShardOf(block->hash).Release(block);
}

Block* DedupStore::Swap(Region& region, int page, Block* block) {
  Block* old = std::exchange(region.pages[page], block);
  if (!old && block) pages_.fetch_add(1, std::memory_order_relaxed);
  if (old && !block) pages_.fetch_sub(1, std::memory_order_relaxed);
  return old;
}

absl::Status DedupStore::Read(uint64_t offset, std::span<char> into) {
  while (!into.empty()) {
    const uint64_t bytes = PartLength(offset, into.size(), kPageBytes);
    Region* region = regions_.Find(offset / kRegionBytes);
    const Block* block = nullptr;
    if (region) {
      absl::ReaderMutexLock lock(&region->mutex);
      block = region->pages[offset % kRegionBytes / kPageBytes];
      if (block) std::memcpy(into.data(), block->data + offset % kPageBytes, bytes);
    }
    if (!block) std::memset(into.data(), 0, bytes);
    offset += bytes;
    into = into.subspan(bytes);
  }
  return absl::OkStatus();
}

absl::Status DedupStore::Write(uint64_t offset, std::span<const char> from) {
  while (!from.empty()) {
    const uint64_t bytes = PartLength(offset, from.size(), kPageBytes);
    Region* region = regions_.FindOrMake(offset / kRegionBytes, [this]() -> Region* {
      void* memory = arena_.Allocate(sizeof(Region), alignof(Region));
      return memory ? new (memory) Region : nullptr;
    });
    if (!region) return OutOfMemory(offset);
    if (bytes < kPageBytes) {
      BLK_RETURN_IF_ERROR(Merge(*region, offset, from.data(), bytes));
    } else {
      Block* block = Intern(from.data());
      if (!block) return OutOfMemory(offset);
      region->mutex.Lock();
      Block* old = Swap(*region, offset % kRegionBytes / kPageBytes, block);
      region->mutex.Unlock();
      Release(old);
    }
    offset += bytes;
    from = from.subspan(bytes);
  }
  return absl::OkStatus();
}

// Under the lock of the region: two writers of one page must both survive.
absl::Status DedupStore::Merge(Region& region, uint64_t offset, const char* from, uint64_t bytes) {
  const int page = offset % kRegionBytes / kPageBytes;
  char content[kPageBytes];
  absl::MutexLock lock(&region.mutex);
  if (const Block* old = region.pages[page])
    std::memcpy(content, old->data, kPageBytes);
  else
    std::memset(content, 0, kPageBytes);
  if (from)
    std::memcpy(content + offset % kPageBytes, from, bytes);
  else
    std::memset(content + offset % kPageBytes, 0, bytes);
  Block* block = Intern(content);
  if (!block) return OutOfMemory(offset);
  Release(Swap(region, page, block));
  return absl::OkStatus();
}

absl::Status DedupStore::Zero(uint64_t offset, uint64_t length, bool may_trim) {
  uint64_t end = offset + length;
  if (end == size_bytes_) end = (end + kPageBytes - 1) & ~(kPageBytes - 1);
  const uint64_t index_end = RegionCount(end);
  while (offset < end) {
    const uint64_t index = regions_.Next(offset / kRegionBytes, index_end);
    if (index >= index_end) break;
    offset = std::max(offset, index * kRegionBytes);
    Region& region = *regions_.Find(index);
    const uint64_t region_end = std::min(end, (index + 1) * kRegionBytes);
    while (offset < region_end) {
      const uint64_t bytes = PartLength(offset, region_end - offset, kPageBytes);
      BLK_RETURN_IF_ERROR(ZeroPage(region, offset, bytes, may_trim));
      offset += bytes;
    }
  }
  return absl::OkStatus();
}

absl::Status DedupStore::ZeroPage(Region& region, uint64_t offset, uint64_t bytes, bool may_trim) {
  const int page = offset % kRegionBytes / kPageBytes;
  Block* old = nullptr;
  {
    absl::MutexLock lock(&region.mutex);
    if (!region.pages[page]) return absl::OkStatus();
    if (bytes == kPageBytes && may_trim) old = Swap(region, page, nullptr);
  }
  if (!old) return Merge(region, offset, nullptr, bytes);
  Release(old);
  return absl::OkStatus();
}

void DedupStore::Extents(ExtentList* list) {
  const uint64_t index_end = RegionCount(list->end());
  while (!list->full()) {
    const uint64_t next = list->next();
    const uint64_t index = regions_.Next(next / kRegionBytes, index_end);
    if (index >= index_end) return list->Append(list->end() - next, kExtentHoleZero);
    if (index > next / kRegionBytes) {
      list->Append(index * kRegionBytes - next, kExtentHoleZero);
      continue;
    }
    Region& region = *regions_.Find(index);
    absl::ReaderMutexLock lock(&region.mutex);
    for (uint64_t start = next % kRegionBytes; start < kRegionBytes && !list->full();) {
      const uint64_t bytes = PartLength(start, kPageBytes, kPageBytes);
      list->Append(bytes, region.pages[start / kPageBytes] ? kExtentData : kExtentHoleZero);
      start += bytes;
    }
  }
}

PageStore::Stats DedupStore::stats() const {
  Stats stats = {.logical_bytes = pages_.load(std::memory_order_relaxed) * kPageBytes};
  for (Shard& shard : shards_) stats.stored_bytes += shard.block_count() * kPageBytes;
  return stats;
}

}  // namespace

absl::StatusOr<StorePtr> MakeDedup(uint64_t size_bytes, PageHash hash) {
  auto store = std::make_unique<DedupStore>(size_bytes, hash);
  if (!store->ok()) return NoTables(size_bytes);
  return store;
}

}  // namespace blk::page_store
