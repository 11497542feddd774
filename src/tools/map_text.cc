#include "src/tools/map_text.h"

#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "src/core/device.h"
#include "src/core/param_text.h"

namespace blk {

// What flags mean, as far as it is known, and how it is shown on a terminal.
struct MapText::Meaning {
  std::string text = {};
  std::string_view foreground = {}, background = {};
};

MapText::Meaning MapText::MeaningOf(std::string_view context, uint64_t flags) {
  if (context == kBaseAllocation) {
    constexpr std::string_view kNames[] = {"data", "hole", "zero", "hole,zero"};
    if (flags == 0) return {"data", colour::kBold};
    if (flags < 4) return {std::string(kNames[flags])};
  } else if (absl::StartsWith(context, "qemu:dirty-bitmap:")) {
    if (flags == 0) return {"clean", colour::kGreen};
    if (flags == 1) return {"dirty", colour::kRed};
  } else if (context == "qemu:allocation-depth") {
    if (flags == 0) return {"absent"};
    if (flags == 1) return {"local", colour::kBrightWhite, colour::kOnBlack};
    return {absl::StrCat("backing depth ", flags), {}, colour::kOnLightGrey};
  }
  return {};
}

MapText::MapText(std::string context, MapStyle style)
    : context_(std::move(context)), style_(style), out_(style.colour && !style.json) {
  if (style_.json && !style_.totals) out_.text() = "[\n";
}

void MapText::Line(const std::string& numbers, std::string_view separator, uint64_t flags) {
  Meaning meaning = MeaningOf(context_, flags);
  const bool coloured = !meaning.foreground.empty() || !meaning.background.empty();
  if (!meaning.foreground.empty()) out_.Set(meaning.foreground);
  if (!meaning.background.empty()) out_.Set(meaning.background);
  absl::StrAppend(&out_.text(), numbers);
  if (!meaning.text.empty()) absl::StrAppend(&out_.text(), separator, meaning.text);
  if (coloured) out_.Restore();
  out_.text() += '\n';
}

void MapText::JsonItem(const std::string& numbers, std::string_view end, uint64_t flags) {
  Meaning meaning = MeaningOf(context_, flags);
  absl::StrAppend(&out_.text(), std::exchange(separator_, ",\n"), "{ ", numbers,
                  ", \"type\": ", flags);
  if (!meaning.text.empty())
    absl::StrAppend(&out_.text(), ", \"description\": ", JsonQuote(meaning.text));
  absl::StrAppend(&out_.text(), end);
}

void MapText::Take(uint64_t offset, uint64_t length, uint64_t flags) {
  if (style_.totals) {
    totals_[flags] += length;
  } else if (style_.json) {
    JsonItem(absl::StrCat("\"offset\": ", offset, ", \"length\": ", length), "}", flags);
  } else {
    Line(absl::StrFormat("%10d  %10d  %3d", offset, length, flags), "  ", flags);
  }
}

void MapText::Finish(uint64_t total_bytes) {
  if (style_.totals) Totals(total_bytes);
  if (style_.json) absl::StrAppend(&out_.text(), style_.totals && !total_bytes ? "[]\n" : "\n]\n");
}

void MapText::Totals(uint64_t total_bytes) {
  if (style_.json && total_bytes) absl::StrAppend(&out_.text(), "[\n");
  for (const auto& [flags, bytes] : totals_) {
    double percent = 100.0 * static_cast<double>(bytes) / static_cast<double>(total_bytes);
    if (style_.json) {
      JsonItem(absl::StrFormat("\"size\": %d, \"percent\": %g", bytes, percent), " }", flags);
    } else {
      Line(absl::StrFormat("%10d %5.1f%% %3d", bytes, percent, flags), " ", flags);
    }
  }
}

}  // namespace blk
