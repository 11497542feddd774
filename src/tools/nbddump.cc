// blk under the name nbddump: the bytes of an export in hexadecimal.
#include <unistd.h>

#include <csignal>
#include <string>

#include "src/tools/dump_text.h"
#include "src/tools/libnbd_names.h"
#include "src/tools/libnbd_options.h"
#include "src/tools/tool.h"
#include "src/tools/walk.h"

namespace blk {
namespace {

constexpr char kUsage[] = R"(
nbddump [OPTIONS] NBD-URI
nbddump [OPTIONS] -- [ COMMAND ARGUMENTS ... ]

Shows the bytes of a disk on an NBD server in hexadecimal. In place of a URI, COMMAND
is a server (nbdkit, qemu-nbd, ...) that is started for this by socket activation.

    -n N, --length=N, --limit=N    at most N bytes
    --offset=N                     from byte N on
    --color, --no-color            colours, and signs beyond ASCII (default: on a terminal)
    --help                         this text
    -V, --version                  the version

nbddump nbd://localhost
nbddump -- [ qemu-nbd -r -f qcow2 file.qcow2 ]

)";

struct DumpOptions {
  bool colour = false;
  uint64_t limit = UINT64_MAX, offset = 0;
};

LibnbdProgram MakeProgram(DumpOptions* options) {
  auto number = [](uint64_t* into, const char* option) {
    return [into, option](const char* text) -> absl::Status {
      auto value = ScanUnsigned64(text);
      if (!value)
        return absl::InvalidArgumentError(
            absl::StrCat("could not parse ", option, " option: ", text));
      *into = *value;
      return absl::OkStatus();
    };
  };
  auto length = number(&options->limit, "--length");
  constexpr auto kRequired = LibnbdRow::Value::kRequired;
  LibnbdProgram program{.name = "nbddump", .usage = kUsage, .short_options = "n:V", .rows = {}};
  program.rows = {{.name = "help"},
                  {.name = "long-options"},
                  {.name = "short-options"},
                  {.name = "version", .letter = 'V'}};
  AddLibnbdColourRows(&program.rows, &options->colour);
  program.rows.push_back({"length", kRequired, 'n', length});
  program.rows.push_back({"limit", kRequired, 0, length});
  program.rows.push_back(
      {"offset", kRequired, 0, number(&options->offset, "--offset"), /*newer=*/true});
  return program;
}

// Leaves a terminal in its own colours.
bool restore_colours = false;
void EndBySignal(int) {
  constexpr std::string_view kNewLine = "\n", kRestore = "\033[0m";
  [[maybe_unused]] ssize_t ignored = write(STDOUT_FILENO, kNewLine.data(), kNewLine.size());
  if (restore_colours) ignored = write(STDOUT_FILENO, kRestore.data(), kRestore.size());
  _exit(1);
}

Task<absl::Status> Dump(Device* device, DumpOptions options) {
  const uint64_t size = device->size();
  const uint64_t offset = std::min(options.offset, size);
  const uint64_t end = offset + std::min(options.limit, size - offset);
  DumpText text(end, /*never_folded=*/size, options.colour);
  co_return co_await WalkContent(
      device, offset, end,
      {.take_data = [&text](uint64_t at,
                            std::span<const char> bytes) { return text.Data(at, bytes); },
       .take_zero = [&text](uint64_t at, uint64_t length) { return text.Zero(at, length); }});
}

Task<absl::Status> OpenAndDump(Endpoint* server, DumpOptions options) {
  auto device = co_await server->Open({.connections = 1});
  absl::Status status = device.status();
  if (status.ok()) {
    for (int signal : {SIGINT, SIGQUIT, SIGTERM, SIGHUP}) std::signal(signal, EndBySignal);
    status = co_await Dump(device->get(), options);
  }
  (void)co_await server->Close();  // how the server ends does not matter: all was read
  co_return status;
}

}  // namespace

int NbddumpMain(std::span<const std::string> arguments) {
  DumpOptions options;
  options.colour = isatty(STDOUT_FILENO) == 1;
  const LibnbdProgram program = MakeProgram(&options);
  const std::string& name = arguments.front();
  int exit_status;
  auto words = ParseLibnbdOptions(program, name, arguments, &exit_status);
  if (!words) return exit_status;
  auto server = LibnbdServer(*words);
  if (!server) return WrongLibnbdUsage(program);
  if (!server->ok()) return LibnbdExitStatus(name, server->status());
  restore_colours = options.colour;
  LoopPool loops(1);
  return LibnbdExitStatus(name, loops.RunMain(OpenAndDump(&**server, options)));
}

}  // namespace blk
