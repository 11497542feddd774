#pragma once
// The escape sequences with which libnbd's tools colour their output. Pure functions.
#include <string>
#include <string_view>

namespace blk {

namespace colour {
inline constexpr std::string_view kGrey = "22;90", kRed = "22;31", kGreen = "22;32";
inline constexpr std::string_view kBold = "1;30", kBrightRed = "1;31", kBrightBlue = "1;34";
inline constexpr std::string_view kBrightMagenta = "1;35", kBrightWhite = "1;37";
inline constexpr std::string_view kOnBlack = "40", kOnLightGrey = "47";
}  // namespace colour

// Appends to a text, in colours or, if `on` is false, without.
class ColourText {
 public:
  explicit ColourText(bool on) : on_(on) {}
  bool on() const { return on_; }
  void Set(std::string_view code) {
    if (on_) text_.append("\033[").append(code).append("m");
  }
  void Restore() { Set("0"); }
  std::string& text() { return text_; }

 private:
  const bool on_;
  std::string text_;
};

}  // namespace blk
