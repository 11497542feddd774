// `blk map`: the extents of a disk, as nbdinfo --map prints them.
#include <cstdio>

#include "src/core/param_text.h"
#include "src/tools/inspect.h"
#include "src/tools/map_text.h"
#include "src/tools/walk.h"

namespace blk {
namespace {

struct MapConfig : CommonOptions {
  std::vector<std::string> contexts;
  bool json = false;
  bool totals = false;
  Size offset;
  std::optional<Size> length;
};

const ParamTable<MapConfig>& MapRows() {
  static const auto& table = *[] {
    auto* rows = new ParamTable<MapConfig>;
    using C = MapConfig;
    rows->Param("context", &C::contexts,
                {.help = "metadata context, base:allocation if none is named",
                 .letter = 'c',
                 .word = "NAME"})
        .Param("json", &C::json, {.help = "print JSON"})
        .Param("totals", &C::totals, {.help = "print the bytes of each type, not the extents"})
        .Param("offset", &C::offset, {.help = "begin here"})
        .Param("length", &C::length, {.help = "look at this many bytes"});
    return &AddCommonOptions(*rows);
  }();
  return table;
}

// A pipe that was closed is not an error of the disk.
absl::Status Print(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  return std::ferror(stdout) ? ErrnoError(EPIPE, "cannot write to standard output")
                             : absl::OkStatus();
}

Task<absl::Status> Map(Device* device, const MapConfig* config) {
  const uint64_t size = device->size();
  const uint64_t offset = config->offset.bytes;
  if (offset > size)
    co_return absl::OutOfRangeError(
        absl::StrCat("--offset=", offset, " is beyond the disk's ", size, " bytes"));
  const uint64_t length =
      config->length ? std::min(config->length->bytes, size - offset) : size - offset;
  std::vector<std::string> contexts = config->contexts;
  if (contexts.empty()) contexts.push_back(std::string(kBaseAllocation));
  const auto& known = device->facts().contexts;
  for (const std::string& context : contexts)
    if (std::find(known.begin(), known.end(), context) == known.end())
      co_return absl::NotFoundError(absl::StrCat("the disk has no metadata context \"", context,
                                                 "\"; `blk info` lists those it has"));
  const bool named = contexts.size() > 1;
  if (named && config->json) std::printf("{\n");
  for (size_t i = 0; i < contexts.size(); ++i) {
    if (named && config->json) std::printf("%s: ", JsonQuote(contexts[i]).c_str());
    if (named && !config->json) std::printf("%s\n", contexts[i].c_str());
    MapText text(contexts[i], {.json = config->json, .totals = config->totals});
    auto take = [&text](uint64_t at, uint64_t bytes, uint64_t flags) {
      text.Take(at, bytes, flags);
      return Print(text.TakeText());
    };
    BLK_CO_RETURN_IF_ERROR(
        co_await WalkExtents(device, contexts[i], offset, offset + length, take));
    text.Finish(length);
    BLK_CO_RETURN_IF_ERROR(Print(text.TakeText()));
    if (named && config->json && i + 1 < contexts.size()) std::printf(",\n");
  }
  if (named && config->json) std::printf("}\n");
  co_return absl::OkStatus();
}

int MapMain(std::span<const std::string> arguments) {
  MapConfig config;
  int exit_status = 0;
  auto words = ParseTool("map", MapRows(), &config, arguments, &exit_status, {.brackets = true});
  if (!words) return exit_status;
  Endpoint::Wish wish;
  wish.connections = 1;
  for (const std::string& context : config.contexts)
    if (context != kBaseAllocation) wish.contexts.push_back(context);
  return InspectDisk("map", *words, wish,
                     [&config](Device* device) { return Map(device, &config); });
}

}  // namespace

Tool MapTool() {
  return {
      .name = "map",
      .summary = "show which parts of a disk are data and which are holes",
      .synopsis = "[OPTIONS] DISK",
      .examples = {{"blk map nbd://localhost", "offset, length, type"},
                   {"blk map --totals disk.img", "how much of it is data"},
                   {"blk map --offset=1G --length=1M --json sparse-random:1T", "a part, as JSON"},
                   {"blk map -c qemu:dirty-bitmap:b0 nbd://localhost", "what a backup must copy"}},
      .rows = []() -> const ParamRows& { return MapRows(); },
      .run = MapMain};
}

}  // namespace blk
