#pragma once
// Names of FAT: long ones in UTF-16, and the short one (8.3) that every long one has beside it.
// Pure functions; any thread.
#include <set>
#include <string>
#include <string_view>

namespace blk::fat {

// UTF-8 as UTF-16, at most 255 units; bytes that are no UTF-8 and characters that FAT has no room
// for become `_`.
std::u16string LongName(std::string_view name);

// Eleven bytes, unlike all in `taken`, to which it is added. `exact` tells that it says all.
std::string ShortName(std::string_view name, std::set<std::string>* taken, bool* exact);

// What ties the entries of a long name to their short one.
uint8_t ShortNameChecksum(std::string_view short_name);

}  // namespace blk::fat
