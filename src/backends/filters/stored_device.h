#pragma once
// StoredDevice: a device whose blocks may be kept aside in a BlockStore, the common part of cow and
// cache. It reads what is there and fetches what is not; how writes are done is the filter's.
//
// Owner: the filters. Threads: any loop, any number of requests at a time (block_store.h).
#include <algorithm>

#include "src/backends/filters/block_store.h"
#include "src/core/device.h"
#include "src/core/layer.h"

namespace blk {

class StoredDevice : public Filter {
 protected:
  using State = BlockStore::State;

  // Buffers for whole blocks, and so much of one request is filled, or locked, at a time.
  static constexpr uint64_t kPieceBytes = 1 << 20;
  static constexpr uint64_t kLockedBytes = 16 << 20;

  // `store` outlives the device.
  StoredDevice(DevicePtr below, Facts facts, BlockStore* store)
      : Filter(std::move(below), std::move(facts)),
        store_(*store),
        block_bytes_(store->block_bytes()) {}

  // What a filter over a store of such blocks can do, whatever is below.
  static Facts StoredFacts(const Device& below, uint64_t block_bytes);

  BlockStore& store() const { return store_; }
  uint64_t block_bytes() const { return block_bytes_; }
  uint64_t BlockOf(uint64_t offset) const { return offset / block_bytes_; }
  uint64_t StartOf(uint64_t block) const { return block * block_bytes_; }
  // The offset where block ends: the last one may be short.
  uint64_t EndOf(uint64_t block) const { return std::min((block + 1) * block_bytes_, size()); }
  // As many blocks as hold [offset, offset + length).
  uint64_t BlocksOver(uint64_t offset, uint64_t length) const {
    return length == 0 ? 0 : BlockOf(offset + length - 1) - BlockOf(offset) + 1;
  }
  // The range begins and ends with a block.
  bool IsWhole(uint64_t offset, uint64_t length) const {
    return offset % block_bytes_ == 0 &&
           ((offset + length) % block_bytes_ == 0 || offset + length == size());
  }
  // How much of [offset, offset + length) a writer should lock at a time: whole blocks together,
  // those that it touches in part alone.
  uint64_t StepAt(uint64_t offset, uint64_t length, uint64_t step_max) const;
  // The first part of [offset, offset + length) that is in one state.
  BlockStore::Run PartAt(uint64_t offset, uint64_t* length) const {
    BlockStore::Run run = store_.RunAt(BlockOf(offset), BlocksOver(offset, *length));
    *length = std::min(*length, EndOf(BlockOf(offset) + run.blocks - 1) - offset);
    return run;
  }

  // Reads from the store and below. What others are just fetching is waited for.
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override;
  // What is in the store is data or zero; for the rest the device below is asked.
  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override;
  // Puts what is absent in the range, widened to whole blocks, into the store. What the store does
  // not take is left absent: errors are those of the device below.
  Task<absl::Status> Fetch(const Call& call, uint64_t offset, uint64_t length);
  // Makes blocks that are absent or zero present, with `data` at `offset` and the bytes that they
  // have now around it. They are locked. On an error they stay as they were; `store_failed` is set
  // when it is the store's and not the device's.
  Task<absl::Status> Fill(const Call& call, State state, uint64_t first, uint64_t blocks,
                          uint64_t offset, std::span<const char> data, bool dirty,
                          bool* store_failed);
  // Zeroes a range: whole blocks by ZeroBlocks(), which is called with them locked, and what is
  // left by writing. EOPNOTSUPP for kFastZero when there is something left.
  Task<absl::Status> MakeZero(const Call& call, uint64_t offset, uint64_t length);
  virtual Task<absl::Status> ZeroBlocks(const Call& call, uint64_t first, uint64_t blocks) = 0;
  // The bytes of the run are those of the device below, so that it knows their extents.
  virtual bool SameBelow(const BlockStore::Run& run) const { return run.state == State::kAbsent; }
  // Whether so many blocks more may be fetched.
  virtual bool HasRoom(uint64_t) { return true; }
  // The store did not take what was fetched.
  virtual void StoreFailed(const absl::Status&) {}

 private:
  Task<absl::Status> ReadPart(const Call& call, const BlockStore::Run& run, uint64_t offset,
                              std::span<char> into);
  Task<absl::Status> ReadParts(const Call& call, uint64_t offset, std::span<char> into);
  Task<absl::Status> CheckedRead(Task<absl::Status> read, uint64_t drops, const Call& call,
                                 uint64_t offset, std::span<char> into);
  Task<absl::Status> StorePiece(uint64_t offset, std::span<const char> bytes);

  BlockStore& store_;
  const uint64_t block_bytes_;
};

// A store is for one disk: whoever opens the layer later must get the same. One for each layer.
class OneDisk {
 public:
  // EINVAL if `disk`, just opened from `below` with `args`, cannot be the one that was seen first,
  // or has larger blocks than the store. Any loop.
  Task<absl::Status> Check(Layer* below, OpenArgs args, const Device* disk, uint64_t block_bytes,
                           std::string_view block_parameter);

 private:
  std::mutex mutex_;  // guards what follows
  bool seen_ = false;
  uint64_t size_ = 0;
  std::string export_name_;
};

}  // namespace blk
