// The zstd allocator: pages of 32 KiB, compressed.
//
// A page written in one go is packed whole, outside any lock. Smaller writes gather in a small
// cache of plain pages. When one leaves the cache it is packed whole if most of it was written,
// else block by block, so that small random requests pack and unpack 4 KiB instead of 32.
//
// Locks: pages belong to shards, a mutex and a few cache entries each. The packed pages of a shard,
// wherever in the directory, are guarded by it.
#include <malloc.h>

#include <atomic>
#include <new>
#include <vector>

#include "absl/synchronization/mutex.h"
#include "src/backends/page_store/arena.h"
#include "src/backends/page_store/codec.h"
#include "src/backends/page_store/directory.h"
#include "src/backends/page_store/stores.h"

namespace blk::page_store {
namespace {

constexpr int kRegionPages = kRegionBytes / kPageBytes;
constexpr int kShardEntries = 2;
// The cache grows with the disk: it must not outweigh what packing saves.
constexpr uint64_t kDiskBytesPerShard = 16 << 20;
constexpr uint64_t kShardsMin = 4, kShardsMax = 64;
constexpr uint64_t kNoPage = UINT64_MAX;
// Written blocks from which a page is packed whole again.
constexpr int kWholeBlocksMin = 4;
// The allocator is told to give memory back after this much was freed by trimming.
constexpr uint64_t kGiveBackBytes = 16 << 20;

struct Region {
  PackedPage* pages[kRegionPages];
};

// A plain page. Blocks that are not valid are to be had from the packed page.
struct Entry {
  uint64_t page = kNoPage;
  BlockSet valid = 0, dirty = 0, allocated = 0;
  bool recent = false;
  std::unique_ptr<char[]> bytes;
};

struct Shard {
  absl::Mutex mutex;
  Entry entries[kShardEntries];
  int hand = 0;

  Entry* Find(uint64_t page) {
    for (Entry& entry : entries)
      if (entry.page == page) return &entry;
    return nullptr;
  }
};

// The bytes [start, start + bytes) of a page, and the blocks they touch and cover.
struct Part {
  uint64_t page;
  size_t start, bytes;

  Part(uint64_t offset, uint64_t length)
      : page(offset / kPageBytes),
        start(offset % kPageBytes),
        bytes(PartLength(offset, length, kPageBytes)) {}
  bool full() const { return bytes == kPageBytes; }
  BlockSet touched() const {
    return Blocks(start / kBlockBytes, (start + bytes + kBlockBytes - 1) / kBlockBytes);
  }
  BlockSet covered() const {
    return Blocks((start + kBlockBytes - 1) / kBlockBytes, (start + bytes) / kBlockBytes);
  }
  static BlockSet Blocks(int first, int end) {
    return first < end ? (kAllBlocks >> (kPageBlocks - end)) & (kAllBlocks << first) : 0;
  }
};

class ZstdStore : public PageStore {
 public:
  ZstdStore(uint64_t size_bytes, int level);
  ~ZstdStore() override;
  bool ok() const { return regions_.ok(); }

  absl::Status Read(uint64_t offset, std::span<char> into) override;
  absl::Status Write(uint64_t offset, std::span<const char> from) override;
  absl::Status Zero(uint64_t offset, uint64_t length, bool may_trim) override;
  void Extents(ExtentList* list) override;
  Stats stats() const override {
    return {.logical_bytes = blocks_.load(std::memory_order_relaxed) * kBlockBytes,
            .stored_bytes = stored_bytes_.load(std::memory_order_relaxed)};
  }

 private:
  Shard& ShardOf(uint64_t page) { return shards_[page & (shards_.size() - 1)]; }
  PackedPage*& SlotOf(Region& region, uint64_t page) { return region.pages[page % kRegionPages]; }
  Region* MakeRegion(uint64_t page);

  // All below: the shard of the page is locked.
  absl::Status ReadPart(Shard& shard, const Part& part, char* into);
  absl::Status ReadPacked(const PackedPage& packed, const Part& part, char* into);
  absl::Status WritePage(Region& region, const Part& part, const char* from);  // locks itself
  absl::Status WritePart(Shard& shard, Region& region, const Part& part, const char* from);
  absl::Status ZeroPart(Shard& shard, Region& region, const Part& part, bool may_trim);
  BlockSet Allocated(Shard& shard, Region& region, uint64_t page);
  // Replaces the packed page and forgets the plain one.
  void Replace(Shard& shard, Region& region, uint64_t page, PackedPage* packed);

  // The plain page, of which `valid` says what is there. Whoever has to leave for it is stored.
  absl::StatusOr<Entry*> GetEntry(Shard& shard, Region& region, uint64_t page);
  absl::Status Load(Codec& codec, const PackedPage* packed, Entry& entry, BlockSet wanted);
  absl::Status Store(Entry& entry);
  absl::StatusOr<PackedPage*> Pack(Codec& codec, const PackedPage* old, Entry& entry);
  void SetPacked(PackedPage*& slot, PackedPage* packed);
  void SetAllocated(Entry& entry, BlockSet allocated);
  void CountBlocks(BlockSet before, BlockSet after) {
    blocks_.fetch_add(std::popcount(after) - std::popcount(before), std::memory_order_relaxed);
  }
  void GiveBack();

  const uint64_t size_bytes_;
  const int level_, block_level_;
  Arena arena_;
  Directory<Region> regions_;
  std::vector<Shard> shards_;
  std::atomic<uint64_t> blocks_{0}, stored_bytes_{0}, trimmed_bytes_{0};
};

uint64_t ShardCount(uint64_t size_bytes) {
  return std::clamp(std::bit_floor(size_bytes / kDiskBytesPerShard), kShardsMin, kShardsMax);
}

// Blocks are packed at level 1 unless the user asked for another one than the default: beyond it
// they gain 1 to 3 % for 20 to 50 % more time.
ZstdStore::ZstdStore(uint64_t size_bytes, int level)
    : size_bytes_(size_bytes),
      level_(level),
      block_level_(level == 3 ? 1 : level),
      regions_(&arena_, RegionCount(size_bytes)),
      shards_(ShardCount(size_bytes)) {}

ZstdStore::~ZstdStore() {
  const uint64_t end = RegionCount(size_bytes_);
  for (uint64_t index = 0; (index = regions_.Next(index, end)) < end; ++index)
    for (PackedPage* packed : regions_.Find(index)->pages) std::free(packed);
}

Region* ZstdStore::MakeRegion(uint64_t page) {
  return regions_.FindOrMake(page / kRegionPages, [this]() -> Region* {
    void* memory = arena_.Allocate(sizeof(Region), alignof(Region));
    return memory ? new (memory) Region{} : nullptr;
  });
}

absl::Status ZstdStore::Read(uint64_t offset, std::span<char> into) {
  while (!into.empty()) {
    const Part part(offset, into.size());
    Shard& shard = ShardOf(part.page);
    {
      absl::MutexLock lock(&shard.mutex);
      BLK_RETURN_IF_ERROR(ReadPart(shard, part, into.data()));
    }
    offset += part.bytes;
    into = into.subspan(part.bytes);
  }
  return absl::OkStatus();
}

absl::Status ZstdStore::ReadPart(Shard& shard, const Part& part, char* into) {
  Region* region = regions_.Find(part.page / kRegionPages);
  const PackedPage* packed = region ? SlotOf(*region, part.page) : nullptr;
  Entry* entry = shard.Find(part.page);
  if (!packed && !entry) {
    std::memset(into, 0, part.bytes);
    return absl::OkStatus();
  }
  Codec* codec = Codec::Get();
  if (!codec) return OutOfMemory(part.page * kPageBytes);
  if (!entry && packed->whole && !part.full()) {
    // Unpacked once for the small reads that may follow. If nobody can leave, unpack just for this.
    if (absl::StatusOr<Entry*> got = GetEntry(shard, *region, part.page); got.ok()) entry = *got;
  }
  if (!entry) return ReadPacked(*packed, part, into);
  BLK_RETURN_IF_ERROR(Load(*codec, packed, *entry, part.touched()));
  entry->recent = true;
  std::memcpy(into, entry->bytes.get() + part.start, part.bytes);
  return absl::OkStatus();
}

absl::Status ZstdStore::ReadPacked(const PackedPage& packed, const Part& part, char* into) {
  Codec& codec = *Codec::Get();
  if (packed.whole) {
    char* page = part.full() ? into : codec.plain;
    BLK_RETURN_IF_ERROR(codec.Unpack(packed.payload(), packed.payload_bytes, page, kPageBytes));
    if (!part.full()) std::memcpy(into, page + part.start, part.bytes);
    return absl::OkStatus();
  }
  size_t start = part.start;
  const size_t end = part.start + part.bytes;
  while (start < end) {
    const int block = start / kBlockBytes;
    const size_t bytes = PartLength(start, end - start, kBlockBytes);
    if (!(packed.allocated >> block & 1)) {
      std::memset(into, 0, bytes);
    } else {
      char* plain = bytes == kBlockBytes ? into : codec.plain;
      const PackedPage::Frame frame = packed.frame(block);
      BLK_RETURN_IF_ERROR(codec.Unpack(frame.data, frame.bytes, plain, kBlockBytes));
      if (plain != into) std::memcpy(into, plain + start % kBlockBytes, bytes);
    }
    into += bytes;
    start += bytes;
  }
  return absl::OkStatus();
}

absl::Status ZstdStore::Write(uint64_t offset, std::span<const char> from) {
  while (!from.empty()) {
    const Part part(offset, from.size());
    Region* region = MakeRegion(part.page);
    if (!region || !Codec::Get()) return OutOfMemory(offset);
    if (part.full()) {
      BLK_RETURN_IF_ERROR(WritePage(*region, part, from.data()));
    } else {
      Shard& shard = ShardOf(part.page);
      absl::MutexLock lock(&shard.mutex);
      BLK_RETURN_IF_ERROR(WritePart(shard, *region, part, from.data()));
    }
    offset += part.bytes;
    from = from.subspan(part.bytes);
  }
  return absl::OkStatus();
}

absl::Status ZstdStore::WritePage(Region& region, const Part& part, const char* from) {
  Codec& codec = *Codec::Get();
  const size_t bytes = codec.PackPage(level_, from, codec.packed);
  PackedPage* packed = PackedPage::Make(kAllBlocks, true, codec.packed, bytes);
  if (!packed) return OutOfMemory(part.page * kPageBytes);
  Shard& shard = ShardOf(part.page);
  absl::MutexLock lock(&shard.mutex);
  Replace(shard, region, part.page, packed);
  return absl::OkStatus();
}

absl::Status ZstdStore::WritePart(Shard& shard, Region& region, const Part& part,
                                  const char* from) {
  BLK_ASSIGN_OR_RETURN(Entry * entry, GetEntry(shard, region, part.page));
  BLK_RETURN_IF_ERROR(
      Load(*Codec::Get(), SlotOf(region, part.page), *entry, part.touched() & ~part.covered()));
  std::memcpy(entry->bytes.get() + part.start, from, part.bytes);
  entry->valid |= part.touched();
  entry->dirty |= part.touched();
  SetAllocated(*entry, entry->allocated | part.touched());
  return absl::OkStatus();
}

absl::Status ZstdStore::Zero(uint64_t offset, uint64_t length, bool may_trim) {
  uint64_t end = offset + length;
  if (end == size_bytes_) end = (end + kPageBytes - 1) & ~uint64_t{kPageBytes - 1};
  const uint64_t index_end = RegionCount(end);
  while (offset < end) {
    const uint64_t index = regions_.Next(offset / kRegionBytes, index_end);
    if (index >= index_end) break;
    Region& region = *regions_.Find(index);
    offset = std::max(offset, index * kRegionBytes);
    const uint64_t region_end = std::min(end, (index + 1) * kRegionBytes);
    while (offset < region_end) {
      const Part part(offset, region_end - offset);
      Shard& shard = ShardOf(part.page);
      absl::MutexLock lock(&shard.mutex);
      BLK_RETURN_IF_ERROR(ZeroPart(shard, region, part, may_trim));
      offset += part.bytes;
    }
  }
  GiveBack();
  return absl::OkStatus();
}

absl::Status ZstdStore::ZeroPart(Shard& shard, Region& region, const Part& part, bool may_trim) {
  const BlockSet before = Allocated(shard, region, part.page);
  if (!(before & part.touched())) return absl::OkStatus();
  if (part.full() && may_trim) {
    if (const PackedPage* packed = SlotOf(region, part.page))
      trimmed_bytes_.fetch_add(packed->total_bytes(), std::memory_order_relaxed);
    Replace(shard, region, part.page, nullptr);
    return absl::OkStatus();
  }
  if (!Codec::Get()) return OutOfMemory(part.page * kPageBytes);
  BLK_ASSIGN_OR_RETURN(Entry * entry, GetEntry(shard, region, part.page));
  BLK_RETURN_IF_ERROR(
      Load(*Codec::Get(), SlotOf(region, part.page), *entry, part.touched() & ~part.covered()));
  std::memset(entry->bytes.get() + part.start, 0, part.bytes);
  entry->valid |= part.touched();
  entry->dirty |= part.touched();
  if (may_trim) SetAllocated(*entry, before & ~part.covered());
  return absl::OkStatus();
}

BlockSet ZstdStore::Allocated(Shard& shard, Region& region, uint64_t page) {
  if (const Entry* entry = shard.Find(page)) return entry->allocated;
  const PackedPage* packed = SlotOf(region, page);
  return packed ? packed->allocated : 0;
}

void ZstdStore::Replace(Shard& shard, Region& region, uint64_t page, PackedPage* packed) {
  CountBlocks(Allocated(shard, region, page), packed ? packed->allocated : 0);
  if (Entry* entry = shard.Find(page)) entry->page = kNoPage;
  SetPacked(SlotOf(region, page), packed);
}

absl::StatusOr<Entry*> ZstdStore::GetEntry(Shard& shard, Region& region, uint64_t page) {
  if (Entry* entry = shard.Find(page)) {
    entry->recent = true;
    return entry;
  }
  Entry* entry = shard.Find(kNoPage);
  while (!entry) {
    Entry& candidate = shard.entries[shard.hand];
    shard.hand = (shard.hand + 1) % kShardEntries;
    if (!std::exchange(candidate.recent, false)) entry = &candidate;
  }
  if (!entry->bytes) entry->bytes.reset(new (std::nothrow) char[kPageBytes]);
  if (!entry->bytes) return OutOfMemory(page * kPageBytes);
  if (entry->page != kNoPage) BLK_RETURN_IF_ERROR(Store(*entry));
  const PackedPage* packed = SlotOf(region, page);
  entry->page = page;
  entry->valid = entry->dirty = 0;
  entry->allocated = packed ? packed->allocated : 0;
  entry->recent = false;  // until it is wanted a second time
  return entry;
}

absl::Status ZstdStore::Load(Codec& codec, const PackedPage* packed, Entry& entry,
                             BlockSet wanted) {
  wanted &= ~entry.valid;
  if (!wanted) return absl::OkStatus();
  const bool whole = packed && packed->whole;
  char* page = entry.valid ? codec.plain : entry.bytes.get();
  if (whole) {
    BLK_RETURN_IF_ERROR(codec.Unpack(packed->payload(), packed->payload_bytes, page, kPageBytes));
    wanted = kAllBlocks & ~entry.valid;
  }
  for (int block = 0; block < kPageBlocks; ++block) {
    if (!(wanted >> block & 1)) continue;
    char* into = entry.bytes.get() + block * kBlockBytes;
    if (!packed || !(packed->allocated >> block & 1)) {
      std::memset(into, 0, kBlockBytes);
    } else if (!whole) {
      const PackedPage::Frame frame = packed->frame(block);
      BLK_RETURN_IF_ERROR(codec.Unpack(frame.data, frame.bytes, into, kBlockBytes));
    } else if (page == codec.plain) {
      std::memcpy(into, page + block * kBlockBytes, kBlockBytes);
    }
  }
  entry.valid |= wanted;
  return absl::OkStatus();
}

// Packs what was written. The entry stays as it is, clean.
absl::Status ZstdStore::Store(Entry& entry) {
  if (!entry.dirty) return absl::OkStatus();
  Codec* codec = Codec::Get();
  if (!codec) return OutOfMemory(entry.page * kPageBytes);
  PackedPage*& slot = SlotOf(*regions_.Find(entry.page / kRegionPages), entry.page);
  PackedPage* packed = nullptr;
  if (entry.allocated) {
    BLK_ASSIGN_OR_RETURN(packed, Pack(*codec, slot, entry));
    if (!packed) return OutOfMemory(entry.page * kPageBytes);
  }
  SetPacked(slot, packed);
  entry.dirty = 0;
  return absl::OkStatus();
}

absl::StatusOr<PackedPage*> ZstdStore::Pack(Codec& codec, const PackedPage* old, Entry& entry) {
  const bool whole = entry.allocated == kAllBlocks && std::popcount(entry.dirty) >= kWholeBlocksMin;
  // The frames of a split page that were not written are taken over as they are.
  if (whole || (old && old->whole)) {
    BLK_RETURN_IF_ERROR(Load(codec, old, entry, kAllBlocks));
    entry.dirty = kAllBlocks;
  }
  if (whole) {
    const size_t bytes = codec.PackPage(level_, entry.bytes.get(), codec.packed);
    return PackedPage::Make(kAllBlocks, true, codec.packed, bytes);
  }
  uint16_t sizes[kPageBlocks] = {};
  char* next = codec.packed + kSizesBytes;
  for (int block = 0; block < kPageBlocks; ++block) {
    if (!(entry.allocated >> block & 1)) continue;
    if (entry.dirty >> block & 1) {
      sizes[block] = codec.PackBlock(block_level_, entry.bytes.get() + block * kBlockBytes, next);
    } else {
      const PackedPage::Frame frame = old->frame(block);
      std::memcpy(next, frame.data, frame.bytes);
      sizes[block] = frame.bytes;
    }
    next += sizes[block];
  }
  std::memcpy(codec.packed, sizes, sizeof sizes);
  return PackedPage::Make(entry.allocated, false, codec.packed, next - codec.packed);
}

void ZstdStore::SetPacked(PackedPage*& slot, PackedPage* packed) {
  PackedPage* old = std::exchange(slot, packed);
  stored_bytes_.fetch_add((packed ? packed->total_bytes() : 0) - (old ? old->total_bytes() : 0),
                          std::memory_order_relaxed);
  std::free(old);
}

void ZstdStore::SetAllocated(Entry& entry, BlockSet allocated) {
  CountBlocks(entry.allocated, allocated);
  entry.allocated = allocated;
}

// free() keeps what lies between packed pages still in use. Asked for after much was trimmed, in
// proportion to what there is to go through.
void ZstdStore::GiveBack() {
  const uint64_t trimmed = trimmed_bytes_.load(std::memory_order_relaxed);
  const uint64_t stored = stored_bytes_.load(std::memory_order_relaxed);
  if (trimmed < std::max(kGiveBackBytes, stored / 8)) return;
  trimmed_bytes_.store(0, std::memory_order_relaxed);
  malloc_trim(0);
}

void ZstdStore::Extents(ExtentList* list) {
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
    const uint64_t page = next / kPageBytes;
    Shard& shard = ShardOf(page);
    shard.mutex.Lock();
    const BlockSet allocated = Allocated(shard, region, page);
    shard.mutex.Unlock();
    for (uint64_t start = next % kPageBytes; start < kPageBytes && !list->full();) {
      const uint64_t bytes = PartLength(start, kBlockBytes, kBlockBytes);
      list->Append(bytes, allocated >> (start / kBlockBytes) & 1 ? kExtentData : kExtentHoleZero);
      start += bytes;
    }
  }
}

}  // namespace

absl::StatusOr<StorePtr> MakeZstd(uint64_t size_bytes, int level) {
  // One heap for all threads. With a heap each, which is glibc's default, what one thread frees is
  // of no use to the next, and small random writes make the process three times as large as its
  // content. Whoever compresses does not notice the lock.
  mallopt(M_ARENA_MAX, 1);
  auto store = std::make_unique<ZstdStore>(size_bytes, level);
  if (!store->ok()) return NoTables(size_bytes);
  return store;
}

}  // namespace blk::page_store
