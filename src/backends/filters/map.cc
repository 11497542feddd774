// map: ranges of the disk appear elsewhere: moved, swapped or more than once.
// extentlist: holes are told from a text file.
//
// Parallel-safe: both are fixed once they have been read.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <iterator>

#include "absl/strings/ascii.h"
#include "absl/strings/str_split.h"
#include "src/backends/filters/byte_range.h"
#include "src/backends/filters/window_device.h"
#include "src/backends/filters/wrap_layer.h"
#include "src/core/spec.h"

namespace blk {

// [range] of what clients see is at `to` of the disk below.
struct MappedRange {
  ByteRange range;
  uint64_t to = 0;
};

template <>
struct ParamValue<MappedRange> {
  static constexpr std::string_view kType = "mapping", kWord = "START-END:DEST";
  static absl::StatusOr<MappedRange> Parse(std::string_view text) {
    const size_t colon = text.find(':');
    if (colon == std::string_view::npos)
      return absl::InvalidArgumentError(
          absl::StrCat("\"", text, "\" is no mapping: write START-END:DEST"));
    MappedRange result;
    BLK_ASSIGN_OR_RETURN(result.range, ParseByteRange(text.substr(0, colon)));
    BLK_ASSIGN_OR_RETURN(result.to, ParseUnsigned(text.substr(colon + 1), 0, kSizeBytesMax));
    return result;
  }
  static std::string Format(const MappedRange& value) {
    return absl::StrCat(FormatByteRange(value.range), ":", value.to);
  }
};

namespace {

struct MapConfig {
  std::vector<MappedRange> maps;
  std::optional<Size> size;
};

// [begin, end) is at begin + delta below. Side by side from 0 to the size.
struct Segment {
  uint64_t begin, end;
  int64_t delta;
};

// The first mapping that has an offset counts; what none has stays where it is.
std::vector<Segment> MakeSegments(const std::vector<MappedRange>& maps, uint64_t size) {
  std::vector<uint64_t> cuts = {0, size};
  for (const MappedRange& map : maps) {
    cuts.push_back(std::min(map.range.first, size));
    cuts.push_back(map.range.EndOn(size));
  }
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  std::vector<Segment> segments;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    Segment segment{cuts[i], cuts[i + 1], 0};
    auto map = std::find_if(maps.begin(), maps.end(), [&](const MappedRange& candidate) {
      return candidate.range.first <= segment.begin && segment.begin < candidate.range.EndOn(size);
    });
    if (map != maps.end())
      segment.delta = static_cast<int64_t>(map->to) - static_cast<int64_t>(map->range.first);
    if (!segments.empty() && segments.back().delta == segment.delta) {
      segments.back().end = segment.end;
    } else {
      segments.push_back(segment);
    }
  }
  return segments;
}

class MapDevice final : public Filter {
 public:
  MapDevice(DevicePtr below, uint64_t size, std::vector<Segment> segments)
      : Filter(below, MakeFacts(*below, size), /*passes_data=*/true),
        segments_(std::move(segments)) {}

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    return InParts(offset, into.size(), [this, &call, into](Part part) {
      return below().Read(call, part.offset, into.subspan(part.done, part.length));
    });
  }
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override {
    return InParts(offset, from.size(), [this, &call, from](Part part) {
      return below().Write(call, part.offset, from.subspan(part.done, part.length));
    });
  }
  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override {
    return InParts(offset, length, [this, &call](Part part) {
      return below().Trim(call, part.offset, part.length);
    });
  }
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override {
    return InParts(offset, length, [this, &call](Part part) {
      return below().Zero(call, part.offset, part.length);
    });
  }
  Task<absl::Status> DoCache(const Call& call, uint64_t offset, uint64_t length) override {
    return InParts(offset, length, [this, &call](Part part) {
      return below().Cache(call, part.offset, part.length);
    });
  }
  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override {
    Part part = PartAt(list->next(), 0, list->end() - list->next());
    ExtentList inside(part.offset, part.length, std::max<size_t>(list->room(), 1));
    BLK_CO_RETURN_IF_ERROR(co_await below().Extents(call, context, &inside));
    for (const Extent& extent : inside.extents()) list->Append(extent.length, extent.flags);
    co_return absl::OkStatus();
  }
  bool DoBorrow(const Call& call, uint64_t offset, uint64_t length, Loan* loan) override {
    Part part = PartAt(offset, 0, length);
    return part.length == length && below().Borrow(call, part.offset, length, loan);
  }

 private:
  struct Part {
    uint64_t offset, length, done;  // below; after `done` bytes of the request
  };
  static Facts MakeFacts(const Device& below, uint64_t size) {
    Facts facts = below.facts();
    facts.size = size;
    return facts;
  }
  Part PartAt(uint64_t offset, uint64_t done, uint64_t length) const {
    const uint64_t at = offset + done;
    const Segment& segment =
        *std::upper_bound(segments_.begin(), segments_.end(), at,
                          [](uint64_t value, const Segment& one) { return value < one.end; });
    return {at + static_cast<uint64_t>(segment.delta), std::min(length - done, segment.end - at),
            done};
  }
  template <typename Use>
  Task<absl::Status> InParts(uint64_t offset, uint64_t length, Use use) {
    Part part = PartAt(offset, 0, length);
    if (part.length == length) return use(part);
    return InManyParts(offset, length, std::move(use));
  }
  template <typename Use>
  Task<absl::Status> InManyParts(uint64_t offset, uint64_t length, Use use) {
    for (uint64_t done = 0; done < length;) {
      Part part = PartAt(offset, done, length);
      BLK_CO_RETURN_IF_ERROR(co_await use(part));
      done += part.length;
    }
    co_return absl::OkStatus();
  }

  const std::vector<Segment> segments_;
};

absl::StatusOr<DevicePtr> WrapMap(DevicePtr below, const MapConfig& config) {
  const uint64_t size = config.size ? config.size->bytes : below->size();
  std::vector<Segment> segments = MakeSegments(config.maps, size);
  const uint64_t block = below->facts().block.minimum;
  for (const Segment& segment : segments) {
    const uint64_t from = segment.begin + static_cast<uint64_t>(segment.delta);
    if (from > below->size() || segment.end - segment.begin > below->size() - from)
      return ErrnoErrorAsIs(
          EINVAL, absl::StrCat("bytes ", segment.begin, " to ", segment.end - 1, " are mapped to ",
                               from, " and after, which is beyond the end of the disk below (",
                               below->size(), ")"));
    if (segment.begin % block != 0 || from % block != 0)
      return ErrnoErrorAsIs(EINVAL, absl::StrCat("ranges must begin and end at blocks of ", block,
                                                 " bytes, as the disk below has them"));
  }
  return std::make_shared<MapDevice>(std::move(below), size, std::move(segments));
}

// ---- extentlist

struct ExtentListConfig {
  std::string file;
};

struct FixedExtent {
  uint64_t begin, end, flags;
};

absl::StatusOr<FixedExtent> ParseExtent(std::string_view line) {
  std::vector<std::string_view> words =
      absl::StrSplit(line, absl::ByAnyChar(" \t\r"), absl::SkipEmpty());
  BLK_ASSIGN_OR_RETURN(Size begin, ParseSize(words[0]));
  FixedExtent extent{begin.bytes, kSizeBytesMax, 0};
  if (words.size() > 1) {
    BLK_ASSIGN_OR_RETURN(Size length, ParseSize(words[1]));
    if (length.bytes > kSizeBytesMax - extent.begin) return absl::OutOfRangeError("too long");
    extent.end = extent.begin + length.bytes;
  }
  if (words.size() > 3) return absl::InvalidArgumentError("more than offset, length and type");
  if (words.size() < 3) return extent;
  if (absl::ascii_isdigit(static_cast<unsigned char>(words[2][0]))) {
    BLK_ASSIGN_OR_RETURN(extent.flags, ParseUnsigned(words[2], 0, 3));
    return extent;
  }
  for (std::string_view word : absl::StrSplit(words[2], ',')) {
    if (word != "hole" && word != "zero")
      return absl::InvalidArgumentError(absl::StrCat("\"", word, "\" is neither hole nor zero"));
    extent.flags |= word == "hole" ? kExtentHole : kExtentZero;
  }
  return extent;
}

// Those of the file, in order; what lies between them is a hole.
absl::StatusOr<std::vector<FixedExtent>> ReadExtents(const std::string& path) {
  std::ifstream stream(path);
  if (!stream) return ErrnoError(errno, absl::StrCat("cannot open ", path));
  std::vector<FixedExtent> extents;
  std::string line;
  for (int number = 1; std::getline(stream, line); ++number) {
    std::string_view text = absl::StripAsciiWhitespace(line);
    if (text.empty() || text[0] == '#') continue;
    auto extent = ParseExtent(text);
    if (!extent.ok()) return Annotate(extent.status(), absl::StrCat(path, ":", number));
    if (extent->begin < extent->end) extents.push_back(*extent);
  }
  std::sort(extents.begin(), extents.end(),
            [](const FixedExtent& a, const FixedExtent& b) { return a.begin < b.begin; });
  for (size_t i = 1; i < extents.size(); ++i)
    if (extents[i].begin < extents[i - 1].end)
      return absl::InvalidArgumentError(
          absl::StrCat(path, ": extents overlap at ", extents[i].begin));
  return extents;
}

class ExtentListDevice final : public Filter {
 public:
  ExtentListDevice(DevicePtr below, const std::vector<FixedExtent>& extents)
      : Filter(below, MakeFacts(*below), /*passes_data=*/true), extents_(extents) {}

 protected:
  Task<absl::Status> DoExtents(const Call& call, std::string_view, ExtentList* list) override {
    auto next = std::upper_bound(extents_.begin(), extents_.end(), list->next(),
                                 [](uint64_t at, const FixedExtent& one) { return at < one.end; });
    while (!list->full()) {
      const uint64_t at = list->next();
      if (next == extents_.end()) {
        list->Append(list->end() - at, kExtentHoleZero);
      } else if (at < next->begin) {
        list->Append(next->begin - at, kExtentHoleZero);
      } else {
        list->Append(next->end - at, next->flags);
        ++next;
      }
      if (call.flags & kRequestOne) break;
    }
    return absl::OkStatus();
  }

 private:
  static Facts MakeFacts(const Device& below) {
    Facts facts = below.facts();
    facts.extents = true;
    facts.contexts = {std::string(kBaseAllocation)};
    return facts;
  }
  const std::vector<FixedExtent>& extents_;  // of the layer
};

class ExtentListLayer final : public FilterLayer {
 public:
  ExtentListLayer(LayerPtr below, ExtentListConfig config)
      : FilterLayer(std::move(below)), config_(std::move(config)) {}

  absl::Status Ready() override {
    BLK_ASSIGN_OR_RETURN(extents_, ReadExtents(config_.file));
    return absl::OkStatus();
  }

 protected:
  absl::StatusOr<DevicePtr> Wrap(DevicePtr device, const OpenArgs&) override {
    return std::make_shared<ExtentListDevice>(std::move(device), extents_);
  }

 private:
  const ExtentListConfig config_;
  std::vector<FixedExtent> extents_;
};

}  // namespace

const Spec& MapSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<MapConfig>("map", "move, swap or repeat ranges of the disk")
          .Param(
              "map", &MapConfig::maps,
              {.help = "what is seen at START to END, both included, is at DEST below; the first "
                       "that fits counts",
               .required = true})
          .Param("map-size", &MapConfig::size, {.help = "size of the disk that is seen"})
          .Example("map(map=0-4095:8192,map=8192-12287:0)+memory:64K", "two blocks change places")
          .Make([](MapConfig config, LayerPtr below) {
            return MakeWrapLayer(std::move(below), [config](DevicePtr device, const OpenArgs&) {
              return WrapMap(std::move(device), config);
            });
          }));
  return spec;
}

const Spec& ExtentListSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<ExtentListConfig>("extentlist", "tell holes from a text file")
          .Param("extentlist", &ExtentListConfig::file,
                 {.help = "a file with lines OFFSET [LENGTH [TYPE]], TYPE being hole, zero or "
                          "hole,zero",
                  .required = true,
                  .path = PathUse::kRead})
          .Description(
              "Lines may be in any order but must not overlap; what they leave out is a hole. The "
              "list does not change with what is written: serve it read-only.")
          .PrintedExample("extentlist(extentlist=holes.txt)+nbd://host/disk")
          .Make([](ExtentListConfig config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<ExtentListLayer>(std::move(below), std::move(config));
          }));
  return spec;
}

}  // namespace blk
