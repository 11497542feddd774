#include "src/backends/script/parse.h"

#include <bit>
#include <cerrno>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "src/core/units.h"

namespace blk::script {
namespace {

constexpr size_t kQuotedBytesMax = 100;

absl::Status Unexpected(std::string_view expected, std::string_view text) {
  std::string quoted = absl::CHexEscape(text.substr(0, kQuotedBytesMax));
  if (text.size() > kQuotedBytesMax) quoted += "...";
  return ErrnoErrorAsIs(EINVAL,
                        absl::StrCat("it should print ", expected, ", not \"", quoted, "\""));
}

std::vector<std::string_view> Lines(std::string_view text) {
  std::vector<std::string_view> lines = absl::StrSplit(text, '\n');
  if (!lines.empty() && lines.back().empty()) lines.pop_back();  // the end of the last line
  return lines;
}

std::vector<std::string_view> Words(std::string_view text) {
  return absl::StrSplit(text, absl::ByAnyChar(" \t\r\n"), absl::SkipEmpty());
}

absl::StatusOr<uint64_t> ReadExtentType(std::string_view text) {
  if (auto number = ParseUnsigned(text, 0, kExtentHoleZero); number.ok()) return number;
  uint64_t flags = 0;
  for (std::string_view word : absl::StrSplit(text, ',')) {
    if (word == "hole") {
      flags |= kExtentHole;
    } else if (word == "zero") {
      flags |= kExtentZero;
    } else {
      return Unexpected("hole, zero or hole,zero as the type of an extent", text);
    }
  }
  return flags;
}

absl::Status CheckBlockSizes(const BlockSizes& sizes, std::string_view text) {
  constexpr uint32_t kMinimumMax = 64 << 10, kPreferredMin = 512, kPreferredMax = 32 << 20;
  const auto& [minimum, preferred, maximum] = sizes;
  if (!std::has_single_bit(minimum) || minimum > kMinimumMax)
    return Unexpected("a power of two up to 64K as the minimum block size", text);
  if (!std::has_single_bit(preferred) || preferred < std::max(kPreferredMin, minimum) ||
      preferred > kPreferredMax)
    return Unexpected(
        "a power of two from 512 (and the minimum) to 32M as the preferred block size", text);
  if (maximum < preferred || (maximum != UINT32_MAX && maximum % minimum != 0))
    return Unexpected(
        "a multiple of the minimum, not below the preferred, as the maximum block size", text);
  return absl::OkStatus();
}

}  // namespace

std::string_view WithoutNewline(std::string_view text) {
  if (!text.empty() && text.back() == '\n') text.remove_suffix(1);
  return text;
}

absl::StatusOr<uint64_t> ReadSize(std::string_view text) {
  auto size = ParseSize(absl::StripAsciiWhitespace(text));
  if (!size.ok()) return Unexpected("the size of the disk", text);
  return size->bytes;
}

absl::StatusOr<std::optional<BlockSizes>> ReadBlockSizes(std::string_view text) {
  std::vector<std::string_view> words = Words(text);
  if (words.size() != 3) return Unexpected("three block sizes", text);
  uint64_t values[3];
  for (int i = 0; i < 3; ++i) {
    auto size = words[i] == "-1" ? Size{UINT32_MAX} : ParseSize(words[i]);
    if (!size.ok() || size->bytes > UINT32_MAX) return Unexpected("three block sizes", text);
    values[i] = size->bytes;
  }
  if (values[0] == 0 && values[1] == 0 && values[2] == 0) return std::nullopt;
  BlockSizes sizes{static_cast<uint32_t>(values[0]), static_cast<uint32_t>(values[1]),
                   static_cast<uint32_t>(values[2])};
  BLK_RETURN_IF_ERROR(CheckBlockSizes(sizes, text));
  sizes.maximum = std::min(sizes.maximum, limits::kRequestBytesMax);
  return sizes;
}

absl::StatusOr<Support> ReadSupport(std::string_view text) {
  std::string_view word = absl::StripAsciiWhitespace(text);
  if (word == "none") return Support::kNone;
  if (word == "emulate") return Support::kEmulate;
  if (word == "native") return Support::kNative;
  return Unexpected("none, emulate or native", text);
}

absl::StatusOr<ThreadModel> ReadThreadModel(std::string_view text) {
  std::string_view word = absl::StripAsciiWhitespace(text);
  if (word == "serialize_connections") return ThreadModel::kSerializeConnections;
  if (word == "serialize_all_requests") return ThreadModel::kSerializeAllRequests;
  if (word == "serialize_requests") return ThreadModel::kSerializeRequests;
  if (word == "parallel") return ThreadModel::kParallel;
  return Unexpected("a thread model (serialize_all_requests ...)", text);
}

absl::StatusOr<std::vector<ExportEntry>> ReadExports(std::string_view text) {
  std::vector<std::string_view> lines = Lines(text);
  std::string_view mode = lines.empty() ? "" : lines[0];
  const bool pairs = mode == "INTERLEAVED", halves = mode == "NAMES+DESCRIPTIONS";
  if (pairs || halves || mode == "NAMES") lines.erase(lines.begin());
  std::vector<ExportEntry> exports;
  if (!pairs && !halves) {
    for (std::string_view line : lines) exports.push_back({std::string(line), ""});
    return exports;
  }
  if (lines.size() % 2 != 0) lines.push_back("");  // the last description may be left out
  const size_t count = lines.size() / 2;
  for (size_t i = 0; i < count; ++i) {
    exports.push_back(
        {std::string(lines[pairs ? 2 * i : i]), std::string(lines[pairs ? 2 * i + 1 : count + i])});
  }
  return exports;
}

absl::Status ReadExtents(std::string_view text, ExtentList* list) {
  std::optional<uint64_t> next;
  for (std::string_view line : Lines(text)) {
    std::vector<std::string_view> words = Words(line);
    if (words.empty()) continue;
    if (words.size() > 3 || words.size() < 2)
      return Unexpected("lines of offset, length, type", line);
    auto offset = ParseSize(words[0]), length = ParseSize(words[1]);
    if (!offset.ok() || !length.ok() || length->bytes > limits::kDiskBytesMax - offset->bytes)
      return Unexpected("the offset and length of an extent", line);
    absl::StatusOr<uint64_t> type = uint64_t{0};
    if (words.size() == 3) type = ReadExtentType(words[2]);
    if (!type.ok()) return type.status();
    if (next && *next != offset->bytes)
      return Unexpected(absl::StrCat("an extent that follows the last, at ", *next), line);
    next = offset->bytes + length->bytes;
    if (offset->bytes > list->next() && !list->full())
      return Unexpected(absl::StrCat("an extent that begins by ", list->next()), line);
    if (*next > list->reach()) list->Append(*next - list->reach(), *type);
  }
  if (list->empty())
    return Unexpected(absl::StrCat("at least one extent beyond offset ", list->next()), text);
  return absl::OkStatus();
}

}  // namespace blk::script
