#pragma once
// Extents as text: the lines, totals and JSON of nbdinfo --map, byte for byte. For `blk map` and
// the name nbdinfo. One thread.
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "src/tools/terminal_colour.h"

namespace blk {

struct MapStyle {
  bool json = false;
  bool totals = false;  // the bytes of each type instead of the extents
  bool colour = false;  // of lines
};

class MapText {
 public:
  // `context` is the metadata context that the flags are of.
  MapText(std::string context, MapStyle style);

  // The next extent; neighbours with equal flags are to be one.
  void Take(uint64_t offset, uint64_t length, uint64_t flags);
  // After the last. `total_bytes`: of which the totals are percentages.
  void Finish(uint64_t total_bytes);
  // What there is to print since the last call.
  std::string TakeText() { return std::exchange(out_.text(), std::string()); }

 private:
  struct Meaning;
  static Meaning MeaningOf(std::string_view context, uint64_t flags);
  void Line(const std::string& numbers, std::string_view separator, uint64_t flags);
  void JsonItem(const std::string& numbers, std::string_view end, uint64_t flags);
  void Totals(uint64_t total_bytes);

  const std::string context_;
  const MapStyle style_;
  ColourText out_;
  std::string_view separator_;  // of JSON items
  std::map<uint64_t, uint64_t> totals_;
};

}  // namespace blk
