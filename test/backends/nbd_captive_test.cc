#include "src/backends/nbd_captive.h"

#include <doctest/doctest.h>
#include <unistd.h>

#include <filesystem>

#include "absl/strings/str_replace.h"
#include "src/core/loop.h"
#include "src/core/stream.h"
#include "test/temporary.h"

using namespace blk;

namespace {

struct Seen {
  absl::Status started, explained, stopped;
  std::string uri;
  bool connected = false, socket_was_there = false, directory_is_left = false;
};

// Starts a captive server, waits until it has made the file `ready` (if named), connects to it,
// asks it to explain a failure, and stops it.
Task<Seen> Use(std::string script, absl::Status failure, std::string ready) {
  Seen seen;
  auto server = co_await CaptiveServer::Start({"sh", "-c", std::move(script)});
  seen.started = server.status();
  if (!server.ok()) co_return seen;
  seen.uri = (*server)->uri();
  std::filesystem::path socket = seen.uri.substr(seen.uri.find("socket=") + 7);
  seen.socket_was_there = std::filesystem::is_socket(socket);
  for (int i = 0; i < 2000 && !ready.empty() && !std::filesystem::exists(ready); ++i)
    (void)co_await Loop::Current()->Sleep(5'000'000);
  auto stream = co_await ConnectUnix(socket);
  seen.connected = stream.ok();
  seen.explained = co_await (*server)->Explain(failure);
  seen.stopped = co_await (*server)->Stop();
  seen.directory_is_left = std::filesystem::exists(socket.parent_path());
  co_return seen;
}

Seen TryServer(const std::string& script, absl::Status failure = absl::OkStatus(),
               const std::string& ready = "") {
  LoopPool pool(1);
  Seen seen = pool.RunMain(Use(script, std::move(failure), ready));
  REQUIRE_MESSAGE(seen.started.ok(), seen.started.ToString());
  CHECK(seen.uri.starts_with("nbd+unix://"));
  CHECK(seen.uri.find("socket=/tmp/blk") != std::string::npos);
  CHECK(seen.socket_was_there);
  CHECK(!seen.directory_is_left);
  return seen;
}

absl::Status Reset() { return ErrnoErrorAsIs(ECONNRESET, "the peer closed the connection"); }

}  // namespace

TEST_CASE("a captive server gets its socket, the variables and SIGTERM, and leaves nothing") {
  TemporaryDirectory directory;
  std::string script =
      "[ $LISTEN_PID = $$ ] && [ $LISTEN_FDS = 1 ] && [ -S /proc/self/fd/3 ] || exit 9\n"
      "trap 'echo right > RESULT; exit 0' TERM\n: > READY\nwhile :; do sleep 0.02; done";
  script = absl::StrReplaceAll(script,
                               {{"RESULT", directory / "result"}, {"READY", directory / "ready"}});
  Seen seen = TryServer(script, absl::OkStatus(), directory / "ready");
  CHECK(seen.connected);
  CHECK_MESSAGE(seen.stopped.ok(), seen.stopped.ToString());
  CHECK(ReadWholeFile(directory / "result") == "right\n");
}

TEST_CASE("a server that SIGTERM ends has ended as it should") {
  CHECK(TryServer("exec sleep 1000").stopped.ok());
  CHECK(TryServer("trap 'exit 143' TERM; while :; do sleep 0.02; done").stopped.ok());
}

TEST_CASE("failures are explained by the server's early end, and only by that") {
  Seen early = TryServer("exit 7", Reset());
  CHECK(ErrnoOf(early.explained) == ECONNRESET);
  CHECK(early.explained.message().starts_with(
      "[ sh -c exit 7 ]: the server ended too early, with exit status 7"));
  CHECK(ErrnoOf(early.stopped) == EIO);
  CHECK(early.stopped.message() == "[ sh -c exit 7 ]: the server failed with exit status 7");
  Seen alive = TryServer("exec sleep 1000", Reset());
  CHECK(alive.explained == Reset());
  CHECK(TryServer("exit 0").explained.ok());
}

TEST_CASE("a captive server whose command is missing is an error that names it") {
  LoopPool pool(1);
  auto server = pool.RunMain(CaptiveServer::Start({"/no/such/server", "x"}));
  CHECK(ErrnoOf(server.status()) == ENOENT);
  CHECK(server.status().message() ==
        "[ /no/such/server x ]: /no/such/server: cannot run it: No such file or directory");
}
