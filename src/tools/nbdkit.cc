#include "src/tools/nbdkit.h"

#include <cstdio>
#include <cstdlib>

#include "src/tools/nbdkit_options.h"

namespace blk {
namespace {

// Without a plugin: what help and version say, or that there is none.
int WithoutPlugin(const NbdkitOptions& options) {
  if (options.help) {
    std::fputs(NbdkitUsage().c_str(), stdout);
    return EXIT_SUCCESS;
  }
  if (options.version) {
    std::printf("nbdkit %s\n", std::string(kNbdkitVersion).c_str());
    return EXIT_SUCCESS;
  }
  if (options.dump_plugin) {
    std::fputs(
        "nbdkit: use 'nbdkit plugin --dump-plugin' or\n"
        "'nbdkit /path/to/plugin.so --dump-plugin' or\n"
        "if you want to find out about the server use --dump-config\n",
        stderr);
    return EXIT_FAILURE;
  }
  std::fputs(
      "nbdkit: no plugins given on the command line.\n"
      "Use 'nbdkit --help' or read the nbdkit(1) manual page for documentation.\n",
      stderr);
  return EXIT_FAILURE;
}

}  // namespace

int NbdkitMain(std::span<const std::string> arguments) {
  NbdkitOptions options;
  if (auto ended = ParseNbdkitOptions(arguments, /*activated=*/false, &options)) return *ended;
  if (options.words.empty()) return WithoutPlugin(options);
  std::fputs("nbdkit: error: under this name blk does not serve yet; use `blk serve`\n", stderr);
  return EXIT_FAILURE;
}

}  // namespace blk
