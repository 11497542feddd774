// Sizes, times, numbers and switches, as people write them and as blk prints them.
//
// Every value that reaches blk as text (a parameter, an option, an in-line spec) is read here, so
// that `1T` means the same everywhere. Notation follows nbdkit(1) where it has one; what blk
// accepts beyond it is said at the function.
//
// Owner: core. Pure functions without state: any thread may call them.
//
// Failures are InvalidArgument (the text is no such value) or OutOfRange (it is one, but too small
// or too large). The message quotes the text and says what would have been right; the caller adds
// which parameter it was.
#pragma once

#include <chrono>
#include <compare>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <type_traits>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "src/core/limits.h"

namespace blk {

// The largest disk: offsets are signed 64-bit numbers in every kernel and image format.
inline constexpr uint64_t kSizeBytesMax = limits::kDiskBytesMax;

// Distinct types, so that a parameter's notation follows from the type of the member that holds it.
struct Size {
  uint64_t bytes = 0;
  friend auto operator<=>(const Size&, const Size&) = default;
};
struct BitRate {
  uint64_t bits_per_second = 0;
  friend auto operator<=>(const BitRate&, const BitRate&) = default;
};
struct Probability {
  double value = 0;  // 0 never ... 1 always
  friend auto operator<=>(const Probability&, const Probability&) = default;
};
struct Percent {
  double value = 0;  // 0 ... 100
  friend auto operator<=>(const Percent&, const Percent&) = default;
};
using Nanoseconds = std::chrono::nanoseconds;

// A whole number of bytes from 0 to kSizeBytesMax: digits and at most one unit of b (1), s (512),
// K, M, G, T, P, E (powers of 1024), upper or lower case. Beyond nbdkit, a fraction is understood
// when it gives whole bytes: `1.5G`.
absl::StatusOr<Size> ParseSize(std::string_view text);

// The shortest exact text with the largest unit that divides: 1T, 1536M, 32K, 513. ParseSize reads
// it back.
std::string FormatSize(uint64_t bytes);

// Three significant digits for people, not for programs: 1T, 1.5G, 931G, 32K, 513. Never reads as
// more than it is.
std::string FormatSizeRounded(uint64_t bytes);

// A rate in bits a second, with the units of ParseSize: 1M is 1048576 bits a second, as nbdkit's
// rate filter has it.
absl::StatusOr<BitRate> ParseBitRate(std::string_view text);

// A time: a decimal number and one of ns, us, ms, s; without a unit, seconds. Exact to the
// nanosecond (finer is rejected), never negative, at most 2^63-1 ns (292 years).
absl::StatusOr<Nanoseconds> ParseDuration(std::string_view text);

// Exact, with the largest unit that divides: 8s, 250ms, 0s. ParseDuration reads it back.
std::string FormatDuration(Nanoseconds duration);

// 1 true t yes y on, 0 false f no n off; upper or lower case.
absl::StatusOr<bool> ParseBool(std::string_view text);

// Whole numbers from `min` to `max`: decimal, hexadecimal with 0x, octal with a leading 0, as
// nbdkit_parse_int. A sign is for ParseSigned only.
absl::StatusOr<uint64_t> ParseUnsigned(std::string_view text, uint64_t min = 0,
                                       uint64_t max = std::numeric_limits<uint64_t>::max());
absl::StatusOr<int64_t> ParseSigned(std::string_view text,
                                    int64_t min = std::numeric_limits<int64_t>::min(),
                                    int64_t max = std::numeric_limits<int64_t>::max());

// The two above for an integer type of any width, with that type's own limits.
template <typename T>
absl::StatusOr<T> ParseInteger(std::string_view text);

// A finite decimal number: -1.5, 3, 1e-8.
absl::StatusOr<double> ParseNumber(std::string_view text);

// The shortest text that ParseNumber reads back as the same double.
std::string FormatNumber(double value);

// A chance from 0 to 1: `25%`, `0.25`, `1e-8` or `N:M` (N out of M).
absl::StatusOr<Probability> ParseProbability(std::string_view text);

// A share from 0 to 100, with or without `%`.
absl::StatusOr<Percent> ParsePercent(std::string_view text);

// ---- implementation of the template ----

template <typename T>
absl::StatusOr<T> ParseInteger(std::string_view text) {
  static_assert(std::is_integral_v<T> && !std::is_same_v<T, bool>);
  using Limits = std::numeric_limits<T>;
  if constexpr (std::is_unsigned_v<T>) {
    absl::StatusOr<uint64_t> value = ParseUnsigned(text, Limits::min(), Limits::max());
    if (!value.ok()) return value.status();
    return static_cast<T>(*value);
  } else {
    absl::StatusOr<int64_t> value = ParseSigned(text, Limits::min(), Limits::max());
    if (!value.ok()) return value.status();
    return static_cast<T>(*value);
  }
}

}  // namespace blk
