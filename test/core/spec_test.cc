#include "src/core/spec.h"

#include <doctest/doctest.h>

namespace blk {
namespace {

struct FakeLayer : Layer {
  explicit FakeLayer(std::string what, LayerPtr over = nullptr)
      : text(std::move(what)), below(std::move(over)) {}
  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs) override {
    return absl::StatusOr<DevicePtr>(absl::UnimplementedError("a fake opens nothing"));
  }
  std::string text;
  LayerPtr below;
};

struct Config {
  Size size;
  std::string file;
  std::vector<std::string> part;
};

Spec Disk() {
  return BackendSpec<Config>("disk", "a disk of parts")
      .Param("size", &Config::size, {.help = "size of the disk", .required = true, .magic = true})
      .Param("file", &Config::file, {.help = "where it is", .path = PathUse::kReadWrite})
      .Param("part", &Config::part, {.help = "its parts", .path = PathUse::kRead})
      .Description("One paragraph.\n\nAnother.")
      .Example("disk:1M", "one megabyte")
      .PrintedExample("disk:1M(file=/dev/sda)")
      .Needs(Need::Kind::kTemporaryFile)
      .NeedsOf([](const Config& config) {
        std::vector<Need> needs;
        if (config.size.bytes > 1) needs.push_back({Need::Kind::kNetwork, "host"});
        return needs;
      })
      .Make([](Config config) -> absl::StatusOr<LayerPtr> {
        if (config.size.bytes == 0) return absl::InvalidArgumentError("disk: nothing to serve");
        return std::make_shared<FakeLayer>(absl::StrCat("disk ", config.size.bytes));
      });
}

Spec Shift() {
  struct ShiftConfig {
    Size by;
  };
  return FilterSpec<ShiftConfig>("shift", "moves")
      .Param("by", &ShiftConfig::by, {.help = "how far"})
      .Example("shift+disk:1M")
      .Make([](ShiftConfig config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
        return std::make_shared<FakeLayer>(absl::StrCat("shift ", config.by.bytes),
                                           std::move(below));
      });
}

TEST_CASE("a spec makes layers from configs") {
  Spec disk = Disk(), shift = Shift();
  std::shared_ptr<void> config = disk.NewConfig();
  ParamReader reader(disk.params(), config.get(), disk.name());
  REQUIRE(reader.GiveBare("1K").ok());
  absl::StatusOr<LayerPtr> layer = disk.MakeLayer(config.get(), {});
  REQUIRE(layer.ok());
  CHECK(dynamic_cast<FakeLayer&>(**layer).text == "disk 1024");

  std::shared_ptr<void> empty = disk.NewConfig();
  CHECK(disk.MakeLayer(empty.get(), {}).status().message() == "disk: nothing to serve");

  std::shared_ptr<void> over = shift.NewConfig();
  absl::StatusOr<LayerPtr> top = shift.MakeLayer(over.get(), {.below = *layer, .named = {}});
  REQUIRE(top.ok());
  CHECK(dynamic_cast<FakeLayer&>(**top).below == *layer);
}

TEST_CASE("a factory may ask for all children") {
  Spec spec =
      FilterSpec<NoConfig>("two", "x")
          .Make([](NoConfig, Children children) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<FakeLayer>(absl::StrCat(children.named.size()), children.below);
          });
  std::shared_ptr<void> config = spec.NewConfig();
  absl::StatusOr<LayerPtr> layer =
      spec.MakeLayer(config.get(), {.below = nullptr, .named = {{"backing", nullptr}}});
  CHECK(dynamic_cast<FakeLayer&>(**layer).text == "1");
}

TEST_CASE("needs follow from paths and declarations") {
  Spec disk = Disk();
  std::shared_ptr<void> config = disk.NewConfig();
  ParamReader reader(disk.params(), config.get(), "disk");
  REQUIRE(reader.Give("size", "2").ok());
  REQUIRE(reader.Give("part", "a").ok());
  REQUIRE(reader.Give("part", "b").ok());
  CHECK(disk.NeedsOf(config.get()) == std::vector<Need>{{Need::Kind::kTemporaryFile, ""},
                                                        {Need::Kind::kReadPath, "a"},
                                                        {Need::Kind::kReadPath, "b"},
                                                        {Need::Kind::kNetwork, "host"}});
  CHECK(NeedName(Need::Kind::kReadWritePath) == "read-write");
}

TEST_CASE("help of a spec") {
  CHECK(SpecHelp(Disk()) == R"(disk: a disk of parts

Usage: blk serve disk [size=]SIZE [file=PATH] [part=PATH ...]

One paragraph.

Another.

Parameters:
  [size=]SIZE               size of the disk (required)
  file=PATH                 where it is
  part=PATH                 its parts (may be repeated)

Examples, as any tool takes them:
  disk:1M
      one megabyte
  disk:1M(file=/dev/sda)
)");
  Spec shift = Shift(), disk = Disk();
  CHECK(SpecHelp(shift) == R"(shift: moves

Usage: blk serve --filter=shift BACKEND ... [by=SIZE]

Parameters:
  by=SIZE                   how far (default 0)

Examples, as any tool takes them:
  shift+disk:1M
)");
  CHECK(SpecList({&shift, &disk}) ==
        "Backends:\n  disk              a disk of parts\n\nFilters:\n  shift             moves\n");
  CHECK(SpecJson(shift) ==
        R"({"name":"shift","kind":"filter","summary":"moves","parameters":)"
        R"([{"name":"by","type":"size","help":"how far","default":"0"}],"takes_any_key":false,)"
        R"("examples":[{"spec":"shift+disk:1M"}]})");
}

}  // namespace
}  // namespace blk
