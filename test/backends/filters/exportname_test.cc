#include <doctest/doctest.h>

#include "test/support/array_device.h"
#include "test/support/layers.h"

namespace blk {

const Spec& ExportNameSpec();

namespace {

using test::MakeFilter;
using test::OnLoop;
using test::OpenNow;

// Exports "one" (the default) and "two", each of its own size.
class TwoExports final : public Layer {
 public:
  Task<absl::StatusOr<ExportList>> ListExports(const OpenArgs&) override {
    return absl::StatusOr<ExportList>(ExportList{{{"one", "first"}, {"two", ""}}, "one"});
  }
  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    Facts facts = test::ArrayFacts(args.export_name == "two" ? 200 : 100);
    facts.description = "device " + args.export_name;
    return absl::StatusOr<DevicePtr>(std::make_shared<test::ArrayDevice>(facts));
  }
};

LayerPtr Make(const test::Words& words) {
  auto layer = MakeFilter(ExportNameSpec(), words, std::make_shared<TwoExports>());
  REQUIRE(layer.ok());
  return *layer;
}

Task<absl::StatusOr<ExportList>> ListOf(Layer* layer) {
  co_return co_await layer->ListExports(OpenArgs());
}

// "NAME=DESCRIPTION ... (DEFAULT)"
std::string Listed(const test::Words& words) {
  LayerPtr layer = Make(words);
  auto list = OnLoop(ListOf, layer.get());
  if (!list.ok()) return absl::StrCat("errno ", ErrnoOf(list.status()));
  std::string text;
  for (const ExportEntry& entry : list->exports)
    absl::StrAppend(&text, entry.name, "=", entry.description, " ");
  return absl::StrCat(text, "(", list->default_name, ")");
}

TEST_CASE("the list is kept, hidden, reduced or replaced") {
  CHECK(Listed({}) == "one=first two= (one)");
  CHECK(Listed({{"exportname-list", "keep"}, {"default-export", "two"}}) == "one=first two= (two)");
  CHECK(Listed({{"exportname-list", "error"}}) == absl::StrCat("errno ", EPERM));
  CHECK(Listed({{"exportname-list", "empty"}}) == "()");
  CHECK(Listed({{"exportname-list", "defaultonly"}}) == "one= (one)");
  CHECK(Listed({{"exportname-list", "defaultonly"}, {"default-export", "x"}}) == "x= (x)");
  CHECK(Listed({{"exportname-list", "explicit"}, {"exportname", "a"}, {"exportname", "b"}}) ==
        "a= b= ()");
}

TEST_CASE("descriptions are kept, dropped, fixed or printed by a script") {
  CHECK(Listed({{"exportdesc", "none"}}) == "one= two= (one)");
  CHECK(Listed({{"exportdesc", "fixed:it"}}) == "one=it two=it (one)");
  CHECK(Listed({{"exportdesc", "script:echo \"<$name>\"; echo more"}}) ==
        "one=<one>\nmore two=<two>\nmore (one)");
  CHECK(Listed({{"exportdesc", "script:echo half; exit 3"}}) == "one= two= (one)");
  CHECK_FALSE(
      MakeFilter(ExportNameSpec(), {{"exportdesc", "foo"}}, std::make_shared<TwoExports>()).ok());
  LayerPtr layer = Make({{"exportdesc", "fixed:it"}});
  CHECK((*OpenNow(layer))->facts().description == "it");
  CHECK((*OpenNow(Make({})))->facts().description == "device ");
}

OpenArgs Named(std::string name) {
  OpenArgs args;
  args.export_name = std::move(name);
  return args;
}

TEST_CASE("the default export is another one, and says so") {
  LayerPtr layer = Make({{"default-export", "two"}});
  auto device = OpenNow(layer);
  REQUIRE(device.ok());
  CHECK((*device)->size() == 200);
  CHECK((*device)->facts().export_name == "two");
  CHECK((*OpenNow(layer, Named("one")))->size() == 100);
  CHECK((*OpenNow(Make({{"default-export", ""}})))->size() == 100);
  CHECK((*OpenNow(Make({{"default-export", ""}})))->facts().export_name.empty());
}

TEST_CASE("strict: only what is named, the default included only when it is") {
  LayerPtr layer =
      Make({{"exportname-strict", "true"}, {"exportname", "two"}, {"default-export", "two"}});
  CHECK(ErrnoOf(OpenNow(layer).status()) == ENOENT);
  CHECK(ErrnoOf(OpenNow(layer, Named("one")).status()) == ENOENT);
  CHECK((*OpenNow(layer, Named("two")))->size() == 200);
  layer = Make({{"exportname-strict", "true"}, {"exportname", ""}, {"default-export", "two"}});
  CHECK((*OpenNow(layer))->size() == 200);
}

}  // namespace
}  // namespace blk
