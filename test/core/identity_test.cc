#include "src/core/identity.h"

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <memory>

#include "src/core/process.h"

using namespace blk;

namespace {

// What `id -FLAG` prints when this process starts it.
std::string Ask(const std::string& flag) {
  Command command;
  command.argv = {"id", flag};
  command.output = Redirect::Pipe();
  auto process = StartProcess(command);
  if (!process.ok()) return std::string(process.status().message());
  char text[100] = {};
  ssize_t got = read((*process)->output.get(), text, sizeof text - 1);
  (void)(*process)->WaitBlocking(10'000);
  return std::string(text, got > 0 ? static_cast<size_t>(got) : 0);
}

// In a sandbox there may be no other users (user_namespaces(7)).
bool MayBecomeAnybody() {
  unsigned inside = 1, outside = 0, count = 0;
  std::unique_ptr<FILE, int (*)(FILE*)> map(std::fopen("/proc/self/uid_map", "re"), std::fclose);
  return getuid() == 0 && map &&
         std::fscanf(map.get(), "%u %u %u", &inside, &outside, &count) == 3 && count > 65534;
}

}  // namespace

TEST_CASE("users and groups by name and number") {
  CHECK(FindUser("root").value_or(1) == 0);
  CHECK(FindUser("65534").value_or(1) == 65534);
  CHECK(FindGroup("root").value_or(1) == 0);
  CHECK_FALSE(FindUser("no such user").ok());
  CHECK_FALSE(FindUser("").ok());
  CHECK_FALSE(FindUser("-1").ok());
  CHECK_FALSE(FindGroup("4294967295").ok());  // what setgid takes for `unchanged`
}

TEST_CASE("after dropping privileges this process and its programs are somebody else") {
  if (!MayBecomeAnybody()) return;  // test/interop/nbdkit_cases.txt tries it as root
  std::fflush(nullptr);
  pid_t pid = fork();
  if (pid == 0) {
    alarm(20);
    bool right = Spawner::Start().ok() && Ask("-u") == "0\n" &&
                 DropPrivileges({.user = 65534, .group = 65533}).ok();
    right = right && getuid() == 65534 && getgid() == 65533 && setuid(0) != 0;
    right = right && Ask("-u") == "65534\n" && Ask("-g") == "65533\n" && Ask("-G") == "65533\n";
    Spawner::Stop();
    _exit(right ? 0 : 1);
  }
  int status = 0;
  REQUIRE(waitpid(pid, &status, 0) == pid);
  CHECK(status == 0);
}
