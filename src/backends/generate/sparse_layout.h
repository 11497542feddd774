// Where the data of a sparse random disk lies, and what it is, as pure functions of the parameters.
//
// Purpose: sparse-random serves disks of any size, 7 EB included, without holding anything: no
// bitmap,
//   no tree, no cache. The disk is cut into equal cells, each with exactly one run of data of
//   random length at a random place, both drawn from a hash of (seed, number of the cell). So the
//   run at any offset is found by one division and two hashes, and a walk costs a few nanoseconds a
//   run.
// Owner: the backend, by value; it is a few numbers. Spans are used during the call only.
// Threads: immutable after the constructor; every method may be called from any thread at once.
//
// Shape: runs begin and end at multiples of kBlockBytes (the last one may be cut by the end of the
//   disk), never touch each other, and have the asked mean length; the asked fraction of every cell
//   is data in the mean. When both cannot be had (runs of one block at 99 %), the fraction wins. A
//   disk shorter than a cell is one smaller cell, so that it has its fraction of data too.
// Content: every data block is one non-zero byte, repeated, different from that of the blocks
// beside
//   it; or, with random_content, the words of FillRandom.
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
  // What a cell of a certain number of blocks needs for drawing its run. Drawn is the shorter part,
  // data or hole; the other one is the rest.
  struct Shape {
    uint64_t blocks;        // in the cell
    uint64_t minimum;       // of the shorter part
    uint64_t spread_fixed;  // what the shorter part can have above it, in 1/2^kFractionBits blocks
    int exponent;           // the spread is multiplied by (uniform in [0, 1)) ^ exponent
    bool hole_is_shorter;
  };
  static constexpr int kFractionBits = 12;

  Shape MakeShape(uint64_t blocks, uint64_t share) const;
  uint64_t CellOf(uint64_t block) const;
  Blocks DataOf(uint64_t cell) const;
  Blocks DrawRun(const Shape& shape, uint64_t cell) const;
  uint64_t ByteOffset(uint64_t block) const;
  char BlockByte(uint64_t block) const;
  void FillData(uint64_t offset, std::span<char> out) const;
  size_t CompareData(uint64_t offset, std::span<const char> data) const;

  uint64_t size_;
  uint64_t blocks_;
  uint64_t cells_;  // 0 when the disk is all hole or all data
  bool full_;
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

inline SparseLayout::Blocks SparseLayout::DrawRun(const Shape& shape, uint64_t cell) const {
  const uint64_t length_random = Mix(layout_key_ + cell * kWordStep);
  const uint64_t place_random = Mix(length_random ^ layout_key_);
  // x^k has the mean 1/(k+1) over [0, 1), so spread_fixed is (k+1) times the mean that is wanted.
  // k = 3 gives many short runs and few long ones. No run needs a logarithm, and there is no
  // floating point that a compiler could round in its own way.
  uint64_t spread = shape.spread_fixed;
  for (int i = 0; i < shape.exponent; ++i) spread = ScaleDown(length_random, spread);
  // Rounding up as often as the fraction says keeps the mean exact for short runs.
  const uint64_t rounding = place_random & ((uint64_t{1} << kFractionBits) - 1);
  const uint64_t shorter = shape.minimum + ((spread + rounding) >> kFractionBits);
  const uint64_t hole = shape.hole_is_shorter ? shorter : shape.blocks - shorter;
  // All cells but the first begin with a hole, so that no run touches the one before it.
  const uint64_t hole_before_min = cell == 0 ? 0 : 1;
  const uint64_t hole_before =
      hole_before_min + ScaleDown(place_random, hole - hole_before_min + 1);
  return {hole_before, hole_before + shape.blocks - hole};
}

inline SparseLayout::Blocks SparseLayout::DataOf(uint64_t cell) const {
  const Blocks run = DrawRun(cell + 1 == cells_ ? last_shape_ : shape_, cell);
  const uint64_t base = cell * shape_.blocks;
  return {base + run.begin, base + run.end};
}

template <typename Visit>
void SparseLayout::ForEachRun(uint64_t offset, uint64_t length, Visit&& visit) const {
  uint64_t at = offset;
  const uint64_t end = offset + length;
  if (at == end) return;
  if (cells_ == 0) {
    visit(Run{at, end, full_});
    return;
  }
  for (uint64_t cell = CellOf(at / kBlockBytes); cell < cells_; ++cell) {
    const Blocks blocks = DataOf(cell);
    const uint64_t data_begin = std::min(ByteOffset(blocks.begin), end);
    const uint64_t data_end = std::min(ByteOffset(blocks.end), end);
    if (at < data_begin) {
      if (!visit(Run{at, data_begin, false})) return;
      at = data_begin;
    }
    if (at < data_end) {
      if (!visit(Run{at, data_end, true})) return;
      at = data_end;
    }
    if (at == end) return;
  }
  visit(Run{at, end, false});
}

}  // namespace blk::generate
