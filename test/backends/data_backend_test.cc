// The data backend as a layer: its parameters, its real files and scripts, its device.
#include <cerrno>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "doctest/doctest.h"
#include "src/backends/registry.h"
#include "src/backends/stack.h"
#include "src/core/error.h"
#include "src/core/loop.h"

namespace blk {
namespace {

bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

absl::StatusOr<LayerPtr> MakeData(std::vector<std::string> words) {
  words.insert(words.begin(), "data");
  auto plan = PlanCommandLine(AllSpecs(), {}, words);
  if (!plan.ok()) return plan.status();
  return BuildStack(*std::move(plan));
}

std::string Error(std::vector<std::string> words) {
  auto layer = MakeData(std::move(words));
  return layer.ok() ? "accepted" : std::string(layer.status().message());
}

using Use = std::function<Task<absl::Status>(Device&)>;

Task<absl::Status> OpenAndUse(LayerPtr layer, const Use* use) {
  BLK_CO_ASSIGN_OR_RETURN(DevicePtr device, co_await layer->Open({}));
  BLK_CO_RETURN_IF_ERROR(co_await (*use)(*device));
  co_return co_await device->Close();
}

void WithDevice(std::vector<std::string> words, const Use& use) {
  auto layer = MakeData(std::move(words));
  REQUIRE_MESSAGE(layer.ok(), layer.status().message());
  LoopPool pool(1);
  const absl::Status status = pool.RunMain(OpenAndUse(*layer, &use));
  CHECK_MESSAGE(status.ok(), status.message());
}

Task<absl::Status> ReadAll(Device* device, std::string* bytes) {
  bytes->resize(device->size());
  const Call call;
  co_return co_await device->Read(call, 0, std::span(bytes->data(), bytes->size()));
}

std::string Bytes(std::vector<std::string> words) {
  std::string bytes;
  WithDevice(std::move(words), [&](Device& device) { return ReadAll(&device, &bytes); });
  return bytes;
}

Task<absl::Status> AskExtents(Device* device, ExtentList* list) {
  const Call call;
  while (!list->full()) {
    BLK_CO_RETURN_IF_ERROR(co_await device->Extents(call, kBaseAllocation, list));
  }
  co_return absl::OkStatus();
}

std::vector<Extent> Map(std::vector<std::string> words) {
  std::vector<Extent> extents;
  WithDevice(std::move(words), [&](Device& device) -> Task<absl::Status> {
    auto list = std::make_shared<ExtentList>(0, device.size());
    struct Step {
      static Task<absl::Status> Run(Device* device, std::shared_ptr<ExtentList> list,
                                    std::vector<Extent>* into) {
        BLK_CO_RETURN_IF_ERROR(co_await AskExtents(device, list.get()));
        *into = list->extents();
        co_return absl::OkStatus();
      }
    };
    return Step::Run(&device, std::move(list), &extents);
  });
  return extents;
}

TEST_CASE("data: the parameters") {
  CHECK(Bytes({"1 2 3"}) == "\x01\x02\x03");
  CHECK(Bytes({"data=\"a\"*3"}) == "aaa");
  CHECK(Bytes({"1 2 3", "size=2"}) == "\x01\x02");
  CHECK(Bytes({"1", "size=4"}) == std::string("\x01\0\0\0", 4));
  CHECK(Bytes({"raw=abc"}) == "abc");
  CHECK(Bytes({"base64=MTIz MTIz"}) == "123123");
  CHECK(Bytes({"$a*2", "a=0x41 $b", "b=66"}) == "ABAB");
  REQUIRE(setenv("blk_data_test", "67", 1) == 0);
  CHECK(Bytes({"$blk_data_test"}) == "C");
  CHECK(Bytes({"$blk_data_test", "blk_data_test=68"}) == "D");
  CHECK(Contains(Error({"size=10"}), "raw|base64|data parameter was not specified"));
  CHECK(Contains(Error({"1", "raw=1"}), "must be specified exactly once"));
  CHECK(Contains(Error({"raw=1", "x=1"}), "extra parameters passed and not using data="));
  CHECK(Contains(Error({"base64=*"}), "not base64"));
  CHECK(Contains(Error({"1", "alocator=zstd"}), "did you mean `allocator`"));
  CHECK(Contains(Error({"1", "allocator=nope"}), "nope"));
  CHECK(Error({"1", "unused=1"}) == "accepted");
  CHECK(Contains(Error({"1 @-2"}), "@-2 must not be larger than the current offset 1 at offset 2"));
}

TEST_CASE("data: holes are where nbdkit has them") {
  using Extents = std::vector<Extent>;
  CHECK((Map({" @32768 1 "}) == Extents{{32768, kExtentHoleZero}, {1, kExtentData}}));
  CHECK((Map({"@40000 1"}) == Extents{{32768, kExtentHoleZero}, {7233, kExtentData}}));
  CHECK((Map({"1 @40000", "size=33K"}) == Extents{{32768, kExtentData}, {1024, kExtentHoleZero}}));
  CHECK((Map({"1", "size=33K"}) == Extents{{32768, kExtentData}, {1024, kExtentHoleZero}}));
  CHECK((Map({"0*1M 1"}) == Extents{{1 << 20, kExtentHoleZero}, {1, kExtentData}}));
  CHECK((Map({"0*8"}) == Extents{{8, kExtentHoleZero}}));
}

TEST_CASE("data: every allocator holds the same, and takes writes") {
  for (const char* allocator : {"sparse", "malloc", "zstd", "dedup"}) {
    CAPTURE(allocator);
    std::string bytes;
    WithDevice({"(\"ab\" @40000)*3 @50 \"x\"*100K", absl::StrCat("allocator=", allocator)},
               [&](Device& device) {
                 struct Step {
                   static Task<absl::Status> Run(Device* device, std::string* bytes) {
                     const Call call;
                     const std::string_view text = "written";
                     BLK_CO_RETURN_IF_ERROR(
                         co_await device->Write(call, 1, std::span(text.data(), text.size())));
                     co_return co_await ReadAll(device, bytes);
                   }
                 };
                 return Step::Run(&device, &bytes);
               });
    std::string expected(120'000, '\0');
    for (int i = 0; i < 3; ++i) expected.replace(i * 40'000, 2, "ab");
    expected.replace(50, 100 << 10, std::string(100 << 10, 'x'));
    expected.replace(1, 7, "written");
    CHECK((bytes == expected));
  }
}

class Folder {
 public:
  Folder() {
    char name[] = "/tmp/blk-data-XXXXXX";
    path_ = mkdtemp(name);
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string Path(std::string_view name) const { return absl::StrCat(path_, "/", name); }
  std::string Write(std::string_view name, std::string_view content) const {
    std::ofstream(Path(name), std::ios::binary) << content;
    return Path(name);
  }

 private:
  std::string path_;
};

TEST_CASE("data: files") {
  Folder folder;
  const std::string file = folder.Write("file", "hello");
  CHECK(Bytes({absl::StrCat("<", file, "*2")}) == "hellohello");
  CHECK(Bytes({absl::StrCat("<", file, "[3:] <", file, "[:1] <", file, "[9:]")}) == "loh");
  const std::string random = Bytes({"</dev/urandom[:512]*16"});
  REQUIRE(random.size() == 8192);
  for (int i = 1; i < 16; ++i) CHECK(random.substr(i * 512, 512) == random.substr(0, 512));
  CHECK(random.substr(0, 256) != random.substr(256, 256));
  CHECK(Bytes({"</dev/zero[5:8]"}) == std::string(3, '\0'));
  auto layer = MakeData({"1 </nonexistent/nope"});
  CHECK(ErrnoOf(layer.status()) == ENOENT);
  CHECK(Contains(layer.status().message(), "/nonexistent/nope: cannot be opened"));
  CHECK(Contains(layer.status().message(), "at offset 2"));
  CHECK(ErrnoOf(MakeData({"</tmp"}).status()) == EISDIR);
  // A sparse file far larger than memory, of which only the end is wanted.
  const std::string large = folder.Write("large", "");
  std::filesystem::resize_file(large, uint64_t{1} << 40);
  CHECK(Bytes({absl::StrCat("<", large, "[1099511627770:]")}) == std::string(6, '\0'));
}

TEST_CASE("data: scripts") {
  Folder folder;
  CHECK(Bytes({"<(echo \"hi\")"}) == "hi\n");
  CHECK(Bytes({"<( while :; do printf \"%04x\" $((i++)); done ) [:2048]"}).substr(0, 12) ==
        "000000010002");
  CHECK(Bytes({"<(yes)", "size=4"}) == "y\ny\n");
  CHECK(Bytes({"<(printf ab; exit 3)[:2]"}) == "ab");
  const std::string error = Error({"1 <(echo one >&2; echo two >&2; exit 3)[:9]"});
  CHECK_MESSAGE(Contains(error, "exit status 3"), error);
  CHECK_MESSAGE(Contains(error, ": two at offset 2 near"), error);
  CHECK(Contains(Error({"<(kill -9 $$)"}), "SIGKILL"));
  // Used twice, run once.
  const std::string log = folder.Path("log");
  CHECK(Bytes({absl::StrCat("<(echo run >>", log, "; echo out) -> \\s \\s[:2] \\s")}) == "ouout\n");
  CHECK(std::filesystem::file_size(log) == 4);
  // Not needed, not run.
  CHECK(Bytes({absl::StrCat("<(echo run >>", log, ") -> \\s 1")}) == "\x01");
  CHECK(std::filesystem::file_size(log) == 4);
}

}  // namespace
}  // namespace blk
