#include "src/backends/stack.h"

#include <doctest/doctest.h>

#include "absl/strings/str_join.h"
#include "src/core/error.h"

namespace blk {
namespace {

// What the fakes do, in order.
std::vector<std::string>& Events() {
  static auto& events = *new std::vector<std::string>();
  return events;
}

class FakeLayer : public Layer {
 public:
  FakeLayer(std::string text, LayerPtr below, ThreadModel model = ThreadModel::kParallel)
      : text_(std::move(text)), below_(std::move(below)), model_(model) {
    Events().push_back("make " + text_);
  }
  absl::Status Ready() override {
    Events().push_back("ready " + text_);
    if (text_ == "disk:13") return ErrnoErrorAsIs(ENOENT, "unlucky");
    return absl::OkStatus();
  }
  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs) override {
    return absl::StatusOr<DevicePtr>(absl::UnimplementedError("a fake opens nothing"));
  }
  ThreadModel thread_model() override { return model_; }

 private:
  std::string text_;
  LayerPtr below_;
  ThreadModel model_;
};

struct DiskConfig {
  Size size;
  uint64_t seed = 0;
  bool serial = false;
};
Spec Disk() {
  return BackendSpec<DiskConfig>("disk", "fake disk")
      .Param("size", &DiskConfig::size, {.help = "size", .required = true, .magic = true})
      .Param("seed", &DiskConfig::seed, {.help = "seed"})
      .Param("serial", &DiskConfig::serial, {.help = "one request at a time"})
      .Example("disk:1M")
      .Make([](DiskConfig config) -> absl::StatusOr<LayerPtr> {
        if (config.size.bytes == 0) return absl::InvalidArgumentError("an empty disk");
        return std::make_shared<FakeLayer>(
            absl::StrCat("disk:", config.size.bytes), nullptr,
            config.serial ? ThreadModel::kSerializeRequests : ThreadModel::kParallel);
      });
}

struct FileConfig {
  std::string file;
};
Spec File() {
  return BackendSpec<FileConfig>("file", "fake file")
      .Param("file", &FileConfig::file,
             {.help = "path", .required = true, .magic = true, .path = PathUse::kReadWrite})
      .Example("./x")
      .Make([](FileConfig config) -> absl::StatusOr<LayerPtr> {
        return std::make_shared<FakeLayer>("file:" + config.file, nullptr);
      });
}

struct ScriptConfig {
  std::string script;
  std::vector<std::pair<std::string, std::string>> others;
};
Spec Script() {
  return BackendSpec<ScriptConfig>("sh", "fake script")
      .Param("script", &ScriptConfig::script, {.help = "program", .magic = true})
      .AnyKey(&ScriptConfig::others, "passed on")
      .Make([](ScriptConfig config) -> absl::StatusOr<LayerPtr> {
        auto pair = [](std::string* out, const auto& other) {
          absl::StrAppend(out, other.first, "=", other.second);
        };
        return std::make_shared<FakeLayer>(
            absl::StrCat("sh:", config.script, ":", absl::StrJoin(config.others, ",", pair)),
            nullptr);
      });
}

struct ShiftConfig {
  std::optional<Size> offset;
  std::optional<Size> range;
};
Spec Shift() {
  return FilterSpec<ShiftConfig>("shift", "fake offset")
      .Param("offset", &ShiftConfig::offset, {.help = "start"})
      .Param("range", &ShiftConfig::range, {.help = "length"})
      .Example("shift+disk:1M")
      .Make([](ShiftConfig config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
        return std::make_shared<FakeLayer>(
            absl::StrCat("shift:", config.offset ? config.offset->bytes : 0), std::move(below));
      });
}

Spec Log() {
  return FilterSpec<NoConfig>("log", "fake log")
      .Needs(Need::Kind::kCreatePath, "/var/log/blk")
      .Make([](NoConfig, LayerPtr below) -> absl::StatusOr<LayerPtr> {
        return std::make_shared<FakeLayer>("log", std::move(below));
      });
}

template <Spec (*kMake)()>
const Spec& Made() {
  static const Spec& spec = *new Spec(kMake());
  return spec;
}

const Registry& Fakes() {
  using enum Spec::Kind;
  static const auto& registry = *new Registry({{kBackend, "disk", Made<Disk>},
                                               {kBackend, "file", Made<File>},
                                               {kBackend, "sh", Made<Script>},
                                               {kFilter, "shift", Made<Shift>},
                                               {kFilter, "log", Made<Log>}});
  return registry;
}

std::string Built(absl::StatusOr<StackPlan> plan) {
  if (!plan.ok()) return std::string(plan.status().message());
  Events().clear();
  absl::StatusOr<LayerPtr> layer = BuildStack(*std::move(plan));
  return layer.ok() ? absl::StrJoin(Events(), ", ") : std::string(layer.status().message());
}
std::string FromSpec(std::string_view text) { return Built(PlanSpec(Fakes(), text)); }
std::string FromWords(std::vector<std::string> filters, std::vector<std::string> words) {
  return Built(PlanCommandLine(Fakes(), filters, words));
}

TEST_CASE("the registry finds by name and kind") {
  CHECK(Fakes().FindBackend("disk")->summary() == "fake disk");
  CHECK(Fakes().FindBackend("shift") == nullptr);
  CHECK(Fakes().FindFilter("shift") != nullptr);
  CHECK(Fakes().FindFilter("disk") == nullptr);
  CHECK(Fakes().Names(Spec::Kind::kFilter) == std::vector<std::string_view>{"shift", "log"});
}

TEST_CASE("every spec of this build has an example and a summary without a full stop") {
  for (const Spec* spec : AllSpecs().specs()) {
    CAPTURE(spec->name());
    CHECK_FALSE(spec->examples().empty());
    CHECK_FALSE(spec->summary().empty());
    CHECK(spec->summary().back() != '.');
    for (const Example& example : spec->examples()) {
      CAPTURE(example.spec);
      CHECK(ParseInlineSpec(example.spec).ok());
    }
  }
}

TEST_CASE("layers are made and made ready from the inside out") {
  CHECK(FromSpec("log+shift(offset=1K)+disk:1M") ==
        "make disk:1048576, make shift:1024, make log, ready disk:1048576, ready shift:1024, ready "
        "log");
  CHECK(FromWords({"log", "shift"}, {"disk", "1M", "offset=1K"}) ==
        "make disk:1048576, make shift:1024, make log, ready disk:1048576, ready shift:1024, ready "
        "log");
  CHECK(FromWords({}, {"disk", "size=1"}) == "make disk:1, ready disk:1");
}

TEST_CASE("paths, URIs and whole specs as the first word") {
  CHECK(FromSpec("disk.img") == "make file:disk.img, ready file:disk.img");
  CHECK(FromWords({"log"}, {"shift(offset=2)+./x"}) ==
        "make file:./x, make shift:2, make log, ready file:./x, ready shift:2, ready log");
  CHECK(FromWords({}, {"shift+disk:4", "offset=3"}) ==
        "make disk:4, make shift:3, ready disk:4, ready shift:3");
  CHECK(FromSpec("https://h/x") == "https://h/x: this build has no backend `curl`");
  CHECK(PlanSpec(Fakes(), "/x")->path == "/x");
  CHECK(PlanSpec(Fakes(), "file:/x")->form == InlineSpec::Form::kName);
}

TEST_CASE("a key goes to the outermost layer that can take it") {
  CHECK(FromWords({"shift", "shift"}, {"disk", "9", "offset=1", "offset=2"}) ==
        "make disk:9, make shift:2, make shift:1, ready disk:9, ready shift:2, ready shift:1");
  CHECK(FromWords({"shift"}, {"disk", "9", "offset=1", "offset=2"}) ==
        "shift: parameter `offset` is given twice: \"1\", then \"2\"");
  CHECK(FromWords({"shift"}, {"sh", "./s", "offset=1", "offset=2", "key=x"}) ==
        "shift: parameter `offset` is given twice: \"1\", then \"2\"");
  CHECK(FromWords({"shift"}, {"sh", "./s", "offset=1", "key=x", "key=y"}) ==
        "make sh:./s:key=x,key=y, make shift:1, ready sh:./s:key=x,key=y, ready shift:1");
  CHECK(FromSpec("shift(seed=1)+disk:1") ==
        "shift: unknown parameter `seed`; it takes offset, range");
}

TEST_CASE("unknown names have suggestions, and never become files") {
  CHECK(FromSpec("dsik:1M") ==
        "unknown backend `dsik`, did you mean `disk`? For a file write ./dsik:1M");
  CHECK(FromSpec("dsik") == "unknown backend `dsik`, did you mean `disk`? For a file write ./dsik");
  CHECK(FromSpec("qwerty") ==
        "unknown backend `qwerty`; `blk list` shows those there are; for a file write ./qwerty");
  CHECK(FromWords({}, {"dsik", "1M"}) ==
        "unknown backend `dsik`, did you mean `disk`? For a file write ./dsik");
  CHECK(FromSpec("shfit+disk:1") == "unknown filter `shfit`, did you mean `shift`?");
  CHECK(FromWords({"qwerty"}, {"disk", "1"}) ==
        "unknown filter `qwerty`; `blk list` shows those there are");
  CHECK(FromWords({"disk"}, {"disk", "1"}) ==
        "`disk` is a backend, not a filter: nothing can be below it");
  CHECK(FromSpec("shift") ==
        "`shift` is a filter, not a backend: put it before one, as in shift+./disk.img");
  CHECK(FromWords({}, {}) == "no backend was given; `blk list` shows those there are");
}

TEST_CASE("unknown parameters name the whole stack") {
  CHECK(FromWords({}, {"disk", "1", "sede=1"}) ==
        "disk: unknown parameter `sede`, did you mean `seed`?");
  CHECK(FromWords({"shift"}, {"disk", "1", "ofset=1"}) ==
        "shift+disk: unknown parameter `ofset`, did you mean `offset`?");
  CHECK(FromWords({"log", "shift"}, {"disk", "1", "colour=1"}) ==
        "log+shift+disk: unknown parameter `colour`: log takes none; shift takes offset, range; "
        "disk takes size, seed, "
        "serial");
  CHECK(
      FromWords({}, {"file", "a=b.img"}) ==
      "file: unknown parameter `a`; it takes file; if \"a=b.img\" is a value, write file=a=b.img");
  CHECK(FromWords({}, {"disk"}) ==
        "disk: parameter `size` is missing: give size=SIZE or just SIZE");
}

TEST_CASE("a layer's own error gets its name once, and keeps its errno") {
  CHECK(FromSpec("disk:0") == "disk: an empty disk");
  CHECK(FromSpec("log+disk:13") == "disk: unlucky");
  CHECK(ErrnoOf(MakeStack(Fakes(), "log+disk:13").status()) == ENOENT);
}

TEST_CASE("needs of all layers") {
  absl::StatusOr<StackPlan> plan = PlanSpec(Fakes(), "log+./x");
  REQUIRE(plan.ok());
  CHECK(plan->Needs() == std::vector<Need>{{Need::Kind::kCreatePath, "/var/log/blk"},
                                           {Need::Kind::kReadWritePath, "./x"}});
  CHECK(
      plan->Needs(/*read_only=*/true) ==
      std::vector<Need>{{Need::Kind::kCreatePath, "/var/log/blk"}, {Need::Kind::kReadPath, "./x"}});
  CHECK(plan->Name() == "log+file");
}

TEST_CASE("a stack that is not parallel is guarded at its top") {
  absl::StatusOr<LayerPtr> parallel = MakeStack(Fakes(), "disk:1");
  absl::StatusOr<LayerPtr> serial = MakeStack(Fakes(), "disk:1(serial=true)");
  REQUIRE((parallel.ok() && serial.ok()));
  CHECK(dynamic_cast<FakeLayer*>(parallel->get()) != nullptr);
  CHECK(dynamic_cast<FakeLayer*>(serial->get()) == nullptr);
  CHECK((*serial)->thread_model() == ThreadModel::kParallel);
}

}  // namespace
}  // namespace blk
