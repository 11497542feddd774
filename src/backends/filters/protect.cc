// protect: lets parts of the disk be written only with what they hold already. Parallel-safe: no
// state.
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "src/backends/filters/aligned_io.h"
#include "src/backends/filters/byte_range.h"
#include "src/backends/filters/wrap_layer.h"
#include "src/core/buffer.h"
#include "src/core/spec.h"
#include "src/core/zeroes.h"

namespace blk {

struct ProtectedRange {
  ByteRange range;
  bool outside = false;  // all but the range
};

template <>
struct ParamValue<ProtectedRange> {
  static constexpr std::string_view kType = "range", kWord = "[~]START-END";
  static absl::StatusOr<ProtectedRange> Parse(std::string_view text) {
    ProtectedRange result;
    result.outside = text.starts_with('~');
    if (result.outside) text.remove_prefix(1);
    BLK_ASSIGN_OR_RETURN(result.range, ParseByteRange(text));
    return result;
  }
  static std::string Format(const ProtectedRange& value) {
    return absl::StrCat(value.outside ? "~" : "", FormatByteRange(value.range));
  }
};

namespace {

struct Config {
  std::vector<ProtectedRange> ranges;
};

struct Interval {
  uint64_t begin, end;
};

// The protected parts of a disk of this size: in order, apart.
std::vector<Interval> ProtectedIntervals(const std::vector<ProtectedRange>& ranges,
                                         uint64_t disk_bytes) {
  std::vector<Interval> all;
  for (const ProtectedRange& one : ranges) {
    const uint64_t end = one.range.EndOn(disk_bytes), begin = std::min(one.range.first, end);
    if (!one.outside) {
      all.push_back({begin, end});
    } else {
      all.push_back({0, begin});
      all.push_back({end, disk_bytes});
    }
  }
  std::sort(all.begin(), all.end(),
            [](const Interval& a, const Interval& b) { return a.begin < b.begin; });
  std::vector<Interval> merged;
  for (const Interval& one : all) {
    if (one.begin >= one.end) continue;
    if (!merged.empty() && one.begin <= merged.back().end) {
      merged.back().end = std::max(merged.back().end, one.end);
    } else {
      merged.push_back(one);
    }
  }
  return merged;
}

class ProtectDevice final : public Filter {
 public:
  ProtectDevice(DevicePtr below, const std::vector<ProtectedRange>& ranges)
      : Filter(below, below->facts(), /*passes_data=*/true),
        intervals_(ProtectedIntervals(ranges, below->size())) {}

 protected:
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override {
    if (!IsProtected(offset, from.size())) return below().Write(call, offset, from);
    return CheckedWrite(call, offset, from);
  }
  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override {
    if (!IsProtected(offset, length)) return below().Trim(call, offset, length);
    return CheckedTrim(call, offset, length);
  }
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override {
    if (!IsProtected(offset, length)) return below().Zero(call, offset, length);
    return CheckedZero(call, offset, length);
  }

 private:
  std::vector<Interval>::const_iterator FirstAfter(uint64_t offset) const {
    return std::upper_bound(intervals_.begin(), intervals_.end(), offset,
                            [](uint64_t at, const Interval& one) { return at < one.end; });
  }
  bool IsProtected(uint64_t offset, uint64_t length) const {
    auto next = FirstAfter(offset);
    return next != intervals_.end() && next->begin < offset + length;
  }

  // EPERM if the protected part of [offset, offset + length) holds anything but `data`, or, without
  // data, anything but zeroes.
  Task<absl::Status> CheckSame(const Call& call, uint64_t offset, uint64_t length,
                               const char* data) {
    Buffer held(1 << 20);
    const uint64_t end = offset + length;
    for (auto one = FirstAfter(offset); one != intervals_.end() && one->begin < end; ++one) {
      const uint64_t part_end = std::min(one->end, end);
      for (uint64_t at = std::max(one->begin, offset); at < part_end;) {
        std::span<char> part = held.span().first(std::min<uint64_t>(held.size(), part_end - at));
        BLK_CO_RETURN_IF_ERROR(co_await ReadUnaligned(&below(), call.With(0), at, part));
        const bool same = data ? std::memcmp(part.data(), data + (at - offset), part.size()) == 0
                               : IsZero(part.data(), part.size());
        if (!same)
          co_return ErrnoErrorAsIs(EPERM, absl::StrCat("a write would change bytes at or after ",
                                                       at, ", which are protected"));
        at += part.size();
      }
    }
    co_return absl::OkStatus();
  }
  Task<absl::Status> CheckedWrite(const Call& call, uint64_t offset, std::span<const char> from) {
    BLK_CO_RETURN_IF_ERROR(co_await CheckSame(call, offset, from.size(), from.data()));
    co_return co_await below().Write(call, offset, from);
  }
  Task<absl::Status> CheckedZero(const Call& call, uint64_t offset, uint64_t length) {
    BLK_CO_RETURN_IF_ERROR(co_await CheckSame(call, offset, length, nullptr));
    co_return co_await below().Zero(call, offset, length);
  }
  // What a trim would leave there is not known unless it holds zeroes.
  Task<absl::Status> CheckedTrim(const Call& call, uint64_t offset, uint64_t length) {
    BLK_CO_RETURN_IF_ERROR(co_await CheckSame(call, offset, length, nullptr));
    co_return co_await below().Trim(call, offset, length);
  }

  const std::vector<Interval> intervals_;
};

}  // namespace

const Spec& ProtectSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("protect", "protect parts of the disk from writing")
          .Param("protect", &Config::ranges,
                 {.help = "a range, both ends included, either may be left out; ~: all but it"})
          .Description(
              "Writes that do not change protected bytes succeed; others fail with EPERM and write "
              "nothing.")
          .Example("protect(protect=0-511)+memory:64K", "the first sector stays as it is")
          .Make([](Config config, LayerPtr below) {
            return MakeWrapLayer(std::move(below), [config](DevicePtr device, const OpenArgs&) {
              return absl::StatusOr<DevicePtr>(
                  std::make_shared<ProtectDevice>(std::move(device), config.ranges));
            });
          }));
  return spec;
}

}  // namespace blk
