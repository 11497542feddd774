#include "src/core/sandbox.h"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <functional>
#include <thread>

#include "src/core/descriptor.h"
#include "src/core/process.h"

namespace blk {
namespace {

// There is no way back out, so each try is made in a child. Its exit status: 0 as expected, kNone
// where nothing can be bounded (an old kernel, a sanitizer), else the number of what failed.
constexpr int kNone = 77;
int InSandbox(const SandboxRules& rules, const std::function<int()>& tries) {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const auto report = EnterSandbox(rules);
    if (!report.ok()) _exit(100);
    if (!report->paths || !report->calls) _exit(kNone);
    _exit(tries());
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
void CheckInside(const SandboxRules& rules, const std::function<int()>& tries) {
  const int result = InSandbox(rules, tries);
  if (result != kNone) CHECK(result == 0);
}

int OpenError(const std::string& path, int flags) {
  const Descriptor file(open(path.c_str(), flags | O_CLOEXEC, 0600));
  return file.valid() ? 0 : errno;
}

struct Files {
  Files() {
    char path[] = "/tmp/blk-sandbox-XXXXXX";
    REQUIRE(mkdtemp(path) != nullptr);
    folder = path;
    for (const char* name : {"a", "b", "in"})
      REQUIRE(mkdir((folder + "/" + name).c_str(), 0700) == 0);
    for (const char* name : {"a/disk", "b/disk", "in/file"})
      REQUIRE(OpenError(folder + "/" + name, O_WRONLY | O_CREAT) == 0);
    REQUIRE(symlink((folder + "/b/disk").c_str(), (folder + "/a/link").c_str()) == 0);
  }
  ~Files() {
    for (const char* name : {"a/disk", "a/link", "b/disk", "in/file", "in/new"})
      unlink((folder + "/" + name).c_str());
    for (const char* name : {"a", "b", "in"}) rmdir((folder + "/" + name).c_str());
    rmdir(folder.c_str());
  }
  std::string folder;
};

TEST_CASE("sandbox: only declared paths can be opened, and only as declared") {
  const Files files;
  const std::string& f = files.folder;
  SandboxRules rules;
  AddNeeds(
      std::vector<Need>{{Need::Kind::kReadWritePath, f + "/a"}, {Need::Kind::kReadPath, f + "/in"}},
      &rules);
  CheckInside(rules, [&] {
    if (OpenError(f + "/a/disk", O_RDWR | O_TRUNC) != 0) return 1;
    if (OpenError(f + "/a", O_RDONLY | O_DIRECTORY) != 0) return 2;
    if (OpenError(f + "/in/file", O_RDONLY) != 0) return 3;
    if (OpenError(f + "/in/file", O_RDWR) != EACCES) return 4;
    if (OpenError(f + "/b/disk", O_RDONLY) != EACCES) return 5;
    if (OpenError(f + "/a/link", O_RDONLY) != EACCES) return 6;
    if (OpenError(f + "/a/../b/disk", O_RDONLY) != EACCES) return 7;
    if (OpenError(f + "/a/new", O_WRONLY | O_CREAT) != EACCES) return 8;
    if (OpenError("/etc/passwd", O_RDONLY) != EACCES) return 9;
    if (unlink((f + "/a/disk").c_str()) == 0) return 10;
    return 0;
  });
}

TEST_CASE("sandbox: files that layers make, and what the server removes") {
  const Files files;
  const std::string& f = files.folder;
  SandboxRules rules;
  rules.create = {f + "/in/new"};
  rules.remove = {f + "/a/link"};
  CheckInside(rules, [&] {
    if (OpenError(f + "/in/new", O_WRONLY | O_CREAT | O_TRUNC) != 0) return 1;
    if (unlink((f + "/in/new").c_str()) != 0) return 2;
    if (unlink((f + "/a/link").c_str()) != 0) return 3;
    if (OpenError(f + "/a/link", O_WRONLY | O_CREAT) != EACCES) return 4;
    if (OpenError(f + "/b/new", O_WRONLY | O_CREAT) != EACCES) return 5;
    return 0;
  });
}

TEST_CASE("sandbox: in a folder for temporary files anything goes, beside it nothing") {
  const Files files;
  const std::string& f = files.folder;
  SandboxRules rules;
  AddNeeds(std::vector<Need>{{Need::Kind::kTemporaryFile, f + "/in"}}, &rules);
  CheckInside(rules, [&] {
    const std::string made = f + "/in/new";
    if (mkdir(made.c_str(), 0700) != 0) return 1;
    if (OpenError(made + "/file", O_RDWR | O_CREAT) != 0) return 2;
    if (rename((made + "/file").c_str(), (f + "/in/moved").c_str()) != 0) return 3;
    if (unlink((f + "/in/moved").c_str()) != 0) return 4;
    if (rmdir(made.c_str()) != 0) return 5;
    if (mkdir((f + "/beside").c_str(), 0700) == 0) return 6;
    return OpenError(f + "/a/disk", O_RDONLY) == EACCES ? 0 : 7;
  });
}

TEST_CASE("sandbox: no programs, no processes, no new code, no tracing; threads and memory work") {
  CheckInside(SandboxRules(), [] {
    char* const arguments[] = {const_cast<char*>("true"), nullptr};
    execv("/bin/true", arguments);
    if (errno != EPERM && errno != EACCES) return 1;
    if (fork() != -1 || errno != EPERM) return 2;
    if (syscall(SYS_vfork) != -1) return 3;
    if (mmap(nullptr, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1,
             0) != MAP_FAILED)
      return 4;
    void* const page =
        mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) return 5;
    if (mprotect(page, 4096, PROT_READ | PROT_EXEC) == 0) return 6;
    if (ptrace(PTRACE_TRACEME, 0, nullptr, nullptr) != -1 || errno != EPERM) return 7;
    if (syscall(SYS_io_uring_setup, 1, nullptr) != -1 || errno != EPERM) return 8;
    if (syscall(SYS_mount, "a", "/", "tmpfs", 0, nullptr) != -1) return 9;
    if (kill(getppid(), SIGCONT) != -1 || errno != EPERM) return 10;
    if (kill(getpid(), SIGCONT) != 0) return 12;
    if (kill(0x7ffffffe, 0) != -1 || errno != ESRCH) return 13;
    int inside = 0;
    std::thread([&inside] { inside = fork() == -1 ? errno : -1; }).join();
    return inside == EPERM ? 0 : 11;
  });
}

TEST_CASE("sandbox: the spawner can be told to start nothing more") {
  const pid_t child = fork();  // a spawner of its own; it stays closed for good
  REQUIRE(child >= 0);
  if (child == 0) {
    const auto before = StartProcess(ShellCommand("read line; exit 3"));
    if (!before.ok() || !Spawner::Close().ok()) _exit(1);
    const auto after = StartProcess(ShellCommand("exit 0"));
    if (after.ok() || ErrnoOf(after.status()) != EPERM) _exit(2);
    const auto ended = (*before)->WaitBlocking(10'000);  // what runs goes on
    Spawner::Stop();
    _exit(ended.ok() && ended->code == 3 ? 0 : 3);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  CHECK(WEXITSTATUS(status) == 0);
}

TEST_CASE("sandbox: connections to others only where a layer declared them") {
  const auto new_socket = [](int family) {
    const Descriptor made(socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0));
    return made.valid() ? 0 : errno;
  };
  CheckInside(SandboxRules(), [&] {
    if (new_socket(AF_INET) != EPERM || new_socket(AF_UNIX) != EPERM) return 1;
    int pair[2];
    return socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0 ? 0 : 2;
  });
  SandboxRules with_network;
  AddNeeds(std::vector<Need>{{Need::Kind::kNetwork, ""}}, &with_network);
  CheckInside(with_network, [&] {
    if (new_socket(AF_INET) != 0 || new_socket(AF_UNIX) != 0) return 1;
    return new_socket(AF_PACKET) == EPERM ? 0 : 2;
  });
}

}  // namespace
}  // namespace blk
