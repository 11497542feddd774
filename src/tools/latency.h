#pragma once
// A histogram of times with at most 1.6 % error, in fixed memory. One thread; merge for more.
#include <array>
#include <bit>
#include <cstdint>

namespace blk {

class LatencyHistogram {
 public:
  void Add(uint64_t ns) {
    ++counts_[IndexOf(ns)];
    ++total_;
    sum_ns_ += ns;
    if (ns > max_ns_) max_ns_ = ns;
    if (ns < min_ns_) min_ns_ = ns;
  }

  void Merge(const LatencyHistogram& other) {
    for (size_t i = 0; i < counts_.size(); ++i) counts_[i] += other.counts_[i];
    total_ += other.total_;
    sum_ns_ += other.sum_ns_;
    if (other.max_ns_ > max_ns_) max_ns_ = other.max_ns_;
    if (other.min_ns_ < min_ns_) min_ns_ = other.min_ns_;
  }

  uint64_t count() const { return total_; }
  uint64_t min_ns() const { return total_ ? min_ns_ : 0; }
  uint64_t max_ns() const { return max_ns_; }
  double mean_ns() const { return total_ ? static_cast<double>(sum_ns_) / total_ : 0; }

  // The time that `share` (0 to 1) of all were not slower than; 0 when there were none.
  uint64_t Percentile(double share) const {
    if (total_ == 0) return 0;
    auto wanted = static_cast<uint64_t>(share * total_);
    if (wanted >= total_) wanted = total_ - 1;
    uint64_t seen = 0;
    for (size_t i = 0; i < counts_.size(); ++i)
      if ((seen += counts_[i]) > wanted) return UpperBound(i) < max_ns_ ? UpperBound(i) : max_ns_;
    return max_ns_;
  }

 private:
  // 64 steps for each power of two.
  static constexpr int kStepBits = 6;
  static size_t IndexOf(uint64_t ns) {
    if (ns < (1 << kStepBits)) return ns;
    int shift = std::bit_width(ns) - 1 - kStepBits;
    return (static_cast<size_t>(shift + 1) << kStepBits) + ((ns >> shift) - (1 << kStepBits));
  }
  static uint64_t UpperBound(size_t index) {
    if (index < (2 << kStepBits)) return index;
    int shift = static_cast<int>(index >> kStepBits) - 1;
    uint64_t step = (index & ((1 << kStepBits) - 1)) + (1 << kStepBits);
    return ((step + 1) << shift) - 1;
  }

  std::array<uint64_t, (64 - kStepBits + 1) << kStepBits> counts_{};
  uint64_t total_ = 0, sum_ns_ = 0, max_ns_ = 0, min_ns_ = UINT64_MAX;
};

}  // namespace blk
