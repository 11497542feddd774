#include "src/backends/generate/sparse_layout.h"

#include <array>
#include <cstring>

namespace blk::generate {
namespace {

using uint128 = unsigned __int128;

// The share of the disk that is data is kept as a fraction of this.
constexpr uint64_t kWhole = uint64_t{1} << 32;

// More would hardly change the shape and costs a multiplication a run.
constexpr uint64_t kExponentMax = 3;

constexpr uint64_t kLayoutPurpose = 1;
constexpr uint64_t kContentPurpose = 2;

constexpr uint64_t DivideUp(uint64_t value, uint64_t by) {
  return value / by + (value % by != 0 ? 1 : 0);
}

// The only floating point here: one product and one truncation, the same on every machine.
uint64_t ShareOf(double percent) {
  if (!(percent > 0)) return 0;
  if (percent >= 100) return kWhole;
  return static_cast<uint64_t>(percent * (static_cast<double>(kWhole) / 100) + 0.5);
}

// The blocks of a cell: a mean run and the hole that makes it `share` of the cell. At least one
// block of data and one of hole in the mean, else the fraction could not be met.
uint64_t CellBlocks(uint64_t run_blocks, uint64_t share, uint64_t blocks_max) {
  const uint128 wanted = (static_cast<uint128>(run_blocks) * kWhole + share / 2) / share;
  const uint64_t least = std::max(DivideUp(kWhole, share), DivideUp(kWhole, kWhole - share));
  return static_cast<uint64_t>(
      std::min<uint128>(std::max<uint128>(wanted, least), std::max<uint64_t>(blocks_max, 2)));
}

}  // namespace

SparseLayout::SparseLayout(const Config& config)
    : size_(config.size),
      blocks_(DivideUp(config.size, kBlockBytes)),
      cells_(0),
      sea_is_data_(false),
      random_content_(config.random_content),
      layout_key_(MakeKey(config.seed, kLayoutPurpose)),
      content_key_(MakeKey(config.seed, kContentPurpose)) {
  const uint64_t share = ShareOf(config.percent);
  sea_is_data_ = share > kWhole / 2;
  const uint64_t island_share = sea_is_data_ ? kWhole - share : share;
  if (island_share == 0 || blocks_ == 0) return;
  const uint64_t run_blocks = std::max<uint64_t>(
      config.run_length / kBlockBytes + (config.run_length % kBlockBytes >= kBlockBytes / 2), 1);
  const uint64_t cell_blocks = CellBlocks(run_blocks, share, blocks_);
  cells_ = std::max<uint64_t>(blocks_ / cell_blocks, 1);
  shape_ = MakeShape(cell_blocks, island_share);
  last_shape_ = MakeShape(blocks_ - (cells_ - 1) * cell_blocks, island_share);
  // Only a disk of a few blocks can draw an empty island; otherwise every cell has one.
  if (const Blocks first = IslandOf(0); first.begin == first.end) cells_ = 0;
}

SparseLayout::Shape SparseLayout::MakeShape(uint64_t blocks, uint64_t island_share) {
  const uint64_t blocks_fixed = blocks << kFractionBits;
  const auto mean_fixed =
      static_cast<uint64_t>(static_cast<uint128>(blocks_fixed) * island_share / kWhole);
  constexpr uint64_t kOneBlock = uint64_t{1} << kFractionBits;
  // A tiny disk: one block of it now and then.
  if (mean_fixed < kOneBlock) return {blocks, 0, mean_fixed, 0};
  // The longest, 1 + (exponent + 1) * (mean - 1) blocks, must leave one block of sea. It does:
  // (exponent + 1) * mean <= blocks, and exponent >= 1 since mean <= blocks / 2.
  const uint64_t exponent = std::min(blocks_fixed / mean_fixed - 1, kExponentMax);
  return {blocks, 1, (exponent + 1) * (mean_fixed - kOneBlock), static_cast<int>(exponent)};
}

Run SparseLayout::RunAt(uint64_t offset) const {
  if (cells_ == 0) return {0, size_, sea_is_data_};
  const uint64_t block = offset / kBlockBytes;
  const uint64_t cell = CellOf(block);
  const Blocks island = IslandOf(cell);
  if (block < island.begin) {
    const uint64_t begin = cell == 0 ? 0 : ByteOffset(IslandOf(cell - 1).end);
    return {begin, ByteOffset(island.begin), sea_is_data_};
  }
  if (block < island.end) {
    return {ByteOffset(island.begin), ByteOffset(island.end), !sea_is_data_};
  }
  const uint64_t end = cell + 1 == cells_ ? size_ : ByteOffset(IslandOf(cell + 1).begin);
  return {ByteOffset(island.end), end, sea_is_data_};
}

// Even blocks hold odd values and odd blocks even ones, so neighbours always differ and a copy that
// is off by a block is always found. Between 1 and 254.
char SparseLayout::BlockByte(uint64_t block) const {
  const uint64_t draw = ScaleDown(Mix(content_key_ + block * kWordStep), 127);
  return static_cast<char>(1 + 2 * draw + block % 2);
}

// Calls `visit(block, from, bytes)` for each block that [offset, offset + length) touches, `from`
// counting from `offset`, until it returns false.
template <typename Visit>
static void ForEachBlock(uint64_t offset, size_t length, Visit&& visit) {
  for (size_t from = 0; from < length;) {
    const uint64_t at = offset + from;
    const size_t rest = SparseLayout::kBlockBytes - at % SparseLayout::kBlockBytes;
    const size_t bytes = std::min(rest, length - from);
    if (!visit(at / SparseLayout::kBlockBytes, from, bytes)) return;
    from += bytes;
  }
}

void SparseLayout::FillData(uint64_t offset, std::span<char> out) const {
  if (random_content_) return FillRandom(content_key_, offset, out);
  ForEachBlock(offset, out.size(), [&](uint64_t block, size_t from, size_t bytes) {
    std::memset(out.data() + from, BlockByte(block), bytes);
    return true;
  });
}

size_t SparseLayout::CompareData(uint64_t offset, std::span<const char> data) const {
  if (random_content_) return CompareRandom(content_key_, offset, data);
  size_t result = kEqual;
  ForEachBlock(offset, data.size(), [&](uint64_t block, size_t from, size_t bytes) {
    const size_t at = CompareByte(BlockByte(block), data.subspan(from, bytes));
    if (at != kEqual) result = from + at;
    return at == kEqual;
  });
  return result;
}

void SparseLayout::Fill(uint64_t offset, std::span<char> out) const {
  ForEachRun(offset, out.size(), [&](const Run& run) {
    const std::span<char> part = out.subspan(run.begin - offset, run.end - run.begin);
    if (run.data) {
      FillData(run.begin, part);
    } else {
      std::memset(part.data(), 0, part.size());
    }
    return true;
  });
}

size_t SparseLayout::Compare(uint64_t offset, std::span<const char> data) const {
  size_t result = kEqual;
  ForEachRun(offset, data.size(), [&](const Run& run) {
    const auto part = data.subspan(run.begin - offset, run.end - run.begin);
    const size_t at = run.data ? CompareData(run.begin, part) : CompareByte(0, part);
    if (at != kEqual) result = run.begin - offset + at;
    return at == kEqual;
  });
  return result;
}

uint64_t SparseLayout::FirstNonZero(uint64_t offset, uint64_t length) const {
  uint64_t found = offset + length;
  ForEachRun(offset, length, [&](const Run& run) {
    if (!run.data) return true;
    // Random content may well begin with a zero, but all of this being zero takes a very short run.
    std::array<char, 64> bytes;
    for (uint64_t at = run.begin; at < run.end; at += bytes.size()) {
      const auto part = std::span(bytes).first(std::min<uint64_t>(bytes.size(), run.end - at));
      FillData(at, part);
      const size_t index = CompareByte(0, part);
      if (index == kEqual) continue;
      found = at + index;
      return false;
    }
    return true;
  });
  return found;
}

}  // namespace blk::generate
