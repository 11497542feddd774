// Whatever text is given as a size, a time or a number: it is read or refused, and what was read
// is printed so that it reads back as the same value.
//
// Fuzzes: src/core/units
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "src/core/units.h"

namespace {

void Require(bool promise) {
  if (!promise) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  if (auto disk = blk::ParseSize(text); disk.ok()) {
    Require(disk->bytes <= blk::kSizeBytesMax);
    auto again = blk::ParseSize(blk::FormatSize(disk->bytes));
    Require(again.ok() && *again == *disk);
  }
  if (auto duration = blk::ParseDuration(text); duration.ok()) {
    Require(*duration >= blk::Nanoseconds::zero());
    auto again = blk::ParseDuration(blk::FormatDuration(*duration));
    Require(again.ok() && *again == *duration);
  }
  if (auto number = blk::ParseNumber(text); number.ok()) {
    auto again = blk::ParseNumber(blk::FormatNumber(*number));
    Require(again.ok() && *again == *number);
  }
  if (auto chance = blk::ParseProbability(text); chance.ok()) {
    Require(chance->value >= 0 && chance->value <= 1);
  }
  if (auto share = blk::ParsePercent(text); share.ok()) {
    Require(share->value >= 0 && share->value <= 100);
  }
  if (auto small = blk::ParseInteger<int8_t>(text); small.ok()) {
    auto large = blk::ParseSigned(text);
    Require(large.ok() && *large == *small);
  }
  return 0;
}
