// `blk dump`: the bytes of a disk in hexadecimal; repeats fold to `*`, and holes cost nothing.
#include "src/tools/dump_text.h"
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

Task<absl::Status> Dump(Device* device, const DumpConfig* config) {
  const uint64_t size = device->size(), offset = config->offset.bytes;
  if (offset > size)
    co_return absl::OutOfRangeError(
        absl::StrCat("--offset=", offset, " is beyond the disk's ", size, " bytes"));
  const uint64_t end =
      offset + (config->length ? std::min(config->length->bytes, size - offset) : size - offset);
  DumpText text(end, /*never_folded=*/end, /*colour=*/false);
  WalkData take;
  take.take_data = [&text](uint64_t at, std::span<const char> bytes) {
    return text.Data(at, bytes);
  };
  take.take_zero = [&text](uint64_t at, uint64_t length) { return text.Zero(at, length); };
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
