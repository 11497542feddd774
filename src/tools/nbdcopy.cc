// blk under the name nbdcopy: copies to, from and between NBD servers.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstdio>
#include <string>

#include "absl/strings/match.h"
#include "src/core/trace.h"
#include "src/core/units.h"
#include "src/tools/copy_job.h"
#include "src/tools/libnbd_names.h"
#include "src/tools/libnbd_options.h"
#include "src/tools/tool.h"

namespace blk {
namespace {

constexpr char kUsage[] = R"(
nbdcopy [OPTIONS] SOURCE DESTINATION

Copies a disk to, from or between NBD servers. SOURCE and DESTINATION are each an NBD
URI, a file, a block device, `-` (standard input, standard output) or a server that is
started for this: [ COMMAND ARGUMENTS ... ]. DESTINATION may be null:, which forgets.

    --allocated                  allocate zeroes on the destination, make no holes
    -C N, --connections=N        connections to a server that allows several (4)
    --destination-is-zero, --target-is-zero
                                 the destination reads as zeroes: write only data
    --flush                      flush the destination at the end
    --no-extents                 do not ask the source where its holes are
    -p, --progress               show progress on standard error
    --progress=FD                write N/100 lines to this descriptor
    --queue-size=N               most bytes in flight (16M)
    --request-size=N             bytes of a request, a power of 2 (256K)
    -R N, --requests=N           requests in flight on a connection (64)
    -S N, --sparse=N             smallest run of zeroes to find in data (4096); 0: none
    --synchronous                one request at a time, in order
    -T N, --threads=N            threads (0: one for each processor)
    -v, --verbose                say what is copied and how
    --help                       this text
    -V, --version                the version

nbdcopy nbd://example.com local.img
nbdcopy local.img nbd://example.com
nbdcopy nbd://example.com - | file -
nbdcopy -- [ qemu-nbd -r -f qcow2 disk.qcow2 ] [ nbdkit memory 1G ]

)";

constexpr uint32_t kRequestBytesMin = 4096, kRequestBytesMax = 32 << 20;
constexpr uint32_t kSparseBytesMin = 512;
constexpr uint64_t kSegmentBytes = 128 << 20;  // that a thread of nbdcopy takes at a time

struct CopyChoices {
  bool allocated = false, destination_is_zero = false, extents = true, flush = false;
  bool progress = false, synchronous = false, verbose = false;
  uint32_t connections = 4, requests = 64, threads = 0;
  uint32_t queue_bytes = 16 << 20, request_bytes = 256 << 10, sparse_bytes = 4096;
  int progress_fd = -1;
};

absl::Status CannotParse(std::string_view option, const char* text) {
  return absl::InvalidArgumentError(absl::StrCat(option, ": could not parse: ", text));
}

// A row with a number; `valid` says what is wrong with one.
LibnbdRow NumberRow(const char* name, char letter, uint32_t* into,
                    std::function<absl::Status(uint32_t, const char*)> check) {
  auto take = [name, into, check](const char* text) -> absl::Status {
    auto value = ScanUnsigned(text);
    if (!value) return CannotParse(absl::StrCat("--", name), text);
    *into = *value;
    return check ? check(*value, text) : absl::OkStatus();
  };
  return {.name = name, .value = LibnbdRow::Value::kRequired, .letter = letter, .take = take};
}

LibnbdRow ProgressRow(CopyChoices* choices) {
  auto take = [choices](const char* text) -> absl::Status {
    choices->progress = true;
    if (!text) return absl::OkStatus();
    bool parsed = std::sscanf(text, "%d", &choices->progress_fd) == 1 && choices->progress_fd >= 0;
    return parsed ? absl::OkStatus() : CannotParse("--progress", text);
  };
  return {.name = "progress", .value = LibnbdRow::Value::kOptional, .letter = 'p', .take = take};
}

LibnbdProgram MakeProgram(CopyChoices* choices) {
  auto at_least_1 = [](std::string option) {
    return [option](uint32_t value, const char* text) {
      return value ? absl::OkStatus() : CannotParse(option, text);
    };
  };
  auto check_request = [](uint32_t bytes, const char*) -> absl::Status {
    if (bytes >= kRequestBytesMin && bytes <= kRequestBytesMax && std::has_single_bit(bytes))
      return absl::OkStatus();
    return absl::InvalidArgumentError(absl::StrCat("--request-size: must be a power of 2 within ",
                                                   kRequestBytesMin, "-", kRequestBytesMax));
  };
  auto check_sparse = [](uint32_t bytes, const char*) -> absl::Status {
    if (bytes == 0 || (bytes >= kSparseBytesMin && std::has_single_bit(bytes)))
      return absl::OkStatus();
    return absl::InvalidArgumentError("--sparse: must be a power of 2 and >= 512");
  };
  LibnbdProgram program{
      .name = "nbdcopy", .usage = kUsage, .short_options = "C:pR:S:T:vV", .rows = {}};
  program.rows = {{.name = "help"},
                  {.name = "long-options"},
                  LibnbdSwitch("allocated", &choices->allocated),
                  NumberRow("connections", 'C', &choices->connections, at_least_1("--connections")),
                  LibnbdSwitch("destination-is-zero", &choices->destination_is_zero),
                  LibnbdSwitch("flush", &choices->flush),
                  LibnbdSwitch("no-extents", &choices->extents, false),
                  ProgressRow(choices),
                  NumberRow("queue-size", 0, &choices->queue_bytes, nullptr),
                  NumberRow("request-size", 0, &choices->request_bytes, check_request),
                  NumberRow("requests", 'R', &choices->requests, at_least_1("--requests")),
                  {.name = "short-options"},
                  NumberRow("sparse", 'S', &choices->sparse_bytes, check_sparse),
                  LibnbdSwitch("synchronous", &choices->synchronous),
                  LibnbdSwitch("target-is-zero", &choices->destination_is_zero),
                  NumberRow("threads", 'T', &choices->threads, nullptr),
                  LibnbdSwitch("verbose", &choices->verbose, true, 'v'),
                  {.name = "version", .letter = 'V'}};
  return program;
}

// ---- The two ends

bool IsNbdUri(std::string_view text) {
  for (std::string_view scheme :
       {"nbd:", "nbds:", "nbd+unix:", "nbds+unix:", "nbd+vsock:", "nbds+vsock:"})
    if (absl::StartsWith(text, scheme)) return true;
  return false;
}

absl::StatusOr<Endpoint> OpenStream(const std::string& name, bool writing) {
  if (name == "-") {
    if (writing && isatty(STDOUT_FILENO))
      return absl::InvalidArgumentError("refusing to write to tty");
    return Endpoint::Stream(name, writing ? STDOUT_FILENO : STDIN_FILENO);
  }
  int fd = open(name.c_str(), (writing ? O_WRONLY : O_RDONLY) | O_CLOEXEC | O_NOCTTY);
  if (fd < 0) return ErrnoError(errno, name);
  return Endpoint::Stream(name, fd);  // open until the end of the program
}

// A file, a block device, or whatever else has a path or is `-`.
absl::StatusOr<Endpoint> Local(const std::string& name, bool writing) {
  if (name == "-") return OpenStream(name, writing);
  struct stat info;
  if (stat(name.c_str(), &info) < 0) {
    if (!writing || errno != ENOENT) return ErrnoError(errno, name);
    return Endpoint::Path(name);
  }
  if (S_ISDIR(info.st_mode)) return ErrnoError(EISDIR, name);
  if (!S_ISREG(info.st_mode) && !S_ISBLK(info.st_mode)) return OpenStream(name, writing);
  return Endpoint::Path(name);
}

// Takes one end off the front of `*words`. Nothing when they are wrong.
std::optional<absl::StatusOr<Endpoint>> TakeEnd(std::span<const std::string>* words, bool writing) {
  if (words->empty()) return std::nullopt;
  const std::string& word = words->front();
  if (word == "[") {
    auto close = std::find(words->begin(), words->end(), "]");
    if (close == words->end() || close - words->begin() < 2) return std::nullopt;
    Endpoint end = Endpoint::Captive({words->begin() + 1, close});
    *words = {close + 1, words->end()};
    return end;
  }
  *words = words->subspan(1);
  if (writing && word == "null:") return Endpoint::Null();
  return IsNbdUri(word) ? Endpoint::Uri(word) : Local(word, writing);
}

std::string_view KindText(const Endpoint& end) {
  switch (end.kind()) {
    case Endpoint::Kind::kNull:
      return "null_ops";
    case Endpoint::Kind::kStream:
      return "pipe_ops";
    case Endpoint::Kind::kCaptive:
      return "nbd_ops";
    case Endpoint::Kind::kStack:
      return end.path().empty() ? "nbd_ops" : "file_ops";
  }
  return "";
}

void SayEnd(std::string_view which, std::string_view kind, const std::string& name,
            const Device* device) {
  std::string size = device ? absl::StrCat(device->size()) : "-1";
  std::string human = device ? FormatSize(device->size()) : "unknown";
  uint32_t preferred = device ? device->facts().block.preferred : limits::kPreferredBlockBytes;
  std::string text =
      absl::StrCat("nbdcopy: ", which, ": ", kind, " \"", name, "\"\nnbdcopy: ", which,
                   ": size=", size, " (", human, "), preferred block size=", preferred, "\n");
  std::fputs(text.c_str(), stderr);
}

// ---- The copy

CopyOptions EngineOptions(const CopyChoices& choices, int connections) {
  CopyOptions options;
  options.request_bytes = choices.request_bytes;
  options.queue_bytes_max = std::max(choices.queue_bytes, choices.request_bytes);
  options.requests_max = static_cast<size_t>(choices.requests) * connections;
  options.sparse_bytes = choices.allocated ? 0 : choices.sparse_bytes;
  options.extents = choices.extents;
  options.allocated = choices.allocated;
  options.destination_is_zero = choices.destination_is_zero;
  options.flush = choices.flush;
  options.whole_requests = true;
  options.segment_bytes = kSegmentBytes;
  if (choices.synchronous) {
    options.requests_max = 1;
    options.queue_bytes_max = options.request_bytes;
  }
  return options;
}

// With both ends open: requests are not smaller than what an end prefers, nor are holes.
absl::Status Opened(const CopyChoices& choices, int connections, const Endpoint& source_end,
                    const Endpoint& target_end, Device* source, Device* target,
                    CopyOptions* options) {
  for (Device* device : {source, target})
    if (device)
      options->request_bytes = std::clamp<uint64_t>(device->facts().block.preferred,
                                                    options->request_bytes, kRequestBytesMax);
  options->queue_bytes_max = std::max(options->queue_bytes_max, options->request_bytes);
  if (target && options->sparse_bytes)
    options->sparse_bytes =
        std::max<uint64_t>(options->sparse_bytes, target->facts().block.preferred);
  if (source && target && source->size() > target->size())
    return absl::InvalidArgumentError("error: destination size is smaller than source size");
  if (!choices.verbose) return absl::OkStatus();
  SayEnd("src", KindText(source_end), source_end.text(), source);
  SayEnd("dst", KindText(target_end), target_end.text(), target);
  std::fprintf(stderr, "nbdcopy: connections=%d requests=%u threads=%d synchronous=%s\n",
               connections, choices.requests, connections, choices.synchronous ? "true" : "false");
  return absl::OkStatus();
}

ProgressChoice ChooseProgress(const CopyChoices& choices) {
  using Form = ProgressChoice::Form;
  if (!choices.progress) return {};
  if (choices.progress_fd >= 0) return {Form::kPercent, choices.progress_fd};
  return {isatty(STDERR_FILENO) ? Form::kBar : Form::kPercent, STDERR_FILENO};
}

absl::Status CopyBetween(CopyChoices choices, Endpoint source, Endpoint target) {
  bool captive = false;
  for (const Endpoint* end : {&source, &target}) {
    captive |= end->kind() == Endpoint::Kind::kCaptive;
    choices.synchronous |= end->kind() == Endpoint::Kind::kStream;
  }
  // A connection is served by one thread, and a captive server may take one client only.
  const int threads = LoopCount(static_cast<int>(std::min(choices.threads, 1024u)));
  const int connections = captive || choices.synchronous
                              ? 1
                              : static_cast<int>(std::min<uint32_t>(choices.connections, threads));
  SetVerbose(choices.verbose);
  LoopPool loops(std::min(connections, CopyLoopCount(static_cast<int>(choices.threads), target)));
  CopyJob job{.options = EngineOptions(choices, connections),
              .source = std::move(source),
              .target = std::move(target),
              .connections = connections,
              .progress = ChooseProgress(choices),
              .loops = &loops};
  job.opened = [&](Device* from, Device* to, CopyOptions* options) {
    return Opened(choices, connections, job.source, job.target, from, to, options);
  };
  return loops.RunMain(RunCopy(&job));
}

}  // namespace

int NbdcopyMain(std::span<const std::string> arguments) {
  CopyChoices choices;
  const LibnbdProgram program = MakeProgram(&choices);
  const std::string name = arguments.front().substr(arguments.front().rfind('/') + 1);
  int exit_status;
  auto words = ParseLibnbdOptions(program, name, arguments, &exit_status);
  if (!words) return exit_status;
  if (words->size() < 2) return WrongLibnbdUsage(program);
  std::span<const std::string> rest = *words;
  auto source = TakeEnd(&rest, /*writing=*/false);
  if (!source) return WrongLibnbdUsage(program);
  if (!source->ok()) return LibnbdExitStatus(name, source->status());
  auto target = TakeEnd(&rest, /*writing=*/true);
  if (!target || !rest.empty()) return WrongLibnbdUsage(program);
  if (!target->ok()) return LibnbdExitStatus(name, target->status());
  return LibnbdExitStatus(name, CopyBetween(choices, **std::move(source), **std::move(target)));
}

}  // namespace blk
