// ddrescue: reads fail where a map file of GNU ddrescue says that the sectors are bad. The result
// is read-only. Parallel-safe: the map is fixed once it has been read.
#include <algorithm>
#include <cerrno>
#include <fstream>

#include "absl/strings/ascii.h"
#include "absl/strings/str_split.h"
#include "src/core/spec.h"

namespace blk {
namespace {

struct Config {
  std::string file;
};

struct Range {
  uint64_t begin, end;
};

// A line `POSITION SIZE STATUS`. GNU ddrescue's manual, "Mapfile structure": `+` is finished, all
// else was not read.
absl::StatusOr<std::pair<Range, bool>> ParseLine(std::string_view line) {
  std::vector<std::string_view> words =
      absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
  if (words.size() != 3 || words[2].size() != 1)
    return absl::InvalidArgumentError("a line is not POSITION SIZE STATUS");
  BLK_ASSIGN_OR_RETURN(uint64_t begin, ParseUnsigned(words[0], 0, kSizeBytesMax));
  BLK_ASSIGN_OR_RETURN(uint64_t length, ParseUnsigned(words[1], 0, kSizeBytesMax - begin));
  if (std::string_view("+-*/?").find(words[2]) == std::string_view::npos)
    return absl::InvalidArgumentError(absl::StrCat("\"", words[2], "\" is no status"));
  return std::pair(Range{begin, begin + length}, words[2] == "+");
}

// What can be read, in order, side by side ones joined.
absl::StatusOr<std::vector<Range>> ReadGoodRanges(const std::string& path) {
  std::ifstream stream(path);
  if (!stream) return ErrnoError(errno, absl::StrCat("cannot open ", path));
  std::vector<Range> good;
  bool status_line_seen = false;
  std::string line;
  for (int number = 1; std::getline(stream, line); ++number) {
    std::string_view text = absl::StripAsciiWhitespace(line);
    if (text.empty() || text[0] == '#') continue;
    if (!std::exchange(status_line_seen, true)) continue;  // where ddrescue was when it stopped
    auto parsed = ParseLine(text);
    if (!parsed.ok()) return Annotate(parsed.status(), absl::StrCat(path, ":", number));
    auto [range, is_good] = *parsed;
    if (!is_good || range.begin == range.end) continue;
    if (!good.empty() && range.begin < good.back().end)
      return absl::InvalidArgumentError(
          absl::StrCat(path, ":", number, ": lines are out of order"));
    if (!good.empty() && range.begin == good.back().end) {
      good.back().end = range.end;
    } else {
      good.push_back(range);
    }
  }
  if (!status_line_seen)
    return absl::InvalidArgumentError(absl::StrCat(path, " is no map file of ddrescue"));
  return good;
}

class RescuedDevice final : public Filter {
 public:
  RescuedDevice(DevicePtr below, const std::vector<Range>& good)
      : Filter(below, MakeFacts(*below)), good_(good) {}

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    auto range =
        std::upper_bound(good_.begin(), good_.end(), offset,
                         [](uint64_t at, const Range& candidate) { return at < candidate.end; });
    if (range == good_.end() || offset < range->begin || into.size() > range->end - offset)
      return ErrnoErrorAsIs(EIO, absl::StrCat("bad sectors in ", into.size(), " bytes at ", offset,
                                              ", says the map of ddrescue"));
    return below().Read(call, offset, into);
  }

 private:
  static Facts MakeFacts(const Device& below) {
    Facts facts = below.facts();
    facts.read_only = true;
    return facts;
  }
  const std::vector<Range>& good_;  // of the layer
};

class RescueLayer final : public FilterLayer {
 public:
  RescueLayer(LayerPtr below, Config config)
      : FilterLayer(std::move(below)), config_(std::move(config)) {}

  absl::Status Ready() override {
    BLK_ASSIGN_OR_RETURN(good_, ReadGoodRanges(config_.file));
    return absl::OkStatus();
  }
  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    args.read_only = true;
    return FilterLayer::Open(std::move(args));
  }

 protected:
  absl::StatusOr<DevicePtr> Wrap(DevicePtr device, const OpenArgs&) override {
    return std::make_shared<RescuedDevice>(std::move(device), good_);
  }

 private:
  const Config config_;
  std::vector<Range> good_;
};

}  // namespace

const Spec& DdrescueSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("ddrescue", "reads fail where a map of ddrescue says so")
          .Param("ddrescue-mapfile", &Config::file,
                 {.help = "the map file of GNU ddrescue", .required = true, .path = PathUse::kRead})
          .Description("What the map does not mention counts as bad. The disk is read-only.")
          .PrintedExample("ddrescue(ddrescue-mapfile=disk.map)+disk.img")
          .Make([](Config config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<RescueLayer>(std::move(below), std::move(config));
          }));
  return spec;
}

}  // namespace blk
