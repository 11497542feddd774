// Where the data of a sparse random disk lies, and what it is, as pure functions of the parameters.
//
// Purpose: sparse-random serves disks of any size, 7 EB included, without holding anything: no
//   bitmap, no tree, no cache. The disk is cut into equal cells. Each holds one island of random
//   length at a random place, both drawn from a hash of (seed, number of the cell); what lies
//   between the islands is sea. Up to 50 percent the islands are data, above they are holes. So the
//   run at any offset is found by one division and a few hashes, and a walk costs a few nanoseconds
//   a run.
// Owner: the backend, by value; it is a few numbers. Spans are used during the call only.
// Threads: immutable after the constructor; every method may be called from any thread at once.
//
// Shape: runs begin and end at multiples of kBlockBytes (the last one may be cut by the end of the
//   disk), never touch each other, and have the asked mean length; the asked fraction of every cell
//   is data in the mean. When both cannot be had (runs of one block at 99 %), the fraction wins. A
//   disk shorter than a cell is one smaller cell, so that it has its fraction of data too.
// Content: every data block is one non-zero byte, repeated, different from that of the blocks
//   beside it; or, with random_content, the words of FillRandom.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>

#include "src/backends/generate/words.h"

namespace blk::generate {

// A stretch [begin, end) of the disk that is all data or all hole.
struct Run {
  uint64_t begin;
  uint64_t end;
  bool data;
  bool operator==(const Run&) const = default;
};

class SparseLayout {
 public:
  static constexpr uint64_t kBlockBytes = 4096;

  struct Config {
    uint64_t size;        // bytes, at most 2^63-1
    uint64_t seed;        //
    double percent;       // of the disk that is data, 0 to 100; others are taken as the nearer end
    uint64_t run_length;  // mean bytes of a run of data; less than a block is taken as a block
    bool random_content;
  };

  explicit SparseLayout(const Config& config);

  uint64_t size() const { return size_; }

  // The whole run, data or hole, around `offset`, which must be inside the disk. Constant time.
  Run RunAt(uint64_t offset) const;

  // Calls visit(Run) for the runs of [offset, offset + length) in order, the first and last one cut
  // to that range, which must be inside the disk, until all are told or visit returns false. Runs
  // alternate: two calls never tell the same kind in a row.
  template <typename Visit>
  void ForEachRun(uint64_t offset, uint64_t length, Visit&& visit) const;

  // Fills `out` with the bytes at `offset`; the range must be inside the disk.
  void Fill(uint64_t offset, std::span<char> out) const;

  // Returns the index in `data` of the first byte that differs from the disk at `offset`, or
  // kEqual.
  size_t Compare(uint64_t offset, std::span<const char> data) const;

  // Returns the offset of the first byte in [offset, offset + length) that is not zero, or
  // offset + length. Costs little for any length.
  uint64_t FirstNonZero(uint64_t offset, uint64_t length) const;

 private:
  // A range of blocks [begin, end).
  struct Blocks {
    uint64_t begin;
    uint64_t end;
  };
  // What a cell of a certain number of blocks needs for drawing its island.
  struct Shape {
    uint64_t blocks;        // in the cell
    uint64_t minimum;       // of the island
    uint64_t spread_fixed;  // what it can have above that, in 1/2^kFractionBits blocks
    int exponent;           // the spread is multiplied by (uniform in [0, 1)) ^ exponent
  };
  static constexpr int kFractionBits = 12;

  static Shape MakeShape(uint64_t blocks, uint64_t island_share);
  uint64_t CellOf(uint64_t block) const;
  Blocks IslandOf(uint64_t cell) const;
  Blocks DrawIsland(const Shape& shape, uint64_t cell) const;
  uint64_t ByteOffset(uint64_t block) const;
  char BlockByte(uint64_t block) const;
  void FillData(uint64_t offset, std::span<char> out) const;
  size_t CompareData(uint64_t offset, std::span<const char> data) const;

  uint64_t size_;
  uint64_t blocks_;
  uint64_t cells_;    // 0 when the disk is all sea
  bool sea_is_data_;  // then the islands are holes
  bool random_content_;
  uint64_t layout_key_;
  uint64_t content_key_;
  Shape shape_{};       // of every cell but the last
  Shape last_shape_{};  // the last cell also has the blocks that fill no cell
};

// The bodies below are here for the walk: a map over terabytes spends all its time in them.

// The high half of a product: scales a uniform 64-bit value to [0, range).
constexpr uint64_t ScaleDown(uint64_t uniform, uint64_t range) {
  return static_cast<uint64_t>((static_cast<unsigned __int128>(uniform) * range) >> 64);
}

inline uint64_t SparseLayout::CellOf(uint64_t block) const {
  const uint64_t cell = block / shape_.blocks;
  return cell < cells_ ? cell : cells_ - 1;
}

inline uint64_t SparseLayout::ByteOffset(uint64_t block) const {
  const uint64_t offset = block * kBlockBytes;
  return offset < size_ ? offset : size_;
}

inline SparseLayout::Blocks SparseLayout::DrawIsland(const Shape& shape, uint64_t cell) const {
  const uint64_t length_random = Mix(layout_key_ + cell * kWordStep);
  const uint64_t place_random = Mix(length_random ^ layout_key_);
  // x^k has the mean 1/(k+1) over [0, 1), so spread_fixed is (k+1) times the mean that is wanted.
  // k = 3 gives many short islands and few long ones. None needs a logarithm, and there is no
  // floating point that a compiler could round in its own way.
  uint64_t spread = shape.spread_fixed;
  for (int i = 0; i < shape.exponent; ++i) spread = ScaleDown(length_random, spread);
  // Rounding up as often as the fraction says keeps the mean exact for short islands.
  const uint64_t rounding = place_random & ((uint64_t{1} << kFractionBits) - 1);
  const uint64_t length = shape.minimum + ((spread + rounding) >> kFractionBits);
  // All cells but the first begin with sea, so that no island touches the one before it.
  const uint64_t begin_min = cell == 0 ? 0 : 1;
  const uint64_t begin = begin_min + ScaleDown(place_random, shape.blocks - length - begin_min + 1);
  return {begin, begin + length};
}

inline SparseLayout::Blocks SparseLayout::IslandOf(uint64_t cell) const {
  const Blocks island = DrawIsland(cell + 1 == cells_ ? last_shape_ : shape_, cell);
  const uint64_t base = cell * shape_.blocks;
  return {base + island.begin, base + island.end};
}

template <typename Visit>
void SparseLayout::ForEachRun(uint64_t offset, uint64_t length, Visit&& visit) const {
  uint64_t at = offset;
  const uint64_t end = offset + length;
  if (at == end) return;
  if (cells_ == 0) {
    visit(Run{at, end, sea_is_data_});
    return;
  }
  for (uint64_t cell = CellOf(at / kBlockBytes); cell < cells_; ++cell) {
    const Blocks island = IslandOf(cell);
    const uint64_t island_begin = std::min(ByteOffset(island.begin), end);
    const uint64_t island_end = std::min(ByteOffset(island.end), end);
    if (at < island_begin) {
      if (!visit(Run{at, island_begin, sea_is_data_})) return;
      at = island_begin;
    }
    if (at < island_end) {
      if (!visit(Run{at, island_end, !sea_is_data_})) return;
      at = island_end;
    }
    if (at == end) return;
  }
  visit(Run{at, end, sea_is_data_});
}

}  // namespace blk::generate
