// The contract of src/core/device.h, tried on every backend and filter of the registry: a new one
// is tested before anyone writes a test for it. Those without an example that opens by itself are
// named in this file with what they need.
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <set>

#include "src/backends/stack.h"
#include "src/core/scope.h"
#include "src/tools/server.h"
#include "test/conformance/subject.h"
#include "test/temporary.h"

namespace blk::test {
namespace {

// Forces loans off while it lives.
struct ShortcutsOff {
  explicit ShortcutsOff(bool off) { Device::ForceShortcutsOff(off); }
  ~ShortcutsOff() { Device::ForceShortcutsOff(false); }
};

Task<void> CheckDevice(Trial* trial) {
  CheckFacts(trial);
  std::vector<Window> windows = co_await ReadWindows(trial);
  for (const Window& window : windows) {
    co_await CheckReads(trial, &window);
    co_await CheckExtents(trial, &window);
  }
  if (!trial->traits.lossy) co_await CheckRefusals(trial);
  co_await CheckWrites(trial, &windows);
  for (Window& window : windows) {
    co_await CheckConcurrentWrites(trial, &window);
    co_await CheckReads(trial, &window);
  }
}

Task<absl::StatusOr<DevicePtr>> Open(Layer* layer, const Subject* subject) {
  OpenArgs args;
  args.export_name = subject->export_name;
  return layer->Open(std::move(args));
}

// Open, everything, a second open beside it, close, and open again.
Task<void> CheckLayer(Trial* trial, Layer* layer, const Subject* subject) {
  auto device = co_await Open(layer, subject);
  if (subject->may_not_fit && ErrnoOf(device.status()) == EINVAL) co_return;
  trial->ExpectOk(device.status(), "open");
  if (!device.ok()) co_return;
  trial->device = device->get();
  co_await CheckDevice(trial);
  if (auto other = co_await Open(layer, subject); other.ok()) {
    std::vector<Window> windows = co_await ReadWindows(trial);
    for (Window& window : windows) co_await CheckTwoOpens(trial, other->get(), &window);
    trial->ExpectOk(co_await (*other)->Close(), "close of the second open");
  } else {
    trial->ExpectOk(other.status(), "a second open");
  }
  std::vector<Window> windows = co_await ReadWindows(trial);
  const bool same_for_all = trial->device->facts().multi_conn;
  trial->ExpectOk(co_await (*device)->Close(), "close");
  *device = nullptr;
  auto again = co_await Open(layer, subject);
  trial->ExpectOk(again.status(), "opening again");
  if (!again.ok()) co_return;
  trial->device = again->get();
  for (const Window& window : windows)
    if (same_for_all) co_await CompareWindow(trial, &window, "opening again");
  trial->ExpectOk(co_await (*again)->Close(), "close after opening again");
}

Task<int> CheckStack(Trial* trial, Layer* layer, const Subject* subject) {
  trial->ExpectOk(co_await layer->Start(), "start");
  co_await CheckLayer(trial, layer, subject);
  trial->ExpectOk(co_await layer->Stop(), "stop");
  co_return 0;
}

// The same, with an NBD server and the nbd backend in between.
Task<void> RunServer(Server* server, Report* report) {
  absl::Status status = co_await server->Run();
  if (!status.ok()) report->Fail(absl::StrCat("server: ", status.message()));
}
Task<int> CheckServed(Trial* trial, Layer* layer, Layer* client, const Subject* subject,
                      std::string socket) {
  trial->ExpectOk(co_await layer->Start(), "start");
  LayerExports exports{LayerPtr(LayerPtr(), layer)};
  Server server(trial->pool, &exports, {});
  auto listening = ListenUnix(socket);
  BLK_CHECK(listening.ok());
  server.Listen(*listening);
  TaskScope scope;
  scope.Spawn(RunServer(&server, trial->report));
  co_await CheckLayer(trial, client, subject);
  server.Stop();
  co_await scope.Join();
  trial->ExpectOk(co_await layer->Stop(), "stop");
  co_return 0;
}

uint64_t SeedOf(const std::string& text) {
  uint64_t seed = 1469598103934665603u;
  for (char c : text) seed = (seed ^ static_cast<unsigned char>(c)) * 1099511628211u;
  return seed;
}

void TryOnce(const Subject& subject, int loops, bool shortcuts_off, const std::string& socket) {
  CAPTURE(subject.spec);
  CAPTURE(loops);
  CAPTURE(shortcuts_off);
  ShortcutsOff guard(shortcuts_off);
  absl::StatusOr<LayerPtr> layer = MakeStack(AllSpecs(), subject.spec);
  if (subject.may_lack_memory && ErrnoOf(layer.status()) == ENOMEM) return;
  REQUIRE_MESSAGE(layer.ok(), layer.status().message());
  Report report;
  LoopPool pool(loops);
  Trial trial{.pool = &pool,
              .device = nullptr,
              .traits = subject.traits,
              .seed = SeedOf(subject.spec),
              .report = &report};
  if (socket.empty()) {
    pool.RunMain(CheckStack(&trial, layer->get(), &subject));
  } else {
    unlink(socket.c_str());
    absl::StatusOr<LayerPtr> client =
        MakeStack(AllSpecs(), absl::StrCat("nbd(socket=", socket, ")"));
    REQUIRE(client.ok());
    pool.RunMain(CheckServed(&trial, layer->get(), client->get(), &subject, socket));
  }
  CHECK_MESSAGE(report.failures() == 0, subject.spec, report.text());
}

void Try(const Subject& subject, const std::string& socket = "") {
  for (int loops : {1, 3})
    for (bool shortcuts_off : {false, true}) TryOnce(subject, loops, shortcuts_off, socket);
}

Subject Plain(std::string spec, std::string export_name = "") {
  Subject subject{.spec = std::move(spec), .export_name = std::move(export_name)};
  subject.traits = TraitsOf(subject.spec);
  return subject;
}

// ---- Those that need something around them

const std::set<std::string_view>& TriedByHand() {
  static const auto& names = *new std::set<std::string_view>(
      {"file", "split", "nbd", "partition", "extentlist", "tar", "pause", "ddrescue", "checkwrite",
       "partitioning", "floppy", "linuxdisk", "example2", "python", "sh", "exec",
       // in test/interop, with programs that need not be here
       "perl", "ruby", "lua", "tcl", "iso", "tmpdisk", "ondemand"});
  return names;
}

std::string SomeFile(const std::string& path, uint64_t size, int seed) {
  std::string bytes(size, '\0');
  std::mt19937_64 random(seed);
  for (uint64_t at = 0; at < size; ++at)
    if (at / 5000 % 3 != 1) bytes[at] = static_cast<char>(random());
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

}  // namespace

TEST_CASE("every backend and filter is tried, and its help tells all its parameters") {
  for (const Spec* spec : AllSpecs().specs()) {
    CAPTURE(spec->name());
    bool opens = TriedByHand().contains(spec->name());
    for (const Example& example : spec->examples()) opens |= example.opens;
    CHECK_MESSAGE(opens, "it has no example that the conformance suite can open");
    std::string help = SpecHelp(*spec);
    for (std::string_view name : spec->params().names())
      CHECK_MESSAGE(help.find(name) != help.npos, name);
    for (const Example& example : spec->examples())
      CHECK_MESSAGE(help.find(example.spec) != help.npos, example.spec);
  }
}

TEST_CASE("backends keep the contract") {
  for (const Spec* spec : AllSpecs().specs()) {
    if (spec->is_filter()) continue;
    for (const Subject& subject : SubjectsOf(*spec)) Try(subject);
  }
}

TEST_CASE("filters keep the contract") {
  for (const Spec* spec : AllSpecs().specs()) {
    if (!spec->is_filter()) continue;
    for (const Subject& subject : SubjectsOf(*spec)) Try(subject);
  }
}

TEST_CASE("stacks of filters keep the contract") {
  for (const Subject& subject : FilterStacks(1)) Try(subject);
}

TEST_CASE("what a failing device does not fail is right") {
  Subject subject = Plain("error(error-rate=20%25)+memory:70001");
  subject.traits.lossy = true;
  Try(subject);
}

TEST_CASE("files keep the contract") {
  TemporaryDirectory directory;
  for (uint64_t size : {97, 12345, 700001}) {
    std::string path = directory.path() + "/disk";
    Try(Plain("file:" + SomeFile(path, size, 1)));
    Try(Plain(absl::StrCat("file:", SomeFile(path, size, 2), "(cache=none)")));
    std::string parts;
    for (int i = 0; i < 3; ++i)
      absl::StrAppend(&parts, i ? "," : "", "file=",
                      SomeFile(absl::StrCat(directory.path(), "/part", i), size / 3 + i, i));
    Try(Plain(absl::StrCat("split(", parts, ")")));
  }
  Try(Plain(absl::StrCat("file(dir=", directory.path(), ")"), "disk"));
}

// A disk with one partition of 131 sectors behind 3 others, in a table of the old kind.
std::string DiskWithPartition(const std::string& path) {
  SomeFile(path, 140 * 512 + 100, 4);
  std::fstream disk(path, std::ios::in | std::ios::out | std::ios::binary);
  const char entry[16] = {0, 0, 0, 0, char(0x83), 0, 0, 0, 3, 0, 0, 0, char(131), 0, 0, 0};
  disk.seekp(446).write(std::string(64, '\0').data(), 64);
  disk.seekp(446).write(entry, sizeof entry);
  disk.seekp(510).write("\x55\xaa", 2);
  return path;
}

TEST_CASE("partitions keep the contract") {
  TemporaryDirectory directory;
  const std::string disk = directory.path() + "/disk";
  Try(Plain("partition(partition=1)+" + DiskWithPartition(disk)));
  Try(Plain("cow+partition(partition=1)+" + DiskWithPartition(disk)));
  Try(Plain("partition(partition=1)+cache+" + DiskWithPartition(disk)));
}

TEST_CASE("disks made up around files keep the contract") {
  TemporaryDirectory directory;
  const std::string folder = directory.path() + "/folder";
  std::filesystem::create_directory(folder);
  const std::string second = SomeFile(folder + "/second", 700001, 2);
  Try(Plain("example2:" + second));
}

TEST_CASE("disks that programs are keep the contract") {
  if (access("/usr/bin/python3", X_OK) != 0) return;  // some machine without it
  TemporaryDirectory directory;
  std::ofstream(directory.path() + "/disk.py") << R"(API_VERSION = 2
disk = bytearray(70001)
def open(readonly): return 1
def get_size(h): return len(disk)
def pread(h, buf, offset, flags): buf[:] = disk[offset:offset + len(buf)]
def pwrite(h, buf, offset, flags): disk[offset:offset + len(buf)] = buf
def flush(h, flags): pass
)";
  std::ofstream(directory.path() + "/disk.sh") << R"(#!/bin/sh
case $1 in
  load) head -c 5001 /dev/zero >$tmpdir/disk ;;
  get_size) echo 5001 ;;
  can_write) ;;
  pread) tail -c +$(($4 + 1)) $tmpdir/disk | head -c $3 ;;
  pwrite) dd of=$tmpdir/disk conv=notrunc bs=1 seek=$4 2>/dev/null ;;
  *) exit 2 ;;
esac
)";
  chmod((directory.path() + "/disk.sh").c_str(), 0755);
  std::ofstream(directory.path() + "/exec.py") << R"(import sys
disk = bytearray(30001)
read, write = sys.stdin.buffer, sys.stdout.buffer
for line in read:
    ident, method, length, *words = line.split()
    data = read.read(int(length))
    output = b""
    if method == b"load": output = b"get_size pread pwrite"
    elif method == b"get_size": output = b"30001"
    elif method == b"pread": output = disk[int(words[2]):int(words[2]) + int(words[1])]
    elif method == b"pwrite": disk[int(words[2]):int(words[2]) + len(data)] = data
    write.write(b"%s ok %d\n" % (ident, len(output)) + output)
    write.flush()
)";
  Try(Plain(absl::StrCat("python:", directory.path(), "/disk.py")));
  Try(Plain(absl::StrCat("exec(command=/usr/bin/python3 ", directory.path(), "/exec.py)")));
  Try(Plain(absl::StrCat("sh:", directory.path(), "/disk.sh")));
}

TEST_CASE("an NBD server and client in between change nothing") {
  TemporaryDirectory directory;
  const std::string socket = directory.path() + "/socket";
  for (const char* spec : {"memory:97", "memory:9223372036854775807", "null:300001", "full:5001",
                           "sparse-random:9000001(seed=3,runlength=32K)", "pattern:97", "zero"})
    Try(Plain(spec), socket);
  Try(Plain("file:" + SomeFile(directory.path() + "/disk", 400001, 3)), socket);
  Try(Plain("cache(cache-on-read=true,cache-max-size=1M)+memory:3000001"), socket);
}

}  // namespace blk::test
