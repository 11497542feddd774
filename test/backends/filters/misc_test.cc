// tar, checkwrite, cacheextents, openonce, exitlast, exitwhen, time-limit, pause, ddrescue.
#include <doctest/doctest.h>
#include <unistd.h>

#include <cstring>

#include "src/backends/filters/tar_index.h"
#include "src/core/scope.h"
#include "src/core/stream.h"
#include "test/backends/try_device.h"
#include "test/support/array_device.h"
#include "test/support/layers.h"
#include "test/temporary.h"

namespace blk {

const Spec& CacheExtentsSpec();
const Spec& CheckWriteSpec();
const Spec& DdrescueSpec();
const Spec& ExitLastSpec();
const Spec& ExitWhenSpec();
const Spec& OpenOnceSpec();
const Spec& PauseSpec();
const Spec& TarSpec();
const Spec& TimeLimitSpec();

namespace {

using test::ArrayDevice;
using test::ArrayOf;
using test::MakeFilter;
using test::OnLoop;
using test::OpenFilter;
using test::OpenNow;

Task<absl::Status> ReadText(Device* device, uint64_t offset, std::string* text) {
  co_return co_await device->Read({}, offset, *text);
}
Task<absl::Status> WriteText(Device* device, uint64_t offset, std::string text) {
  co_return co_await device->Write({}, offset, text);
}
Task<absl::Status> ZeroRange(Device* device, uint64_t offset, uint64_t length) {
  co_return co_await device->Zero({}, offset, length);
}
Task<absl::Status> TrimRange(Device* device, uint64_t offset, uint64_t length) {
  co_return co_await device->Trim({}, offset, length);
}
Task<absl::Status> CloseOne(Device* device) { co_return co_await device->Close(); }
Task<absl::Status> StopLayer(Layer* layer) { co_return co_await layer->Stop(); }

std::string Content(Device* device) {
  std::string text(device->size(), '?');
  absl::Status status = OnLoop(ReadText, device, uint64_t{0}, &text);
  return status.ok() ? text : std::string(status.message());
}

// ---- tar

std::string Octal(uint64_t value, int digits) {
  std::string text(digits, '0');
  for (int i = digits; i-- > 0; value >>= 3) text[i] = static_cast<char>('0' + (value & 7));
  return text + '\0';
}

// A header and its data in whole blocks.
std::string Entry(const std::string& name, char type, const std::string& data,
                  const std::string& prefix = "", bool binary_size = false) {
  std::string block(512, '\0');
  block.replace(0, name.size(), name);
  std::string size = Octal(data.size(), 11);
  if (binary_size) {
    size.assign(12, '\0');
    size[0] = static_cast<char>(0x80);
    size[10] = static_cast<char>(data.size() >> 8);
    size[11] = static_cast<char>(data.size());
  }
  block.replace(124, 12, size);
  block[156] = type;
  block.replace(257, 8,
                std::string("ustar\0"
                            "00",
                            8));
  block.replace(345, prefix.size(), prefix);
  block.replace(148, 8, "        ");
  uint64_t sum = 0;
  for (char c : block) sum += static_cast<uint8_t>(c);
  block.replace(148, 8, Octal(sum, 6) + " ");
  std::string padded = data;
  padded.resize((data.size() + 511) / 512 * 512);
  return block + padded;
}
std::string PaxRecord(const std::string& pair) {
  for (size_t length = pair.size() + 3;; ++length)
    if (std::string text = std::to_string(length) + " " + pair + "\n"; text.size() == length)
      return text;
}
const std::string kTarEnd(1024, '\0');

std::string TarContent(const std::string& archive, const std::string& name,
                       test::Words words = {}) {
  words.emplace_back("tar-entry", name);
  auto device = OpenFilter(TarSpec(), words, ArrayOf(archive));
  return device.ok() ? Content(device->get()) : absl::StrCat("errno ", ErrnoOf(device.status()));
}
const std::string kNone = absl::StrCat("errno ", ENOENT), kBad = absl::StrCat("errno ", EINVAL);

TEST_CASE("tar finds files by all the ways to write names and sizes") {
  const std::string long_name(300, 'n');
  const std::string archive =
      Entry("dir/", '5', "") + Entry("empty", '0', "") + Entry("small", '0', "abc") +
      Entry("old", '\0', std::string(512, 'o')) + Entry("file", '0', "deep", "a/b") +
      Entry("big", '0', std::string(700, 'b'), "", true) +
      Entry("././@LongLink", 'L', long_name + '\0') + Entry(long_name.substr(0, 100), '0', "long") +
      Entry("pax", 'x', PaxRecord("path=p\xc3\xa4x/name") + PaxRecord("size=3")) +
      Entry("short", '0', "pax") + Entry("link", '2', "") + Entry("last", '0', "end") + kTarEnd +
      Entry("hidden", '0', "x");
  CHECK(TarContent(archive, "empty") == "");
  CHECK(TarContent(archive, "small") == "abc");
  CHECK(TarContent(archive, "old") == std::string(512, 'o'));
  CHECK(TarContent(archive, "a/b/file") == "deep");
  CHECK(TarContent(archive, "big") == std::string(700, 'b'));
  CHECK(TarContent(archive, long_name) == "long");
  CHECK(TarContent(archive, long_name.substr(0, 100)) == kNone);
  CHECK(TarContent(archive, "p\xc3\xa4x/name") == "pax");
  CHECK(TarContent(archive, "last") == "end");
  CHECK(TarContent(archive, "hidden") == kNone);
  CHECK(TarContent(archive, "SMALL") == kNone);
  CHECK(TarContent(archive, "dir/") == kBad);
  CHECK(TarContent(archive, "link") == kBad);
  CHECK(TarContent(archive, "old", {{"tar-limit", "2K"}}) == "errno 2");
  CHECK(TarContent(archive, "small", {{"tar-limit", "2K"}}) == "abc");
}

TEST_CASE("tar refuses sparse members, and what is damaged or none") {
  CHECK(TarContent(Entry("s", 'S', "x") + kTarEnd, "s") == kBad);
  CHECK(TarContent(
            Entry("s", 'x', PaxRecord("GNU.sparse.major=1") + PaxRecord("GNU.sparse.name=real")) +
                Entry("GNUSparseFile.1/real", '0', "x") + kTarEnd,
            "real") == kBad);
  CHECK(TarContent(std::string(2000, 'x'), "a") == kBad);
  CHECK(TarContent("", "a") == kNone);
  std::string cut = Entry("a", '0', std::string(600, 'x'));
  cut.resize(1000);
  CHECK(TarContent(cut, "a") == kBad);
  std::string damaged = Entry("a", '0', "x");
  damaged[0] = 'b';
  CHECK(TarContent(damaged, "b") == kBad);
  for (std::string records : {"x", "99 a=b\n", "5 a=b", "0 a=b\n", " "})
    CHECK(TarContent(Entry("p", 'x', records) + Entry("a", '0', "x"), "a") == kBad);
  CHECK_FALSE(MakeFilter(TarSpec(), {}, ArrayOf("")).ok());
}

TEST_CASE("a file in a tar archive is written in place") {
  auto array = ArrayOf(Entry("a", '0', "aaa") + Entry("b", '0', std::string(2000, 'b')) + kTarEnd);
  const std::string before = array->bytes;
  auto device = OpenFilter(TarSpec(), {{"tar-entry", "b"}}, array);
  REQUIRE(device.ok());
  CHECK(OnLoop(RandomOperations, device->get(), 2).message() == "");
  CHECK(array->bytes.substr(0, 1536) == before.substr(0, 1536));
  CHECK(array->bytes.substr(3536) == before.substr(3536));
}

// ---- checkwrite

TEST_CASE("checkwrite lets only what is there be written, and writes nothing") {
  auto array = ArrayOf(std::string(5000, 'c') + std::string(5000, '\0'));
  array->holes[9000] = true;
  const std::string before = array->bytes;
  auto below = std::make_shared<test::DeviceLayer>(array);
  auto layer = MakeFilter(CheckWriteSpec(), {}, below);
  auto device = OpenNow(*layer);
  CHECK(below->opened[0].read_only);
  CHECK_FALSE((*device)->facts().read_only);
  CHECK(OnLoop(WriteText, device->get(), uint64_t{10}, std::string(100, 'c')).ok());
  CHECK(ErrnoOf(OnLoop(WriteText, device->get(), uint64_t{4999}, std::string("cc"))) == EIO);
  CHECK(OnLoop(ZeroRange, device->get(), uint64_t{5000}, uint64_t{5000}).ok());
  CHECK(ErrnoOf(OnLoop(ZeroRange, device->get(), uint64_t{4999}, uint64_t{10})) == EIO);
  CHECK(ErrnoOf(OnLoop(TrimRange, device->get(), uint64_t{0}, uint64_t{1})) == EIO);
  CHECK(array->bytes == before);
}

// ---- cacheextents

class CountingArray final : public ArrayDevice {
 public:
  using ArrayDevice::ArrayDevice;
  int asked = 0;

 protected:
  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override {
    ++asked;
    return ArrayDevice::DoExtents(call, context, list);
  }
};

// Each extent by a question of its own, as qemu-img asks.
Task<std::vector<Extent>> OneByOne(Device* device) {
  ExtentList all(0, device->size());
  while (!all.full()) {
    ExtentList one(all.next(), device->size() - all.next());
    BLK_CHECK((co_await device->Extents(Call().With(kRequestOne), kBaseAllocation, &one)).ok());
    all.Append(one.front().length, one.front().flags);
  }
  co_return all.extents();
}

TEST_CASE("cacheextents asks once, and again after any client's change") {
  auto array = std::make_shared<CountingArray>(4000);
  for (int i = 0; i < 4000; i += 40) array->holes[i] = false;
  auto layer = MakeFilter(CacheExtentsSpec(), {}, array);
  auto device = *OpenNow(*layer), other = *OpenNow(*layer);
  auto extents = OnLoop(OneByOne, device.get());
  CHECK(extents.size() == 200);
  CHECK(array->asked == 1);
  CHECK(OnLoop(OneByOne, device.get()) == extents);
  CHECK(OnLoop(OneByOne, other.get()) == extents);
  CHECK(array->asked == 1);
  REQUIRE(OnLoop(WriteText, other.get(), uint64_t{1}, std::string("x")).ok());
  auto changed = OnLoop(OneByOne, device.get());
  CHECK(changed[0] == Extent{2, kExtentData});
  CHECK(array->asked == 2);
}

// ---- openonce, exitlast, time-limit

class FakeSession final : public Session, public ServerControl {
 public:
  int disconnects = 0, shutdowns = 0;
  void RequestDisconnect(Disconnect) override { ++disconnects; }
  void ShutdownServer() override { ++shutdowns; }
  Task<void> End() { return RunAtEnd(); }
};

Task<int> Leave(FakeSession* session) {
  co_await session->End();
  co_return session->shutdowns;
}

OpenArgs With(Session* session, std::string name = "") {
  OpenArgs args;
  args.export_name = std::move(name);
  args.session = session;
  return args;
}

class ClosableArray final : public ArrayDevice {
 public:
  using ArrayDevice::ArrayDevice;
  int closes = 0;

 protected:
  Task<absl::Status> DoClose() override {
    ++closes;
    return absl::OkStatus();
  }
};

TEST_CASE("openonce opens each export once, and closes it at the end") {
  auto array = std::make_shared<ClosableArray>(100);
  auto below = std::make_shared<test::DeviceLayer>(array);
  auto layer = MakeFilter(OpenOnceSpec(), {}, below);
  FakeSession session;
  for (std::string name : {"a", "b", "a", "a"}) {
    auto device = OpenNow(*layer, With(&session, name));
    REQUIRE(device.ok());
    CHECK(OnLoop(RandomOperations, device->get(), 4).message() == "");
    REQUIRE(OnLoop(CloseOne, device->get()).ok());
  }
  CHECK(below->opened.size() == 2);
  CHECK(below->opened[0].session == nullptr);
  CHECK(array->closes == 0);
  REQUIRE(OnLoop(StopLayer, layer->get()).ok());
  CHECK(array->closes == 2);
}

TEST_CASE("exitlast ends the server with the last client, not with what it looks at before") {
  auto layer = MakeFilter(ExitLastSpec(), {}, ArrayOf("x"));
  FakeSession looks, first, second;
  REQUIRE(OpenNow(*layer, With(nullptr)).ok());  // no client
  for (std::string name : {"a", "b"}) {          // asks for one export, then opens another
    auto device = OpenNow(*layer, With(&first, name));
    REQUIRE(OnLoop(CloseOne, device->get()).ok());
  }
  CHECK(OnLoop(Leave, &looks) == 0);  // opened nothing
  REQUIRE(OpenNow(*layer, With(&second)).ok());
  CHECK(OnLoop(Leave, &first) == 0);
  CHECK(OnLoop(Leave, &second) == 1);
}

TEST_CASE("time-limit refuses requests after the time, and sends the client away") {
  auto use = [](const std::string& limit) {
    FakeSession session;
    auto layer = MakeFilter(TimeLimitSpec(), {{"time-limit", limit}}, ArrayOf("x"));
    auto device = OpenNow(*layer, With(&session));
    REQUIRE(device.ok());
    usleep(2000);
    return std::pair(Content(device->get()) == "x", session.disconnects);
  };
  CHECK(use("1000s") == std::pair(true, 0));
  CHECK(use("0") == std::pair(true, 0));
  CHECK(use("1ms") == std::pair(false, 1));
}

// ---- exitwhen

Task<absl::Status> Knock(Layer* layer) {
  static const Peer peer;
  co_return co_await layer->Preconnect(peer);
}

// Whether clients are refused before and after `change`, and the server ended when one left.
struct Events {
  bool before, after;
  int shutdowns;
  bool operator==(const Events&) const = default;
};
template <typename Change>
Events TryEvent(const test::Words& words, Change change) {
  auto layer = MakeFilter(ExitWhenSpec(), words, ArrayOf("x"));
  REQUIRE_MESSAGE(layer.ok(), layer.status().message());
  FakeSession session;
  (*layer)->AttachServer(&session);
  auto device = OpenNow(*layer, With(&session));
  Events events{};
  events.before = !OnLoop(Knock, layer->get()).ok();
  change();
  events.after = !OnLoop(Knock, layer->get()).ok();
  REQUIRE(OnLoop(CloseOne, device->get()).ok());
  CHECK(session.shutdowns == 0);
  events.shutdowns = OnLoop(Leave, &session);
  return events;
}

TEST_CASE("exitwhen notices files, pipes, processes and scripts") {
  TemporaryDirectory dir;
  const Events happens{false, true, 1}, nothing{false, false, 0};
  CHECK(TryEvent({}, [] {}) == nothing);
  CHECK(TryEvent({{"exit-when-file-created", dir / "new"}}, [&] { dir.Write("new", ""); }) ==
        happens);
  CHECK(TryEvent({{"exit-when-file-created", dir / "none"}}, [] {}) == nothing);
  CHECK(TryEvent({{"exit-when-file-deleted", dir / "new"}},
                 [&] { unlink((dir / "new").c_str()); }) == happens);
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  REQUIRE(write(ends[1], "x", 1) == 1);
  CHECK(TryEvent({{"exit-when-pipe-closed", std::to_string(ends[0])}}, [&] { close(ends[1]); }) ==
        happens);
  close(ends[0]);
  CHECK(TryEvent({{"exit-when-process-exits", std::to_string(getpid())}}, [] {}) == nothing);
  CHECK(TryEvent({{"exit-when-script", "test -e " + (dir / "go") + " && exit 88; true"}},
                 [&] { dir.Write("go", ""); }) == happens);
  CHECK(TryEvent({{"exit-when-script", "exit 3"}}, [] {}) == nothing);
}

Task<absl::Status> StartAndWait(Layer* layer, FakeSession* server) {
  BLK_CO_RETURN_IF_ERROR(co_await layer->Start());
  for (int i = 0; i < 2000 && server->shutdowns == 0; ++i)
    (void)co_await Loop::Current()->Sleep(1'000'000);
  co_return co_await layer->Stop();
}

TEST_CASE("exitwhen ends a server without clients, and leaves other programs alone") {
  TemporaryDirectory dir;
  const test::Words words = {{"exit-when-file-created", dir.Write("there", "")},
                             {"exit-when-poll", "1ms"}};
  FakeSession server;
  auto served = MakeFilter(ExitWhenSpec(), words, ArrayOf("x"));
  (*served)->AttachServer(&server);
  CHECK(OnLoop(StartAndWait, served->get(), &server).ok());
  CHECK(server.shutdowns == 1);
  auto alone = MakeFilter(ExitWhenSpec(), words, ArrayOf("x"));
  struct Use {
    static Task<absl::Status> Shortly(Layer* layer) {
      BLK_CO_RETURN_IF_ERROR(co_await layer->Start());
      (void)co_await Loop::Current()->Sleep(20'000'000);  // nothing ends this program
      co_return co_await layer->Stop();
    }
  };
  CHECK(OnLoop(Use::Shortly, alone->get()).ok());
}

// ---- pause

Task<void> ReadOne(Device* device, bool* done) {
  char byte;
  BLK_CHECK((co_await device->Read({}, 0, std::span(&byte, 1))).ok());
  *done = true;
}
Task<char> Tell(Stream* stream, char command) {
  const iovec part{&command, 1};
  BLK_CHECK((co_await stream->WriteAll(std::span(&part, 1))).ok());
  char answer = 0;
  BLK_CHECK(*co_await stream->ReadSome(std::span(&answer, 1)) == 1);
  co_return answer;
}
Task<absl::Status> PauseAndGoOn(Layer* layer, std::string socket) {
  BLK_CO_RETURN_IF_ERROR(co_await layer->Start());
  BLK_CO_ASSIGN_OR_RETURN(DevicePtr device, co_await layer->Open(OpenArgs()));
  BLK_CO_ASSIGN_OR_RETURN(StreamPtr stream, co_await ConnectUnix(socket));
  std::string answers;
  bool done = false, other_done = false;
  co_await ReadOne(device.get(), &done);
  answers += co_await Tell(stream.get(), 'p');
  TaskScope scope;
  scope.Spawn(ReadOne(device.get(), &other_done));
  (void)co_await Loop::Current()->Sleep(50'000'000);
  bool held = !other_done;
  answers += co_await Tell(stream.get(), 'z');
  answers += co_await Tell(stream.get(), 'r');
  co_await scope.Join();
  BLK_CO_RETURN_IF_ERROR(co_await device->Close());
  BLK_CO_RETURN_IF_ERROR(co_await layer->Stop());
  if (!done || !held || !other_done || answers != "PXR") co_return absl::InternalError(answers);
  co_return absl::OkStatus();
}

TEST_CASE("pause holds requests until told to go on") {
  TemporaryDirectory dir;
  auto layer = MakeFilter(PauseSpec(), {{"pause-control", dir / "control"}}, ArrayOf("x"));
  REQUIRE_MESSAGE(layer.ok(), layer.status().message());
  CHECK(OnLoop(PauseAndGoOn, layer->get(), dir / "control").message() == "");
  layer->reset();
  CHECK(access((dir / "control").c_str(), F_OK) != 0);
}

// ---- ddrescue

TEST_CASE("ddrescue fails reads of what was not read") {
  TemporaryDirectory dir;
  const std::string map = dir.Write("map",
                                    "# Mapfile. Created by GNU ddrescue\n"
                                    "0x00000000     +               1\n"
                                    "0x00000000  0x00000010  +\n"
                                    "0x00000010  0x00000010  +\n"
                                    "0x00000020  0x00000008  -\n"
                                    "0x00000028  0x00000018  +\n");
  auto device =
      OpenFilter(DdrescueSpec(), {{"ddrescue-mapfile", map}}, ArrayOf(std::string(100, 'd')));
  REQUIRE_MESSAGE(device.ok(), device.status().message());
  CHECK((*device)->facts().read_only);
  auto read = [&](uint64_t offset, size_t bytes) {
    std::string text(bytes, '?');
    return ErrnoOf(OnLoop(ReadText, device->get(), offset, &text));
  };
  CHECK(read(0, 32) == 0);
  CHECK(read(0, 33) == EIO);
  CHECK(read(39, 1) == EIO);
  CHECK(read(40, 24) == 0);
  CHECK(read(60, 10) == EIO);  // what the map does not mention
  for (std::string bad : {"", "0 + 1\n0 x +\n", "0 + 1\n0 5 q\n", "0 + 1\n5 5 +\n0 5 +\n"})
    CHECK_FALSE(
        MakeFilter(DdrescueSpec(), {{"ddrescue-mapfile", dir.Write("bad", bad)}}, ArrayOf(""))
            .ok());
}

}  // namespace
}  // namespace blk
