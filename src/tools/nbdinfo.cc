// blk under the name nbdinfo: what NBD servers say of themselves and their exports.
#include <unistd.h>

#include <cstdio>
#include <string>

#include "src/tools/libnbd_names.h"
#include "src/tools/libnbd_options.h"
#include "src/tools/look.h"
#include "src/tools/map_text.h"
#include "src/tools/tool.h"
#include "src/tools/walk.h"

namespace blk {
namespace {

constexpr char kUsage[] = R"(
nbdinfo [OPTIONS] NBD-URI
nbdinfo [OPTIONS] -- [ COMMAND ARGUMENTS ... ]

Shows what an NBD server says of itself and of an export. In place of a URI, COMMAND is
a server (nbdkit, qemu-nbd, ...) that is started for this by socket activation.

    --size                      only the size, in bytes
    --is read-only|rotational|tls|uri
    --can connect|read|write|zero|trim|flush|fua|fast-zero|cache|df|multi-conn|
          structured-reply|extended-headers|block-status-payload|open
                                exit status 0 if so, 2 if not
    --map[=CONTEXT]             the extents (of base:allocation)
    --map[=CONTEXT] --totals    the bytes of each type of extent
    -L, --list                  all exports of the server
    --json                      as JSON
    --content, --no-content     whether file(1) is asked what is on the disk (default: not
                                with --list)
    --color, --no-color         colours (default: on a terminal)
    --help                      this text
    -V, --version               the version

nbdinfo nbd://localhost
nbdinfo --size "nbd+unix:///?socket=/tmp/unixsock"
nbdinfo --can trim nbd://localhost && fstrim /mnt
nbdinfo --map --totals -- [ qemu-nbd -r -f qcow2 file.qcow2 ]

)";

struct InfoOptions {
  bool colour = false, content = false, no_content = false, json = false, list = false;
  bool size = false, totals = false;
  std::optional<std::string> can, map;

  bool wants_content() const { return content || !(no_content || list || size); }
};

LibnbdProgram MakeProgram(InfoOptions* options) {
  using Value = LibnbdRow::Value;
  auto can = [options](const char* what) {
    options->can = what;
    return absl::OkStatus();
  };
  auto map = [options](const char* context) {
    options->map = context ? context : std::string(kBaseAllocation);
    return absl::OkStatus();
  };
  LibnbdProgram program{.name = "nbdinfo", .usage = kUsage, .short_options = "LV", .rows = {}};
  auto& rows = program.rows;
  rows = {{.name = "help"}, {"can", Value::kRequired, 0, can}};
  AddLibnbdColourRows(&rows, &options->colour);
  rows.insert(rows.end(), {LibnbdSwitch("content", &options->content),
                           LibnbdSwitch("no-content", &options->no_content),
                           {"is", Value::kRequired, 0, can},
                           LibnbdSwitch("json", &options->json),
                           LibnbdSwitch("list", &options->list, true, 'L'),
                           {.name = "long-options"},
                           {"map", Value::kOptional, 0, map},
                           {.name = "short-options"},
                           LibnbdSwitch("size", &options->size),
                           LibnbdSwitch("total", &options->totals),
                           LibnbdSwitch("totals", &options->totals),
                           {.name = "version", .letter = 'V'}});
  return program;
}

absl::Status CheckTogether(const InfoOptions& options) {
  auto wrong = [](std::string_view text) { return absl::InvalidArgumentError(text); };
  if (options.list + options.size + options.can.has_value() + options.map.has_value() > 1)
    return wrong("you cannot use --list, --map, --size and --can together.");
  if (options.content && options.no_content)
    return wrong("you cannot use --content and --no-content together.");
  if (options.totals && !options.map) return wrong("you must use --totals only with --map option.");
  return absl::OkStatus();
}

// What is printed, all at once and only when it is complete, and how it ended.
struct Outcome {
  std::string text;
  int exit_status = 0;
};

struct InfoJob {
  InfoOptions options;
  std::string name;  // for messages
  Endpoint server;
  Outcome outcome;
};

Task<absl::Status> Map(Device* device, InfoJob* job) {
  const std::string& context = *job->options.map;
  const Facts& facts = device->facts();
  bool known = context == kBaseAllocation ? facts.extents
                                          : std::find(facts.contexts.begin(), facts.contexts.end(),
                                                      context) != facts.contexts.end();
  if (!known)
    co_return absl::NotFoundError(
        absl::StrCat("--map: server does not support metadata context \"", context, "\""));
  MapText text(
      context,
      {.json = job->options.json, .totals = job->options.totals, .colour = job->options.colour});
  auto take = [&text](uint64_t offset, uint64_t length, uint64_t flags) {
    text.Take(offset, length, flags);
    return absl::OkStatus();
  };
  BLK_CO_RETURN_IF_ERROR(co_await WalkExtents(device, context, 0, device->size(), take));
  text.Finish(device->size());
  job->outcome.text = text.TakeText();
  co_return absl::OkStatus();
}

Task<absl::Status> OpenAndMap(InfoJob* job) {
  Endpoint::Wish wish{.connections = 1};
  if (*job->options.map != kBaseAllocation) wish.contexts = {*job->options.map};
  auto device = co_await job->server.Open(std::move(wish));
  if (!device.ok()) co_return device.status();
  co_return co_await Map(device->get(), job);
}

// An export that cannot be looked at does not keep the others from being shown.
void SayFailures(const Findings& findings, InfoJob* job) {
  for (const auto& [name, status] : findings.failures) {
    std::string which = name.empty() ? "the default export" : absl::StrCat("export: ", name);
    job->outcome.exit_status = LibnbdExitStatus(
        job->name, absl::UnknownError(absl::StrCat(status.message(), " for ", which)));
  }
  if (!findings.failures.empty() && !job->options.list)
    std::fprintf(stderr, "%s: suggestion: --list shows all exports on the server\n",
                 job->name.c_str());
}

Task<absl::Status> Look(InfoJob* job) {
  const InfoOptions& options = job->options;
  BLK_CO_ASSIGN_OR_RETURN(auto server, co_await job->server.NbdServer());
  BLK_CHECK(server.has_value());
  const bool questions = options.size || options.can;
  // As the program of this name does, but when it is asked about just that.
  server->extended_headers = options.can && options.can->find("xtended") != std::string::npos;
  server->contexts.clear();
  auto findings = co_await LookAtServer(
      *std::move(server), {.list = options.list,
                           .content = !questions && options.wants_content(),
                           .enter = questions,
                           .show_uri = job->server.kind() != Endpoint::Kind::kCaptive});
  if (!findings.ok()) co_return co_await job->server.Explain(findings.status());
  if (questions && findings->exports.empty()) co_return findings->failures.front().second;
  SayFailures(*findings, job);
  if (options.size) {
    job->outcome.text = absl::StrCat(findings->exports.front().size, "\n");
  } else if (options.can) {
    BLK_CO_ASSIGN_OR_RETURN(bool yes, CanOrIs(*findings, *options.can));
    job->outcome.exit_status = yes ? 0 : 2;
  } else if (!options.json) {
    job->outcome.text = FindingsText(*findings, options.colour);
  } else if (findings->failures.empty() || options.list) {
    job->outcome.text = FindingsJson(*findings);
  }
  co_return absl::OkStatus();
}

Task<absl::Status> Run(InfoJob* job) {
  absl::Status status = job->options.map ? co_await OpenAndMap(job) : co_await Look(job);
  (void)co_await job->server.Close();  // how the server ends does not matter: all was said
  co_return status;
}

}  // namespace

std::optional<absl::StatusOr<Endpoint>> LibnbdServer(std::span<const std::string> words) {
  if (words.size() == 1) return Endpoint::Uri(words.front());
  if (words.size() < 3 || words.front() != "[" || words.back() != "]") return std::nullopt;
  return Endpoint::Captive({words.begin() + 1, words.end() - 1});
}

int NbdinfoMain(std::span<const std::string> arguments) {
  InfoOptions options;
  options.colour = isatty(STDOUT_FILENO) == 1;
  const LibnbdProgram program = MakeProgram(&options);
  const std::string& name = arguments.front();
  int exit_status;
  auto words = ParseLibnbdOptions(program, name, arguments, &exit_status);
  if (!words) return exit_status;
  // A question about the word alone: no server is asked.
  if (options.can == "uri" && words->size() == 1)
    return nbd::LooksLikeNbdUri(words->front()) ? 0 : 2;
  auto server = LibnbdServer(*words);
  if (!server) return WrongLibnbdUsage(program);
  if (absl::Status status = CheckTogether(options); !status.ok())
    return LibnbdExitStatus(name, status);
  if (!server->ok()) return LibnbdExitStatus(name, server->status());
  LoopPool loops(1);
  InfoJob job{.options = options, .name = name, .server = **std::move(server), .outcome = {}};
  if (absl::Status status = loops.RunMain(Run(&job)); !status.ok())
    return LibnbdExitStatus(name, status);
  std::fwrite(job.outcome.text.data(), 1, job.outcome.text.size(), stdout);
  return job.outcome.exit_status;
}

}  // namespace blk
