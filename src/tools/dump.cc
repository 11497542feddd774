// `blk dump`: the bytes of a disk in hexadecimal; repeats fold to `*`, and holes cost nothing.
#include <cstdio>
#include <cstring>

#include "src/tools/inspect.h"
#include "src/tools/walk.h"

namespace blk {
namespace {

struct DumpConfig : CommonOptions {
  Size offset;
  std::optional<Size> length;
};

const ParamTable<DumpConfig>& DumpRows() {
  static const auto& table = *[] {
    auto* rows = new ParamTable<DumpConfig>;
    using C = DumpConfig;
    rows->Param("offset", &C::offset, {.help = "begin here"})
        .Param("length", &C::length, {.help = "show this many bytes", .letter = 'n'});
    return &AddCommonOptions(*rows);
  }();
  return table;
}

constexpr size_t kLineBytes = 16;

// Lines of 16 bytes from a stream of pieces. A line equal to the one before is shown as a single
// `*`; the last line is always shown.
class DumpPrinter {
 public:
  explicit DumpPrinter(uint64_t end) : end_(end) {}

  absl::Status Data(uint64_t offset, std::span<const char> bytes) {
    while (!bytes.empty()) {
      if (filled_ == 0) line_offset_ = offset;
      size_t step = std::min(kLineBytes - filled_, bytes.size());
      std::memcpy(line_ + filled_, bytes.data(), step);
      filled_ += step;
      offset += step;
      bytes = bytes.subspan(step);
      if (filled_ == kLineBytes || offset == end_) Line();
    }
    return std::ferror(stdout) ? ErrnoError(EPIPE, "cannot write to standard output")
                               : absl::OkStatus();
  }

  absl::Status Zero(uint64_t offset, uint64_t length) {
    constexpr char kZeroes[4 * kLineBytes] = {};
    // The ends of the run as data; the whole lines between them are equal to their neighbours.
    uint64_t head = std::min<uint64_t>(length, 2 * kLineBytes);
    BLK_RETURN_IF_ERROR(Data(offset, {kZeroes, head}));
    uint64_t left = length - head;
    uint64_t skipped =
        left > 2 * kLineBytes ? (left - 2 * kLineBytes) / kLineBytes * kLineBytes : 0;
    if (skipped > 0) line_offset_ += skipped;
    return left ? Data(offset + head + skipped, {kZeroes, left - skipped}) : absl::OkStatus();
  }

 private:
  void Line() {
    bool last = line_offset_ + filled_ == end_;
    bool repeated =
        has_previous_ && filled_ == kLineBytes && std::memcmp(line_, previous_, kLineBytes) == 0;
    if (repeated && !last) {
      if (!folded_) std::printf("*\n");
      folded_ = true;
    } else {
      Print();
      folded_ = false;
    }
    std::memcpy(previous_, line_, kLineBytes);
    has_previous_ = filled_ == kLineBytes;
    filled_ = 0;
  }

  void Print() const {
    char text[128];
    int at = std::snprintf(text, sizeof text, "%010jx: ", uintmax_t{line_offset_});
    for (size_t i = 0; i < kLineBytes; ++i) {
      if (i < filled_) {
        at += std::snprintf(text + at, sizeof text - at, "%02x ",
                            static_cast<unsigned char>(line_[i]));
      } else {
        at += std::snprintf(text + at, sizeof text - at, "   ");
      }
      if (i == 7) text[at++] = ' ';
    }
    text[at++] = '|';
    for (size_t i = 0; i < filled_; ++i)
      text[at++] = line_[i] >= 32 && line_[i] < 127 ? line_[i] : '.';
    text[at++] = '|';
    text[at++] = '\n';
    std::fwrite(text, 1, at, stdout);
  }

  const uint64_t end_;
  char line_[kLineBytes], previous_[kLineBytes];
  size_t filled_ = 0;
  uint64_t line_offset_ = 0;
  bool has_previous_ = false, folded_ = false;
};

Task<absl::Status> Dump(Device* device, const DumpConfig* config) {
  const uint64_t size = device->size(), offset = config->offset.bytes;
  if (offset > size)
    co_return absl::OutOfRangeError(
        absl::StrCat("--offset=", offset, " is beyond the disk's ", size, " bytes"));
  const uint64_t end =
      offset + (config->length ? std::min(config->length->bytes, size - offset) : size - offset);
  DumpPrinter printer(end);
  WalkData take;
  take.take_data = [&printer](uint64_t at, std::span<const char> bytes) {
    return printer.Data(at, bytes);
  };
  take.take_zero = [&printer](uint64_t at, uint64_t length) { return printer.Zero(at, length); };
  co_return co_await WalkContent(device, offset, end, std::move(take));
}

int DumpMain(std::span<const std::string> arguments) {
  DumpConfig config;
  int exit_status = 0;
  auto words = ParseTool("dump", DumpRows(), &config, arguments, &exit_status, {.brackets = true});
  if (!words) return exit_status;
  return InspectDisk("dump", *words, {},
                     [&config](Device* device) { return Dump(device, &config); });
}

}  // namespace

Tool DumpTool() {
  return {
      .name = "dump",
      .summary = "show the bytes of a disk in hexadecimal",
      .synopsis = "[OPTIONS] DISK",
      .examples = {{"blk dump nbd://localhost | less", "all of it; holes and repeats are folded"},
                   {"blk dump --offset=512 -n 1K disk.img", "two sectors"}},
      .rows = []() -> const ParamRows& { return DumpRows(); },
      .run = DumpMain};
}

}  // namespace blk
