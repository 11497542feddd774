#include "src/core/units.h"

#include <array>
#include <charconv>
#include <cmath>
#include <optional>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_format.h"

namespace blk {
namespace {

using Wide = unsigned __int128;

// A file name or a script may have been given by mistake: show enough of it to be recognised, on
// one line, without control characters.
std::string Quote(std::string_view text) {
  constexpr size_t kShownBytesMax = 60;
  std::string shown = "\"";
  for (char c : text.substr(0, kShownBytesMax)) shown += absl::ascii_iscntrl(c) ? '?' : c;
  absl::StrAppend(&shown, text.size() > kShownBytesMax ? "..." : "", "\"");
  return shown;
}

absl::Status NotA(std::string_view text, std::string_view what, std::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(Quote(text), " is not ", what, ": ", why));
}

// The leading `123.45` of a text, as digits of the whole part, digits of the fraction, and what
// follows.
struct Decimal {
  std::string_view whole, fraction, unit;
};

std::optional<Decimal> SplitDecimal(std::string_view text) {
  size_t whole = 0;
  while (whole < text.size() && absl::ascii_isdigit(text[whole])) ++whole;
  if (whole == 0) return std::nullopt;
  Decimal result{.whole = text.substr(0, whole), .fraction = {}, .unit = text.substr(whole)};
  if (!absl::StartsWith(result.unit, ".")) return result;
  size_t end = 1;
  while (end < result.unit.size() && absl::ascii_isdigit(result.unit[end])) ++end;
  result.fraction = result.unit.substr(1, end - 1);
  result.unit.remove_prefix(end);
  if (result.fraction.empty()) return std::nullopt;  // `1.` and `1.G` are slips, not numbers
  return result;
}

enum class Scaled { kOk, kTooLarge, kNotWhole };

// number * unit, exactly. Trailing zeroes of a fraction mean nothing; of the others at most 18 are
// held, so that the 128-bit sums cannot overflow: the whole part is below 2^63, a unit at most
// 2^60, and 10^18 < 2^60.
Scaled Scale(const Decimal& number, uint64_t unit, uint64_t max, uint64_t* result) {
  Wide whole = 0;
  for (char digit : number.whole) {
    whole = whole * 10 + static_cast<unsigned>(digit - '0');
    if (whole > max) return Scaled::kTooLarge;
  }
  std::string_view digits = number.fraction;
  while (!digits.empty() && digits.back() == '0') digits.remove_suffix(1);
  if (digits.size() > 18) return Scaled::kNotWhole;
  Wide fraction = 0, power = 1;
  for (char digit : digits) {
    fraction = fraction * 10 + static_cast<unsigned>(digit - '0');
    power *= 10;
  }
  Wide total = whole * unit + fraction * unit / power;
  if (total > max) return Scaled::kTooLarge;
  if (fraction * unit % power != 0) return Scaled::kNotWhole;
  *result = static_cast<uint64_t>(total);
  return Scaled::kOk;
}

constexpr std::string_view kSizeHint =
    "give digits and one of b s K M G T P E, like 512, 64k or 1T";
constexpr std::string_view kUnits = "KMGTPE";

std::optional<uint64_t> SizeUnit(std::string_view unit) {
  if (unit.empty()) return 1;
  if (unit.size() > 1) return std::nullopt;
  char letter = absl::ascii_toupper(unit[0]);
  if (letter == 'B') return 1;
  if (letter == 'S') return 512;
  size_t power = kUnits.find(letter);
  if (power == std::string_view::npos) return std::nullopt;
  return uint64_t{1} << (10 * (power + 1));
}

// Sizes and rates share notation and bounds; `what` names the one that was wanted.
absl::StatusOr<uint64_t> ParseScaled(std::string_view text, std::string_view what) {
  if (text.empty()) return NotA(text, what, kSizeHint);
  if (text[0] == '-') return NotA(text, what, "it cannot be negative");
  std::optional<Decimal> number = SplitDecimal(text);
  if (!number) return NotA(text, what, kSizeHint);
  std::optional<uint64_t> unit = SizeUnit(number->unit);
  if (!unit) {
    return NotA(text, what,
                absl::StrCat("unknown unit ", Quote(number->unit), ", use one of b s K M G T P E"));
  }
  uint64_t value = 0;
  switch (Scale(*number, *unit, kSizeBytesMax, &value)) {
    case Scaled::kOk:
      return value;
    case Scaled::kNotWhole:
      return NotA(
          text, what,
          absl::StrCat("it is not a whole number of ", what == "a size" ? "bytes" : "bits"));
    case Scaled::kTooLarge:
      break;
  }
  return absl::OutOfRangeError(
      absl::StrCat(Quote(text), " is too large: the most is 2^63-1, ", kSizeBytesMax));
}

}  // namespace

absl::StatusOr<Size> ParseSize(std::string_view text) {
  absl::StatusOr<uint64_t> bytes = ParseScaled(text, "a size");
  if (!bytes.ok()) return bytes.status();
  return Size{*bytes};
}

absl::StatusOr<BitRate> ParseBitRate(std::string_view text) {
  absl::StatusOr<uint64_t> bits = ParseScaled(text, "a rate in bits a second");
  if (!bits.ok()) return bits.status();
  return BitRate{*bits};
}

std::string FormatSize(uint64_t bytes) {
  size_t power = 0;
  while (bytes != 0 && bytes % 1024 == 0 && power < kUnits.size()) {
    bytes /= 1024;
    ++power;
  }
  return power == 0 ? absl::StrCat(bytes) : absl::StrCat(bytes, kUnits.substr(power - 1, 1));
}

std::string FormatSizeRounded(uint64_t bytes) {
  if (bytes < 1024) return absl::StrCat(bytes);
  size_t power = 0;
  uint64_t unit = 1;
  while (power < kUnits.size() && bytes / unit >= 1024) {
    unit *= 1024;
    ++power;
  }
  // Cut, not rounded, so that 1023.99G does not become 1024G and a copy does not show 100 of 100
  // before its end.
  int decimals = bytes / unit >= 100 ? 0 : bytes / unit >= 10 ? 1 : 2;
  uint64_t scale = decimals == 0 ? 1 : decimals == 1 ? 10 : 100;
  uint64_t hundredths = static_cast<uint64_t>(static_cast<Wide>(bytes) * scale / unit);
  std::string text = absl::StrCat(hundredths / scale);
  if (uint64_t rest = hundredths % scale; rest != 0) {
    absl::StrAppendFormat(&text, ".%0*d", decimals, rest);
    if (text.back() == '0') text.pop_back();
  }
  return text + kUnits[power - 1];
}

absl::StatusOr<Nanoseconds> ParseDuration(std::string_view text) {
  constexpr std::string_view kHint = "give a number and one of ns us ms s, like 8s or 250ms";
  struct Unit {
    std::string_view name;
    uint64_t nanoseconds;
  };
  constexpr std::array<Unit, 5> kTimeUnits{
      {{"", 1'000'000'000}, {"s", 1'000'000'000}, {"ms", 1'000'000}, {"us", 1'000}, {"ns", 1}}};
  if (absl::StartsWith(text, "-")) return NotA(text, "a time", "it cannot be negative");
  std::optional<Decimal> number = SplitDecimal(text);
  if (!number) return NotA(text, "a time", kHint);
  for (const Unit& unit : kTimeUnits) {
    if (number->unit != unit.name) continue;
    uint64_t value = 0;
    switch (Scale(*number, unit.nanoseconds, std::numeric_limits<int64_t>::max(), &value)) {
      case Scaled::kOk:
        return Nanoseconds(static_cast<int64_t>(value));
      case Scaled::kNotWhole:
        return NotA(text, "a time", "it is finer than a nanosecond");
      case Scaled::kTooLarge:
        return absl::OutOfRangeError(
            absl::StrCat(Quote(text), " is too long: the most is 292 years"));
    }
  }
  return NotA(text, "a time",
              absl::StrCat("unknown unit ", Quote(number->unit), ", use one of ns us ms s"));
}

std::string FormatDuration(Nanoseconds duration) {
  int64_t count = duration.count();
  if (count % 1'000'000'000 == 0) return absl::StrCat(count / 1'000'000'000, "s");
  if (count % 1'000'000 == 0) return absl::StrCat(count / 1'000'000, "ms");
  if (count % 1'000 == 0) return absl::StrCat(count / 1'000, "us");
  return absl::StrCat(count, "ns");
}

absl::StatusOr<bool> ParseBool(std::string_view text) {
  for (std::string_view yes : {"1", "true", "t", "yes", "y", "on"}) {
    if (absl::EqualsIgnoreCase(text, yes)) return true;
  }
  for (std::string_view no : {"0", "false", "f", "no", "n", "off"}) {
    if (absl::EqualsIgnoreCase(text, no)) return false;
  }
  return NotA(text, "a switch", "give true, yes, on or 1, or false, no, off or 0");
}

namespace {

// Reads the magnitude of a whole number without a sign.
absl::StatusOr<uint64_t> ParseMagnitude(std::string_view text, std::string_view whole_text) {
  constexpr std::string_view kHint = "give a whole number, like 42, 0x2a or 052";
  int base = 10;
  std::string_view digits = text;
  if (absl::StartsWithIgnoreCase(digits, "0x")) {
    base = 16;
    digits.remove_prefix(2);
  } else if (digits.size() > 1 && digits[0] == '0') {
    base = 8;
    digits.remove_prefix(1);
  }
  uint64_t value = 0;
  auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
  if (error == std::errc::invalid_argument || end != digits.data() + digits.size()) {
    bool decimal_digits =
        !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
    if (base == 8 && decimal_digits) {
      return NotA(whole_text, "a number", "a leading 0 means octal, which has the digits 0 to 7");
    }
    return NotA(whole_text, "a number", kHint);
  }
  if (error != std::errc()) {
    return absl::OutOfRangeError(absl::StrCat(Quote(whole_text), " is too large for 64 bits"));
  }
  return value;
}

template <typename T>
absl::Status OutOfRange(std::string_view text, T min, T max) {
  return absl::OutOfRangeError(
      absl::StrCat(Quote(text), " is out of range: give a number between ", min, " and ", max));
}

}  // namespace

absl::StatusOr<uint64_t> ParseUnsigned(std::string_view text, uint64_t min, uint64_t max) {
  if (absl::StartsWith(text, "-")) return NotA(text, "a number", "it cannot be negative");
  absl::StatusOr<uint64_t> value = ParseMagnitude(text, text);
  if (!value.ok()) return value.status();
  if (*value < min || *value > max) return OutOfRange(text, min, max);
  return *value;
}

absl::StatusOr<int64_t> ParseSigned(std::string_view text, int64_t min, int64_t max) {
  bool negative = absl::StartsWith(text, "-");
  absl::StatusOr<uint64_t> magnitude = ParseMagnitude(text.substr(negative ? 1 : 0), text);
  if (!magnitude.ok()) return magnitude.status();
  Wide limit = Wide{1} << 63;
  if (*magnitude > (negative ? limit : limit - 1)) return OutOfRange(text, min, max);
  // Negated as unsigned, because the magnitude of the smallest number does not fit the signed type.
  int64_t value = static_cast<int64_t>(negative ? 0 - *magnitude : *magnitude);
  if (value < min || value > max) return OutOfRange(text, min, max);
  return value;
}

absl::StatusOr<double> ParseNumber(std::string_view text) {
  double value = 0;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc() || end != text.data() + text.size() ||
      !std::isfinite(value)) {
    return NotA(text, "a number", "give a decimal number, like 3, 0.5 or 1e-8");
  }
  return value;
}

std::string FormatNumber(double value) {
  std::array<char, 32> text;
  auto [end, error] = std::to_chars(text.data(), text.data() + text.size(), value);
  return std::string(text.data(), error == std::errc() ? end : text.data());
}

absl::StatusOr<Probability> ParseProbability(std::string_view text) {
  constexpr std::string_view kHint = "give a number from 0 to 1, a share like 25%, or N:M";
  double value = 0;
  if (size_t colon = text.find_first_of(":/"); colon != std::string_view::npos) {
    absl::StatusOr<double> part = ParseNumber(text.substr(0, colon));
    absl::StatusOr<double> all = ParseNumber(text.substr(colon + 1));
    if (!part.ok() || !all.ok() || *all <= 0) return NotA(text, "a probability", kHint);
    value = *part / *all;
  } else {
    bool percent = absl::EndsWith(text, "%");
    absl::StatusOr<double> number = ParseNumber(text.substr(0, text.size() - (percent ? 1 : 0)));
    if (!number.ok()) return NotA(text, "a probability", kHint);
    value = percent ? *number / 100 : *number;
  }
  if (value < 0 || value > 1) return NotA(text, "a probability", kHint);
  return Probability{value};
}

absl::StatusOr<Percent> ParsePercent(std::string_view text) {
  std::string_view digits = text;
  if (absl::EndsWith(digits, "%")) digits.remove_suffix(1);
  absl::StatusOr<double> number = ParseNumber(digits);
  if (!number.ok() || *number < 0 || *number > 100) {
    return NotA(text, "a share in percent", "give a number from 0 to 100, like 25 or 25%");
  }
  return Percent{*number};
}

}  // namespace blk
