// blk: one program for disks and disk images. This file only finds the subcommand, or the program
// that blk is by its name.
#include <fcntl.h>

#include <clocale>
#include <csignal>
#include <cstdio>

#include "src/core/process.h"
#include "src/core/suggest.h"
#include "src/tools/names.h"
#include "src/tools/tool.h"

namespace {

constexpr std::string_view kVersion = "0.1.0";

void PrintUsage(FILE* out) {
  std::fputs("blk TOOL [OPTIONS] …\n\nTools:\n", out);
  for (const blk::Tool& tool : blk::Tools())
    std::fprintf(out, "  %-8s %s\n", std::string(tool.name).c_str(),
                 std::string(tool.summary).c_str());
  std::fputs("\n`blk TOOL -h` explains one of them; `blk list` shows the backends and filters.\n",
             out);
}

int RunTool(const std::string& name, std::span<const std::string> arguments) {
  const blk::Tool* tool = blk::FindTool(name);
  if (tool) return tool->run(arguments);
  std::vector<std::string_view> names;
  for (const blk::Tool& known : blk::Tools()) names.push_back(known.name);
  std::string hint = blk::DidYouMean(name, names);
  std::fprintf(stderr, "blk: error: there is no tool `%s`%s; `blk --help` lists them\n",
               name.c_str(), hint.c_str());
  return 1;
}

// `run` with programs to be started. Before any thread: they are started by a small process of its
// own.
template <typename Run>
int WithSpawner(Run run) {
  if (absl::Status status = blk::Spawner::Start(); !status.ok()) {
    std::fprintf(stderr, "blk: error: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  int exit_status = run();
  blk::Spawner::Stop();
  return exit_status;
}

// Whoever started us may have closed them: no socket of ours may get their numbers.
void OpenStandardDescriptors() {
  for (int fd = 0; fd < 3; ++fd)
    if (fcntl(fd, F_GETFD) < 0) (void)!open("/dev/null", O_RDWR);
}

}  // namespace

int main(int argc, char** argv) {
  OpenStandardDescriptors();
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);  // a write past a file size limit is EFBIG, not death
  std::vector<std::string> arguments(argv, argv + argc);
  if (const blk::OldName* old = blk::FindOldName(argc > 0 ? argv[0] : ""))
    return WithSpawner([&] { return old->run(arguments); });
  if (argc > 0) arguments.erase(arguments.begin());
  if (arguments.empty()) {
    PrintUsage(stderr);
    return 1;
  }
  if (arguments[0] == "--version" || arguments[0] == "-V") {
    std::printf("blk %s\n", std::string(kVersion).c_str());
    return 0;
  }
  if (arguments[0] == "--help" || arguments[0] == "-h") {
    PrintUsage(stdout);
    return 0;
  }
  return WithSpawner([&] { return RunTool(arguments[0], std::span(arguments).subspan(1)); });
}
