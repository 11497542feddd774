// `blk info`: what a disk or an NBD server says of itself, as nbdinfo prints it.
#include <cstdio>

#include "src/tools/inspect.h"
#include "src/tools/look.h"

namespace blk {
namespace {

struct InfoConfig : CommonOptions {
  bool json = false;
  bool list = false;
  bool size = false;
  std::string can;
  std::string is;
  std::optional<bool> content;
};

const ParamTable<InfoConfig>& InfoRows() {
  static const auto& table = *[] {
    auto* rows = new ParamTable<InfoConfig>;
    using C = InfoConfig;
    rows->Param("json", &C::json, {.help = "print JSON"})
        .Param("list", &C::list, {.help = "all exports of an NBD server", .letter = 'L'})
        .Param("size", &C::size, {.help = "print the size alone, in bytes"})
        .Param("can", &C::can,
               {.help = "exit status 0 if the disk can do this, 2 if not: read, write, zero, trim, "
                        "flush, fua, fast-zero, cache, df, multi-conn, connect, "
                        "structured-reply, extended-headers, block-status-payload, tls",
                .word = "WHAT"})
        .Param("is", &C::is,
               {.help = "exit status 0 if the disk is this, 2 if not: read-only, rotational",
                .word = "WHAT"})
        .Param("content", &C::content, {.help = "guess what is on the disk (runs file(1))"});
    return &AddCommonOptions(*rows);
  }();
  return table;
}

void Print(const Findings& findings, const InfoConfig& config) {
  std::string text;
  const uint64_t size = config.size ? findings.exports.front().size : 0;
  if (config.size) {
    text = config.json ? absl::StrCat("{ \"size\": ", size, " }\n") : absl::StrCat(size, "\n");
  } else {
    text = config.json ? FindingsJson(findings) : FindingsText(findings);
  }
  std::fwrite(text.data(), 1, text.size(), stdout);
}

struct InfoJob {
  InfoConfig config;
  Endpoint disk;
  int exit_status = 0;
};

Task<absl::StatusOr<Findings>> Look(InfoJob* job) {
  const bool questions = job->config.size || !job->config.can.empty() || !job->config.is.empty();
  const bool content = job->config.content.value_or(!job->config.list) && !questions;
  BLK_CO_ASSIGN_OR_RETURN(auto server, co_await job->disk.NbdServer());
  if (!server) {
    if (job->config.list)
      co_return absl::InvalidArgumentError("--list asks an NBD server; name one by its URI");
    BLK_CO_ASSIGN_OR_RETURN(DevicePtr device, co_await job->disk.Open({.connections = 1}));
    co_return co_await LookAtDevice(device.get(), content);
  }
  const bool meaningful_uri = job->disk.kind() != Endpoint::Kind::kCaptive;
  auto findings = co_await LookAtServer(*server, {.list = job->config.list,
                                                  .content = content,
                                                  .enter = questions,
                                                  .show_uri = meaningful_uri});
  absl::Status status = findings.status();
  if (findings.ok() && findings->exports.empty() && !findings->failures.empty())
    status = findings->failures.front().second;
  if (!status.ok()) co_return co_await job->disk.Explain(status);
  co_return findings;
}

Task<absl::Status> Info(InfoJob* job) {
  auto findings = co_await Look(job);
  absl::Status status = findings.status();
  if (status.ok()) {
    const std::string& question = job->config.can.empty() ? job->config.is : job->config.can;
    if (!question.empty()) {
      auto yes = CanOrIs(*findings, question);
      status = yes.status();
      if (yes.ok()) job->exit_status = *yes ? 0 : 2;
    } else {
      Print(*findings, job->config);
      if (!findings->failures.empty())  // of a list
        status = Annotate(findings->failures.front().second,
                          absl::StrCat("export \"", findings->failures.front().first, "\""));
    }
  }
  absl::Status closed = co_await job->disk.Close();
  co_return status.ok() ? closed : status;
}

int InfoMain(std::span<const std::string> arguments) {
  InfoConfig config;
  int exit_status = 0;
  auto words = ParseTool("info", InfoRows(), &config, arguments, &exit_status, {.brackets = true});
  if (!words) return exit_status;
  auto fail = [](const absl::Status& status) { return ExitStatusOf("info", status); };
  auto disks = SplitEndpoints(*words);
  if (!disks.ok()) return fail(disks.status());
  if (disks->size() != 1)
    return fail(absl::InvalidArgumentError(
        absl::StrCat("name one disk or server; ", disks->size(), " given")));
  int questions = config.list + config.size + !config.can.empty() + !config.is.empty();
  if (questions > 1)
    return fail(absl::InvalidArgumentError("--list, --size, --can and --is exclude each other"));
  auto disk = Endpoint::Parse((*disks)[0]);
  if (!disk.ok()) return fail(disk.status());
  LoopPool loops(1);
  InfoJob job{config, *std::move(disk)};
  absl::Status status = loops.RunMain(Info(&job));
  return status.ok() ? job.exit_status : fail(status);
}

}  // namespace

Tool InfoTool() {
  return {.name = "info",
          .summary = "show the size, the features and the exports of a disk or an NBD server",
          .synopsis = "[OPTIONS] DISK",
          .examples = {{"blk info nbd://localhost", "what the default export can do"},
                       {"blk info --list --json nbd://localhost", "all exports, as JSON"},
                       {"blk info --size disk.img", "its size in bytes"},
                       {"blk info --can trim nbd://localhost && echo yes", "in a script"}},
          .rows = []() -> const ParamRows& { return InfoRows(); },
          .run = InfoMain};
}

}  // namespace blk
