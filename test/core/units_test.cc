#include "src/core/units.h"

#include <doctest/doctest.h>

#include <string>
#include <string_view>
#include <vector>

namespace blk {
namespace {

std::string SizeText(std::string_view text) {
  absl::StatusOr<Size> size = ParseSize(text);
  return size.ok() ? std::to_string(size->bytes) : std::string(size.status().message());
}

TEST_CASE("sizes are read as nbdkit reads them") {
  CHECK(SizeText("0") == "0");
  CHECK(SizeText("1") == "1");
  CHECK(SizeText("010") == "10");
  CHECK(SizeText("7b") == "7");
  CHECK(SizeText("7B") == "7");
  CHECK(SizeText("3s") == "1536");
  CHECK(SizeText("3S") == "1536");
  CHECK(SizeText("64k") == "65536");
  CHECK(SizeText("64K") == "65536");
  CHECK(SizeText("1m") == "1048576");
  CHECK(SizeText("1G") == "1073741824");
  CHECK(SizeText("1T") == "1099511627776");
  CHECK(SizeText("1P") == "1125899906842624");
  CHECK(SizeText("7E") == "8070450532247928832");
  CHECK(SizeText("9223372036854775807") == "9223372036854775807");
}

TEST_CASE("sizes may have a fraction that gives whole bytes") {
  CHECK(SizeText("1.5G") == "1610612736");
  CHECK(SizeText("0.5k") == "512");
  CHECK(SizeText("1.000000000000000000000000") == "1");
  CHECK(SizeText("7.9990234375E") == "9222246136947933184");
  CHECK(SizeText("1.3b") == "\"1.3b\" is not a size: it is not a whole number of bytes");
  CHECK(SizeText("1.1k") == "\"1.1k\" is not a size: it is not a whole number of bytes");
  CHECK(SizeText("0.0000000000000000001E") ==
        "\"0.0000000000000000001E\" is not a size: it is not a whole number of bytes");
}

TEST_CASE("what is no size is refused with a reason") {
  const std::string hint =
      " is not a size: give digits and one of b s K M G T P E, like 512, 64k or 1T";
  for (const char* text : {"", "k", "lots", "+1", " 1", ".5G", "1.", "1.G", "=M"}) {
    CAPTURE(text);
    CHECK(SizeText(text) == "\"" + std::string(text) + "\"" + hint);
  }
  CHECK(SizeText("-1") == "\"-1\" is not a size: it cannot be negative");
  CHECK(SizeText("1Q") == "\"1Q\" is not a size: unknown unit \"Q\", use one of b s K M G T P E");
  CHECK(SizeText("1KB") ==
        "\"1KB\" is not a size: unknown unit \"KB\", use one of b s K M G T P E");
  CHECK(SizeText("0x10") ==
        "\"0x10\" is not a size: unknown unit \"x10\", use one of b s K M G T P E");
  CHECK(SizeText("1 ") == "\"1 \" is not a size: unknown unit \" \", use one of b s K M G T P E");
  CHECK(SizeText("1.5.5G") ==
        "\"1.5.5G\" is not a size: unknown unit \".5G\", use one of b s K M G T P E");
  CHECK(SizeText(std::string_view("1\0", 2)) ==
        "\"1?\" is not a size: unknown unit \"?\", use one of b s K M G T P E");
  CHECK(SizeText(std::string(100, 'x')) == "\"" + std::string(60, 'x') + "...\"" + hint);
}

TEST_CASE("sizes end at 2^63-1") {
  const std::string most = " is too large: the most is 2^63-1, 9223372036854775807";
  for (const char* text :
       {"8E", "9223372036854775808", "16E", "18446744073709551616", "9007199254740992K",
        "99999999999999999999999999999999999999999999999999E", "7.99999999999999999999999999E"}) {
    CAPTURE(text);
    absl::StatusOr<Size> size = ParseSize(text);
    CHECK_FALSE(size.ok());
  }
  CHECK(SizeText("8E") == "\"8E\"" + most);
  CHECK(ParseSize("8E").status().code() == absl::StatusCode::kOutOfRange);
  CHECK(SizeText("9007199254740991K") == "9223372036854774784");
}

TEST_CASE("sizes are printed exactly") {
  CHECK(FormatSize(0) == "0");
  CHECK(FormatSize(513) == "513");
  CHECK(FormatSize(32768) == "32K");
  CHECK(FormatSize(1610612736) == "1536M");
  CHECK(FormatSize(uint64_t{1} << 40) == "1T");
  CHECK(FormatSize(kSizeBytesMax) == "9223372036854775807");
  uint64_t value = 1;
  for (int step = 0; step < 2000; ++step) {
    value = (value * 6364136223846793005u + 1442695040888963407u);
    uint64_t bytes = (value >> (1 + step % 63)) << (step % 7 * 10) & kSizeBytesMax;
    CAPTURE(bytes);
    CHECK(SizeText(FormatSize(bytes)) == std::to_string(bytes));
  }
}

TEST_CASE("rounded sizes never read as more than they are") {
  CHECK(FormatSizeRounded(0) == "0");
  CHECK(FormatSizeRounded(1023) == "1023");
  CHECK(FormatSizeRounded(1024) == "1K");
  CHECK(FormatSizeRounded(1610612736) == "1.5G");
  CHECK(FormatSizeRounded((uint64_t{1} << 40) - 1) == "1023G");
  CHECK(FormatSizeRounded((uint64_t{1} << 20) + (uint64_t{1} << 20) / 20) == "1.04M");
  CHECK(FormatSizeRounded(uint64_t{99} * 1024 + 1023) == "99.9K");
  CHECK(FormatSizeRounded(kSizeBytesMax) == "7.99E");
}

TEST_CASE("rates count bits with the same units") {
  CHECK(ParseBitRate("1M")->bits_per_second == 1048576);
  CHECK(ParseBitRate("1Mbit").status().message() ==
        "\"1Mbit\" is not a rate in bits a second: unknown unit \"Mbit\", use one of b s K M G T P "
        "E");
}

std::string DurationText(std::string_view text) {
  absl::StatusOr<Nanoseconds> duration = ParseDuration(text);
  return duration.ok() ? std::to_string(duration->count())
                       : std::string(duration.status().message());
}

TEST_CASE("times") {
  CHECK(DurationText("0") == "0");
  CHECK(DurationText("8s") == "8000000000");
  CHECK(DurationText("8") == "8000000000");
  CHECK(DurationText("250ms") == "250000000");
  CHECK(DurationText("10us") == "10000");
  CHECK(DurationText("5ns") == "5");
  CHECK(DurationText("0.25") == "250000000");
  CHECK(DurationText("1.000000001s") == "1000000001");
  CHECK(DurationText("9223372036.854775807s") == "9223372036854775807");
  CHECK(DurationText("9223372036.854775808s") ==
        "\"9223372036.854775808s\" is too long: the most is 292 years");
  CHECK(DurationText("1.5ns") == "\"1.5ns\" is not a time: it is finer than a nanosecond");
  CHECK(DurationText("-1s") == "\"-1s\" is not a time: it cannot be negative");
  CHECK(DurationText("") ==
        "\"\" is not a time: give a number and one of ns us ms s, like 8s or 250ms");
  CHECK(DurationText("ms") ==
        "\"ms\" is not a time: give a number and one of ns us ms s, like 8s or 250ms");
  CHECK(DurationText("3 s") == "\"3 s\" is not a time: unknown unit \" s\", use one of ns us ms s");
  for (const char* text : {"0s", "8s", "1500ms", "10us", "5ns"})
    CHECK(FormatDuration(*ParseDuration(text)) == text);
}

TEST_CASE("switches") {
  for (const char* text : {"1", "true", "TRUE", "tRue", "t", "yes", "Y", "on", "oN"}) {
    CAPTURE(text);
    CHECK(ParseBool(text).value_or(false));
  }
  for (const char* text : {"0", "false", "F", "no", "n", "off", "OFF"}) {
    CAPTURE(text);
    CHECK_FALSE(ParseBool(text).value_or(true));
  }
  for (const char* text : {"", "2", "truth", "o"}) CHECK_FALSE(ParseBool(text).ok());
  CHECK(ParseBool("2").status().message() ==
        "\"2\" is not a switch: give true, yes, on or 1, or false, no, off or 0");
}

TEST_CASE("whole numbers") {
  CHECK(ParseUnsigned("0").value() == 0);
  CHECK(ParseUnsigned("42").value() == 42);
  CHECK(ParseUnsigned("0x2A").value() == 42);
  CHECK(ParseUnsigned("052").value() == 42);
  CHECK(ParseUnsigned("18446744073709551615").value() == 18446744073709551615u);
  CHECK(ParseUnsigned("18446744073709551616").status().message() ==
        "\"18446744073709551616\" is too large for 64 bits");
  CHECK(ParseUnsigned("08").status().message() ==
        "\"08\" is not a number: a leading 0 means octal, which has the digits 0 to 7");
  CHECK(ParseUnsigned("-1").status().message() == "\"-1\" is not a number: it cannot be negative");
  CHECK(ParseUnsigned("101", 0, 100).status().message() ==
        "\"101\" is out of range: give a number between 0 and 100");
  for (const char* text : {"", "x", "0x", "0xg", "1k", "1 ", " 1", "+1", "1.0", "0x-1", "--1"}) {
    CAPTURE(text);
    CHECK_FALSE(ParseUnsigned(text).ok());
    CHECK_FALSE(ParseSigned(text).ok());
  }
  CHECK(ParseSigned("-9223372036854775808").value() == std::numeric_limits<int64_t>::min());
  CHECK(ParseSigned("9223372036854775807").value() == std::numeric_limits<int64_t>::max());
  CHECK(ParseSigned("-0x10").value() == -16);
  CHECK_FALSE(ParseSigned("-9223372036854775809").ok());
  CHECK_FALSE(ParseSigned("9223372036854775808").ok());
  CHECK(ParseInteger<uint8_t>("255").value() == 255);
  CHECK(ParseInteger<int8_t>("-129").status().message() ==
        "\"-129\" is out of range: give a number between -128 and 127");
}

TEST_CASE("decimal numbers, probabilities and shares") {
  CHECK(ParseNumber("-1.5").value() == -1.5);
  CHECK(ParseNumber("1e-8").value() == 1e-8);
  CHECK(FormatNumber(1e-8) == "1e-08");
  CHECK(FormatNumber(0.1) == "0.1");
  for (const char* text : {"", "nan", "inf", "1e999", "1x", "0x1p3"}) {
    CAPTURE(text);
    CHECK_FALSE(ParseNumber(text).ok());
  }
  CHECK(ParseProbability("25%")->value == 0.25);
  CHECK(ParseProbability("0.25")->value == 0.25);
  CHECK(ParseProbability("1:4")->value == 0.25);
  CHECK(ParseProbability("0.5:2")->value == 0.25);
  CHECK(ParseProbability("1e-8")->value == 1e-8);
  for (const char* text :
       {"", "%", "101%", "-0.1", "1.1", "5:4", "1:0", "1:", ":", "1:2:3", "a:b"}) {
    CAPTURE(text);
    CHECK_FALSE(ParseProbability(text).ok());
  }
  CHECK(ParseProbability("2").status().message() ==
        "\"2\" is not a probability: give a number from 0 to 1, a share like 25%, or N:M");
  CHECK(ParsePercent("10")->value == 10);
  CHECK(ParsePercent("2.5%")->value == 2.5);
  CHECK(ParsePercent("101").status().message() ==
        "\"101\" is not a share in percent: give a number from 0 to 100, like 25 or 25%");
}

}  // namespace
}  // namespace blk
