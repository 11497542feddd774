#include "src/backends/floppy/names.h"

#include <algorithm>
#include <cstdint>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"

namespace blk::fat {
namespace {

constexpr size_t kLongUnitsMax = 255;
constexpr char32_t kReplacement = U'_';

// The next character, or the replacement for a byte that begins none.
char32_t NextCharacter(std::string_view* text) {
  const auto lead = static_cast<unsigned char>(text->front());
  const int more = lead < 0x80       ? 0
                   : lead >> 5 == 6  ? 1
                   : lead >> 4 == 14 ? 2
                   : lead >> 3 == 30 ? 3
                                     : -1;
  static constexpr char32_t kSmallest[] = {0, 0x80, 0x800, 0x10000};
  char32_t value = more <= 0 ? lead : lead & (0x3f >> more);
  bool good = more >= 0 && text->size() > static_cast<size_t>(std::max(more, 0));
  for (int i = 1; good && i <= more; ++i) {
    const auto byte = static_cast<unsigned char>((*text)[i]);
    good = byte >> 6 == 2;
    value = value << 6 | (byte & 0x3f);
  }
  good =
      good && value >= kSmallest[more] && value <= 0x10ffff && (value < 0xd800 || value > 0xdfff);
  text->remove_prefix(good ? more + 1 : 1);
  return good ? value : kReplacement;
}

bool IsShortByte(char byte) {
  return absl::ascii_isupper(byte) || absl::ascii_isdigit(byte) ||
         std::string_view("!#$%&'()-@^_`{}~").find(byte) != std::string_view::npos;
}

// `text` in capitals, with `_` for what a short name cannot have, without blanks and dots.
std::string Shortened(std::string_view text, size_t bytes_max, bool* exact) {
  std::string result;
  while (!text.empty()) {
    const char32_t character = NextCharacter(&text);
    char byte = character < 0x80 ? static_cast<char>(character) : '_';
    if (byte == ' ' || byte == '.' || result.size() == bytes_max) {
      *exact = false;
      continue;
    }
    const char upper = absl::ascii_toupper(byte);
    *exact = *exact && character < 0x80 && byte == upper && IsShortByte(byte);
    result.push_back(IsShortByte(upper) ? upper : '_');
  }
  return result;
}

std::string Padded(std::string_view base, std::string_view extension) {
  std::string name(11, ' ');
  std::ranges::copy(base, name.begin());
  std::ranges::copy(extension, name.begin() + 8);
  return name;
}

}  // namespace

std::u16string LongName(std::string_view name) {
  std::u16string result;
  while (!name.empty()) {
    char32_t character = NextCharacter(&name);
    if (character < 0x20 || character == 0x7f ||
        (character < 0x80 && std::string_view("\"*/:<>?\\|").find(static_cast<char>(character)) !=
                                 std::string_view::npos))
      character = kReplacement;
    if (result.size() + (character > 0xffff) >= kLongUnitsMax) break;
    if (character > 0xffff) {
      character -= 0x10000;
      result.push_back(static_cast<char16_t>(0xd800 + (character >> 10)));
      character = 0xdc00 + (character & 0x3ff);
    }
    result.push_back(static_cast<char16_t>(character));
  }
  // Blanks and dots at the end are dropped by those who read.
  while (!result.empty() && (result.back() == u'.' || result.back() == u' ')) result.back() = u'_';
  return result;
}

std::string ShortName(std::string_view name, std::set<std::string>* taken, bool* exact) {
  *exact = true;
  const size_t dot = name.rfind('.');
  const bool has_extension = dot != std::string_view::npos && dot > 0 && dot + 1 < name.size();
  std::string_view stem = has_extension ? name.substr(0, dot) : name;
  std::string base = Shortened(stem, 8, exact);
  std::string extension;
  if (has_extension) extension = Shortened(name.substr(dot + 1), 3, exact);
  if (base.empty()) base = "_", *exact = false;
  if (*exact && taken->insert(Padded(base, extension)).second) return Padded(base, extension);
  *exact = false;
  for (uint32_t number = 1;; ++number) {
    const std::string tail = absl::StrCat("~", number);
    std::string candidate = Padded(base.substr(0, 8 - tail.size()) + tail, extension);
    if (taken->insert(candidate).second) return candidate;
  }
}

uint8_t ShortNameChecksum(std::string_view short_name) {
  uint8_t sum = 0;
  for (char byte : short_name)
    sum = static_cast<uint8_t>((sum >> 1 | sum << 7) + static_cast<uint8_t>(byte));
  return sum;
}

}  // namespace blk::fat
