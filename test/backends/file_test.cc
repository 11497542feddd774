#include "src/backends/file.h"

#include <doctest/doctest.h>
#include <linux/loop.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#include <algorithm>
#include <memory>

#include "src/core/scope.h"
#include "test/backends/try_device.h"
#include "test/temporary.h"

namespace blk {

const Spec& FileSpec();

namespace {

constexpr uint64_t kMiB = 1 << 20;

absl::StatusOr<LayerPtr> MakeFile(const Words& words) { return MakeReady(FileSpec(), words); }

Task<absl::StatusOr<DevicePtr>> OpenOnLoop(LayerPtr layer, OpenArgs args) {
  co_return co_await layer->Open(std::move(args));
}
absl::StatusOr<DevicePtr> OpenExport(const LayerPtr& layer, std::string name,
                                     bool read_only = false) {
  LoopPool pool(1);
  OpenArgs args;
  args.export_name = std::move(name);
  args.read_only = read_only;
  return pool.RunMain(OpenOnLoop(layer, std::move(args)));
}

// ---- Against an oracle

TEST_CASE("a file is what was done to it") {
  for (std::string parent : {"/tmp", "/dev/shm"}) {
    CAPTURE(parent);
    if (access(parent.c_str(), W_OK) != 0) continue;
    TemporaryDirectory dir(parent);
    for (std::string cache : {"default", "none"}) {
      std::string path = dir.WriteSparse("disk-" + cache, 300001);
      auto layer = MakeFile({{"file", path}, {"cache", cache}, {"fadvise", "random"}});
      REQUIRE(layer.status().message() == "");
      CHECK(Use(*layer, RandomOperations, 7).message() == "");
      CHECK(Use(*layer, RandomOperations, 8).message() == "");
    }
  }
}

// ---- Holes and zeroes

Task<absl::Status> ZeroRange(Device* device, uint32_t flags, uint64_t offset, uint64_t length) {
  co_return co_await device->Zero({.flags = flags}, offset, length);
}
Task<absl::Status> TrimRange(Device* device, uint64_t offset, uint64_t length) {
  co_return co_await device->Trim({}, offset, length);
}
Task<absl::Status> WriteText(Device* device, uint64_t offset, std::string text) {
  co_return co_await device->Write({}, offset, text);
}

TEST_CASE("trims and zeroes free space, zeroes that must not make holes keep it") {
  TemporaryDirectory dir;
  std::string path = dir.Write("disk", std::string(4 * kMiB, 'x'));
  auto layer = MakeFile({{"file", path}});
  REQUIRE(layer.ok());
  int fd = open(path.c_str(), O_RDONLY);
  REQUIRE(fsync(fd) == 0);  // blocks are counted when they are given out
  close(fd);
  REQUIRE(AllocatedBytes(path) >= 4 * kMiB);
  CHECK(Use(*layer, TrimRange, 0, kMiB).ok());
  CHECK(AllocatedBytes(path) < 3 * kMiB + 65536);
  CHECK(Use(*layer, ZeroRange, 0, kMiB, kMiB).ok());
  CHECK(AllocatedBytes(path) < 2 * kMiB + 65536);
  uint64_t before = AllocatedBytes(path);
  CHECK(Use(*layer, ZeroRange, kNoHole, 2 * kMiB, kMiB).ok());
  CHECK(AllocatedBytes(path) == before);
  CHECK(ReadWholeFile(path) == std::string(3 * kMiB, 0) + std::string(kMiB, 'x'));
}

Task<std::vector<Extent>> AllExtents(Device* device) {
  ExtentList list(0, device->size());
  while (!list.full()) BLK_CHECK((co_await device->Extents({}, kBaseAllocation, &list)).ok());
  co_return list.extents();
}

TEST_CASE("holes are told") {
  TemporaryDirectory dir;
  auto layer = MakeFile({{"file", dir.WriteSparse("disk", 100 * kMiB)}});
  REQUIRE(layer.ok());
  CHECK(Use(*layer, WriteText, 50 * kMiB, std::string(kMiB, 'x')).ok());
  CHECK(Use(*layer, AllExtents) == std::vector<Extent>{{50 * kMiB, kExtentHoleZero},
                                                       {kMiB, kExtentData},
                                                       {49 * kMiB, kExtentHoleZero}});
}

// ---- What cannot be served, and why

absl::Status WhyNot(const Words& words) { return MakeFile(words).status(); }

TEST_CASE("what is no disk is refused with the way out") {
  TemporaryDirectory dir;
  std::string missing = dir / "missing", pipe = dir / "pipe", file = dir.Write("file", "x");
  REQUIRE(mkfifo(pipe.c_str(), 0600) == 0);

  CHECK(ErrnoOf(WhyNot({{"file", missing}})) == ENOENT);
  CHECK(WhyNot({{"file", missing}}).message() ==
        "cannot open " + missing +
            " (check the name; a relative one starts in the current directory): No such file or "
            "directory");
  CHECK(WhyNot({{"file", dir.path()}}).message() ==
        dir.path() + " is a directory: to serve the files in it, use dir= instead of file=");
  CHECK(WhyNot({{"file", pipe}}).message().find(" is a pipe, ") != std::string::npos);
  CHECK(WhyNot({{"file", "/dev/zero"}}).message().find("is a character device") !=
        std::string::npos);
  CHECK(WhyNot({{"dir", file}}).message() ==
        "cannot open the directory " + file + " (for one file use file=): Not a directory");
  CHECK(WhyNot({}).message() ==
        "file: which file? Give file=PATH, or dir=PATH for a directory of files");
  CHECK(WhyNot({{"file", file}, {"dir", dir.path()}}).message() ==
        "file: give one of file=, fd=, dir= and dirfd=, not several");
  CHECK(WhyNot({{"fd", "1"}}).message().find("standard streams") != std::string::npos);
  CHECK(ErrnoOf(WhyNot({{"fd", "987654"}})) == EBADF);
}

TEST_CASE("a socket is refused with the way out") {
  TemporaryDirectory dir;
  int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  (dir / "socket").copy(address.sun_path, sizeof address.sun_path - 1);
  REQUIRE(bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  CHECK(WhyNot({{"file", dir / "socket"}}).message().find("nbd+unix:///?socket=") !=
        std::string::npos);
  close(fd);
}

Task<absl::Status> WriteOneByte(Device* device) {
  co_return co_await device->Write({}, 0, {"y", 1});
}

TEST_CASE("descriptors serve as they were opened") {
  TemporaryDirectory dir;
  std::string path = dir.Write("disk", std::string(4096, 'x'));
  struct Case {
    int flags;
    bool opens, writes;
  };
  for (auto [flags, opens, writes] : {Case{O_RDONLY, true, false},
                                      {O_RDWR, true, true},
                                      {O_RDWR | O_APPEND, true, false},
                                      {O_WRONLY, false, false}}) {
    CAPTURE(flags);
    int fd = open(path.c_str(), flags | O_CLOEXEC);
    auto layer = MakeFile({{"fd", std::to_string(fd)}});
    CHECK(layer.ok() == opens);
    if (layer.ok()) {
      absl::Status written = Use(*layer, WriteOneByte);
      CHECK(written.ok() == writes);
      if (!writes) CHECK(ErrnoOf(written) == EPERM);
    }
    close(fd);
  }
}

TEST_CASE("a file that may not be written is served read-only") {
  // root may write everything, except what is running.
  TemporaryDirectory dir;
  std::string program = dir / "program";
  std::filesystem::copy_file("/bin/sleep", program);
  pid_t child = fork();
  if (child == 0) {
    execl(program.c_str(), program.c_str(), "60", nullptr);
    _exit(127);
  }
  int fd = -1;
  for (int tries = 0; tries < 1000; ++tries) {  // until it has started
    fd = open(program.c_str(), O_RDWR | O_CLOEXEC);
    if (fd == -1) break;
    close(fd);
    usleep(2000);
  }
  auto layer = MakeFile({{"file", program}});
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  REQUIRE(fd == -1);
  REQUIRE(layer.status().message() == "");
  CHECK(ErrnoOf(Use(*layer, WriteOneByte)) == EPERM);
}

TEST_CASE("each connection sees the size that the file has then") {
  TemporaryDirectory dir;
  std::string path = dir.WriteSparse("disk", 1000);
  auto layer = MakeFile({{"file", path}});
  REQUIRE(layer.ok());
  auto first = OpenExport(*layer, "ignored");
  REQUIRE(truncate(path.c_str(), 2000) == 0);
  auto second = OpenExport(*layer, "", /*read_only=*/true);
  REQUIRE((first.ok() && second.ok()));
  CHECK((*first)->size() == 1000);
  CHECK((*second)->size() == 2000);
  CHECK(!(*first)->facts().read_only);
  CHECK((*second)->facts().read_only);
  CHECK((*second)->facts().extents);
  CHECK((*second)->facts().multi_conn);
}

Task<absl::Status> ReadEnd(Device* device) {
  char byte;
  co_return co_await device->Read({}, device->size() - 1, {&byte, 1});
}
Task<absl::Status> TruncateAndReadEnd(Device* device, std::string path) {
  BLK_CO_RETURN_IF_ERROR(co_await ReadEnd(device));
  BLK_CHECK(truncate(path.c_str(), 10) == 0);
  co_return co_await ReadEnd(device);
}
TEST_CASE("a file made shorter while served gives EIO") {
  TemporaryDirectory dir;
  std::string path = dir.WriteSparse("disk", 10000);
  auto layer = MakeFile({{"file", path}});
  REQUIRE(layer.ok());
  CHECK(ErrnoOf(Use(*layer, TruncateAndReadEnd, path)) == EIO);
}

// ---- Directories

Task<absl::StatusOr<ExportList>> ListOnLoop(LayerPtr layer) {
  co_return co_await layer->ListExports({});
}

TEST_CASE("a directory's files are exports, and nothing else is") {
  TemporaryDirectory dir;
  std::filesystem::create_directory(dir / "exports");
  std::filesystem::create_directory(dir / "exports/folder");
  dir.Write("outside", "outside");
  dir.Write("exports/b", "bb");
  dir.Write("exports/a a", "a");
  REQUIRE(mkfifo((dir / "exports/pipe").c_str(), 0600) == 0);
  REQUIRE(symlink("b", (dir / "exports/link").c_str()) == 0);
  REQUIRE(symlink("../outside", (dir / "exports/out").c_str()) == 0);
  REQUIRE(symlink("nowhere", (dir / "exports/broken").c_str()) == 0);
  int own = open((dir / "outside").c_str(), O_RDONLY | O_CLOEXEC);
  REQUIRE(symlink(("/proc/self/fd/" + std::to_string(own)).c_str(),
                  (dir / "exports/magic").c_str()) == 0);

  auto layer = MakeFile({{"dir", dir / "exports"}});
  REQUIRE(layer.status().message() == "");
  LoopPool pool(1);
  auto list = pool.RunMain(ListOnLoop(*layer));
  REQUIRE(list.ok());
  std::vector<std::string> names;
  for (const ExportEntry& entry : list->exports) names.push_back(entry.name);
  std::ranges::sort(names);  // the directory has an order of its own
  CHECK(names == std::vector<std::string>{"a a", "b", "link", "magic", "out"});

  CHECK((*OpenExport(*layer, "a a"))->size() == 1);
  CHECK((*OpenExport(*layer, "link"))->size() == 2);
  CHECK((*OpenExport(*layer, "out"))->size() == 7);
  for (std::string name : {"", ".", "..", "../outside", "/etc/passwd", "folder/x", "none", "broken",
                           "folder", "pipe", "magic"}) {
    CAPTURE(name);
    auto device = OpenExport(*layer, name);
    CHECK(!device.ok());
    CHECK(!device.status().message().empty());
  }
  CHECK(ErrnoOf(OpenExport(*layer, "..").status()) == ENOENT);
  CHECK(ErrnoOf(OpenExport(*layer, "").status()) == ENOENT);
  close(own);
}

TEST_CASE("a directory by descriptor") {
  TemporaryDirectory dir;
  dir.Write("a", "a");
  int fd = open(dir.path().c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  auto layer = MakeFile({{"dirfd", std::to_string(fd)}});
  close(fd);
  REQUIRE(layer.ok());
  CHECK((*OpenExport(*layer, "a"))->size() == 1);
  int file = open((dir / "a").c_str(), O_RDONLY | O_CLOEXEC);
  CHECK(ErrnoOf(WhyNot({{"dirfd", std::to_string(file)}})) == ENOTDIR);
  close(file);
}

// ---- Targets of copies

TEST_CASE("a target gets its size, and says when it is all zero") {
  TemporaryDirectory dir;
  bool zero = false;
  std::string fresh = dir / "fresh", data = dir.Write("data", std::string(5000, 'x'));
  CHECK(PrepareTargetFile(fresh, kMiB, &zero).ok());
  CHECK(zero);
  CHECK(std::filesystem::file_size(fresh) == kMiB);
  CHECK(PrepareTargetFile(data, 100000, &zero).ok());
  CHECK(!zero);
  CHECK(ReadWholeFile(data) == std::string(5000, 'x') + std::string(95000, 0));
  CHECK(PrepareTargetFile(data, 10).ok());
  CHECK(ReadWholeFile(data) == std::string(10, 'x'));
  CHECK(PrepareTargetFile(data, 0, &zero).ok());
  CHECK(ErrnoOf(PrepareTargetFile(dir / "no/such", 10)) == ENOENT);
  CHECK(ErrnoOf(PrepareTargetFile("/dev/null", 10)) == EINVAL);
  CHECK(ErrnoOf(PrepareTargetFile(dir.path(), 10)) == EISDIR);
}

// ---- Block devices

// A loop device over a file, or -1 where the machine does not let us.
struct LoopDevice {
  explicit LoopDevice(const std::string& path) {
    int control = open("/dev/loop-control", O_RDWR | O_CLOEXEC);
    int number = control == -1 ? -1 : ioctl(control, LOOP_CTL_GET_FREE);
    close(control);
    if (number < 0) return;
    name = "/dev/loop" + std::to_string(number);
    fd = open(name.c_str(), O_RDWR | O_CLOEXEC);
    int file = open(path.c_str(), O_RDWR | O_CLOEXEC);
    if (fd != -1 && ioctl(fd, LOOP_SET_FD, file) != 0) {
      close(fd);
      fd = -1;
    }
    close(file);
  }
  ~LoopDevice() {
    if (fd == -1) return;
    ioctl(fd, LOOP_CLR_FD);
    close(fd);
  }
  std::string name;
  int fd = -1;
};

Task<absl::Status> FastZeroAnswers(Device* device) {
  absl::Status status = co_await device->Zero({.flags = kFastZero}, 100, 100000);
  if (ErrnoOf(status) == EOPNOTSUPP) co_return absl::OkStatus();
  co_return status;
}

TEST_CASE("a block device") {
  TemporaryDirectory dir;
  LoopDevice loop(dir.WriteSparse("disk", 4 * kMiB));
  if (loop.fd == -1) {
    MESSAGE("skipped: needs a loop device");
    return;
  }
  auto layer = MakeFile({{"file", loop.name}});
  REQUIRE(layer.status().message() == "");
  auto device = OpenExport(*layer, "");
  REQUIRE(device.ok());
  CHECK((*device)->size() == 4 * kMiB);
  CHECK(!(*device)->facts().extents);
  CHECK((*device)->facts().block.minimum == 1);
  CHECK((*device)->facts().block.preferred >= 4096);
  CHECK(Use(*layer, RandomOperations, 3).message() == "");
  CHECK(Use(*layer, FastZeroAnswers).message() == "");
  CHECK(Use(*layer, ZeroRange, kNoHole, 1, 4 * kMiB - 2).message() == "");
  CHECK(PrepareTargetFile(loop.name, 4 * kMiB).ok());
  CHECK(ErrnoOf(PrepareTargetFile(loop.name, 4 * kMiB + 1)) == ENOSPC);
}

// ---- Many at a time

Task<void> WriteBlocks(Device* device, int worker, int workers, absl::Status* result) {
  for (uint64_t block = worker; block < 256; block += workers) {
    std::string data(4096, static_cast<char>(block + 1));
    *result = co_await device->Write({.flags = block % 16 ? 0 : kFua}, block * 4096, data);
    if (!result->ok()) co_return;
    co_await Yield();
  }
}
Task<void> WriteBlocksOn(Loop* loop, Device* device, int worker, absl::Status* result) {
  co_await RunOn(loop, WriteBlocks(device, worker, 8, result));
}
Task<absl::Status> WriteFromManyLoops(LayerPtr layer, LoopPool* pool) {
  BLK_CO_ASSIGN_OR_RETURN(DevicePtr device, co_await layer->Open({}));
  std::vector<absl::Status> results(8);
  TaskScope scope;
  for (int worker = 0; worker < 8; ++worker)
    scope.Spawn(
        WriteBlocksOn(pool->loop(worker % pool->size()), device.get(), worker, &results[worker]));
  co_await scope.Join();
  for (const absl::Status& result : results) BLK_CO_RETURN_IF_ERROR(result);
  std::string oracle;
  for (int block = 0; block < 256; ++block) oracle.append(4096, static_cast<char>(block + 1));
  co_return co_await CompareAll(device.get(), oracle);
}

TEST_CASE("eight writers on three loops do not disturb each other") {
  TemporaryDirectory dir;
  auto layer = MakeFile({{"file", dir.WriteSparse("disk", 256 * 4096)}});
  REQUIRE(layer.ok());
  LoopPool pool(3);
  CHECK(pool.RunMain(WriteFromManyLoops(*layer, &pool)).message() == "");
}

}  // namespace
}  // namespace blk
