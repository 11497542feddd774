// `blk info`: what a disk or an NBD server says of itself, as nbdinfo prints it.
#include <cstdio>

#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "src/backends/nbd_connect.h"
#include "src/core/param_text.h"
#include "src/core/process.h"
#include "src/core/suggest.h"
#include "src/proto/session_server.h"
#include "src/tools/inspect.h"

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

// One export, or one disk of this process.
struct Report {
  std::string name = {};
  std::string canonical_name = {};
  std::string description = {};
  std::string content = {};
  std::string uri = {};
  std::vector<std::string> contexts = {};
  uint64_t size = 0;
  uint16_t flags = 0;
  std::optional<nbd::BlockSizes> block_sizes = std::nullopt;
};

struct Server {
  bool nbd = false;
  std::string protocol;
  bool tls = false;
  nbd::ReplyStyle style = nbd::ReplyStyle::kSimple;
};

struct Feature {
  std::string_view key;
  uint16_t flag;
};
// In the order in which they are printed.
constexpr Feature kFeatures[] = {{"is_rotational", nbd::kFlagRotational},
                                 {"is_read_only", nbd::kFlagReadOnly},
                                 {"can_block_status_payload", nbd::kFlagBlockStatusPayload},
                                 {"can_cache", nbd::kFlagSendCache},
                                 {"can_df", nbd::kFlagSendDf},
                                 {"can_fast_zero", nbd::kFlagSendFastZero},
                                 {"can_flush", nbd::kFlagSendFlush},
                                 {"can_fua", nbd::kFlagSendFua},
                                 {"can_multi_conn", nbd::kFlagCanMultiConn},
                                 {"can_trim", nbd::kFlagSendTrim},
                                 {"can_zero", nbd::kFlagSendWriteZeroes}};

// Control characters of strangers do not reach the terminal.
std::string Printable(std::string_view text) {
  std::string result;
  for (char c : text) {
    if (static_cast<unsigned char>(c) < 32 || c == 127) {
      absl::StrAppendFormat(&result, "\\x%02x", static_cast<unsigned char>(c));
    } else {
      result += c;
    }
  }
  return result;
}

std::string SizeText(uint64_t size) {
  std::string exact = absl::StrCat(size), human = FormatSize(size);
  return exact == human ? exact : absl::StrCat(exact, " (", human, ")");
}

void PrintServer(const Server& server) {
  if (!server.nbd) return;
  constexpr std::string_view kPackets[] = {"simple", "structured", "extended"};
  std::printf("protocol: %s %s TLS, using %s packets\n", server.protocol.c_str(),
              server.tls ? "with" : "without",
              std::string(kPackets[static_cast<int>(server.style)]).c_str());
}

void PrintReport(const Server& server, const Report& r) {
  std::printf("export=\"%s\":\n", Printable(r.name).c_str());
  if (!r.description.empty()) std::printf("\tdescription: %s\n", Printable(r.description).c_str());
  if (!r.canonical_name.empty() && r.canonical_name != r.name)
    std::printf("\tcanonical-name: %s\n", Printable(r.canonical_name).c_str());
  std::printf("\texport-size: %s\n", SizeText(r.size).c_str());
  if (!r.content.empty()) std::printf("\tcontent: %s\n", Printable(r.content).c_str());
  if (!r.uri.empty()) std::printf("\turi: %s\n", Printable(r.uri).c_str());
  if (!r.contexts.empty()) {
    std::printf("\tcontexts:\n");
    for (const std::string& context : r.contexts)
      std::printf("\t\t%s\n", Printable(context).c_str());
  }
  for (const Feature& feature : kFeatures) {
    if (feature.flag == nbd::kFlagBlockStatusPayload && server.style != nbd::ReplyStyle::kExtended)
      continue;
    std::printf("\t%s: %s\n", std::string(feature.key).c_str(),
                r.flags & feature.flag ? "true" : "false");
  }
  if (r.block_sizes) {
    std::printf("\tblock_size_minimum: %u\n", r.block_sizes->minimum);
    std::printf("\tblock_size_preferred: %u\n", r.block_sizes->preferred);
    std::printf("\tblock_size_maximum: %u\n", r.block_sizes->maximum);
  }
}

std::string ReportJson(const Server& server, const Report& r) {
  std::vector<std::string> rows;
  auto text = [&](std::string_view key, std::string_view value) {
    rows.push_back(absl::StrCat("\t\"", key, "\": ", JsonQuote(value)));
  };
  text("export-name", r.name);
  if (!r.description.empty()) text("description", r.description);
  if (!r.canonical_name.empty() && r.canonical_name != r.name)
    text("canonical-name", r.canonical_name);
  if (!r.content.empty()) text("content", r.content);
  if (!r.uri.empty()) text("uri", r.uri);
  if (!r.contexts.empty()) {
    std::vector<std::string> names;
    for (const std::string& context : r.contexts)
      names.push_back(absl::StrCat("\t\t", JsonQuote(context)));
    rows.push_back(absl::StrCat("\t\"contexts\": [\n", absl::StrJoin(names, ",\n"), "\n\t]"));
  }
  for (const Feature& feature : kFeatures) {
    if (feature.flag == nbd::kFlagBlockStatusPayload && server.style != nbd::ReplyStyle::kExtended)
      continue;
    rows.push_back(
        absl::StrCat("\t\"", feature.key, "\": ", r.flags & feature.flag ? "true" : "false"));
  }
  if (r.block_sizes) {
    rows.push_back(absl::StrCat("\t\"block_size_minimum\": ", r.block_sizes->minimum));
    rows.push_back(absl::StrCat("\t\"block_size_preferred\": ", r.block_sizes->preferred));
    rows.push_back(absl::StrCat("\t\"block_size_maximum\": ", r.block_sizes->maximum));
  }
  rows.push_back(absl::StrCat("\t\"export-size\": ", r.size));
  text("export-size-str", FormatSize(r.size));
  return absl::StrCat("\t{\n", absl::StrJoin(rows, ",\n"), "\n\t}");
}

// ---- Finding out

// What file(1) makes of the first bytes; "" without file(1), or when they cannot be read.
Task<std::string> GuessContent(Device* device) {
  constexpr size_t kProbeBytes = 8192;
  std::string probe(std::min<uint64_t>(kProbeBytes, device->size()), '\0');
  probe.resize(probe.size() - probe.size() % device->facts().block.minimum);
  Call call;
  if (probe.empty() || !(co_await device->Read(call, 0, probe)).ok()) co_return "";
  Command command;
  command.argv = {"file", "-b", "-"};
  auto output = co_await RunCommand(std::move(command), std::move(probe),
                                    {.output_bytes_max = 4096, .timeout_ns = 10'000'000'000});
  if (!output.ok() || !output->status.ok()) co_return "";
  std::string text = output->output.substr(0, output->output.find('\n'));
  co_return text;
}

Report ReportOf(const nbd::ServerExport& e, nbd::Uri uri, std::vector<std::string> contexts) {
  Report report{.name = e.name,
                .canonical_name = e.canonical_name,
                .description = e.description,
                .contexts = std::move(contexts),
                .size = e.size_bytes,
                .flags = e.flags};
  uri.export_name = e.name;
  report.uri = uri.ToString();
  if (e.block_sizes_told) report.block_sizes = e.block_sizes;
  return report;
}

struct Findings {
  Server server;
  std::vector<Report> reports;
};

Task<absl::StatusOr<Report>> AskServer(NbdHandshake* connection, const NbdConnectOptions& options,
                                       std::string name, Server* server) {
  auto contexts = co_await connection->handshake().ListMetaContexts(name, {});
  auto described = co_await connection->handshake().Info(name);
  if (!described.ok()) co_return described.status();
  server->style = described->style;
  co_return ReportOf(*described, options.uri,
                     contexts.ok() ? *std::move(contexts) : std::vector<std::string>());
}

Task<absl::StatusOr<Findings>> LookAtServer(NbdConnectOptions options, bool list) {
  Findings findings;
  findings.server.nbd = true;
  BLK_CO_ASSIGN_OR_RETURN(auto connection, co_await NbdHandshake::Open(options));
  constexpr std::string_view kStyles[] = {"oldstyle", "newstyle", "newstyle-fixed"};
  findings.server.protocol = kStyles[static_cast<int>(connection->handshake().handshake_style())];
  findings.server.tls = connection->handshake().tls();
  std::vector<std::string> names = {options.uri.export_name};
  if (list) {
    auto exports = co_await connection->handshake().List();
    if (!exports.ok()) {
      co_await connection->Close();
      co_return exports.status();
    }
    names.clear();
    for (const nbd::ListedExport& entry : *exports) names.push_back(entry.name);
  }
  absl::Status failure;
  for (const std::string& name : names) {
    auto report = co_await AskServer(connection.get(), options, name, &findings.server);
    if (report.ok()) {
      findings.reports.push_back(*std::move(report));
    } else if (!list) {
      failure = report.status();
    }
  }
  co_await connection->Close();
  if (!failure.ok() && ErrnoOf(failure) != EOPNOTSUPP) co_return failure;
  if (!failure.ok()) {  // a server without INFO: enter the export and see
    BLK_CO_ASSIGN_OR_RETURN(NbdConnection entered, co_await ConnectNbd(options));
    co_await entered.session->Close();
    Report report{
        .name = options.uri.export_name,
        .uri = options.uri.ToString(),
        .contexts = entered.facts.extents ? entered.facts.contexts : std::vector<std::string>(),
        .size = entered.facts.size,
        .flags = nbd::TransmissionFlagsFor(entered.facts, entered.style)};
    if (!entered.facts.zero) report.flags &= ~nbd::kFlagSendWriteZeroes;
    findings.server.style = entered.style;
    findings.reports.push_back(std::move(report));
  }
  co_return findings;
}

Findings LookAtDevice(const Device& device) {
  const Facts& facts = device.facts();
  Findings findings;
  Report report{.name = facts.export_name,
                .description = facts.description,
                .contexts = facts.contexts,
                .size = device.size(),
                .flags = nbd::TransmissionFlagsFor(facts, nbd::ReplyStyle::kStructured)};
  report.block_sizes =
      nbd::BlockSizes{facts.block.minimum, facts.block.preferred, facts.block.maximum};
  findings.reports.push_back(std::move(report));
  return findings;
}

// ---- Answering

// The exit status of --can and --is: 0 yes, 2 no; an unknown word is an error.
absl::StatusOr<int> Answer(const Findings& findings, std::string_view what) {
  const Server& server = findings.server;
  const uint16_t flags = findings.reports.front().flags;
  auto yes_no = [](bool yes) { return yes ? 0 : 2; };
  struct Word {
    std::string_view word;
    uint16_t flag;
  };
  constexpr Word kWords[] = {{"zero", nbd::kFlagSendWriteZeroes},
                             {"trim", nbd::kFlagSendTrim},
                             {"flush", nbd::kFlagSendFlush},
                             {"fua", nbd::kFlagSendFua},
                             {"fast-zero", nbd::kFlagSendFastZero},
                             {"cache", nbd::kFlagSendCache},
                             {"df", nbd::kFlagSendDf},
                             {"multi-conn", nbd::kFlagCanMultiConn},
                             {"block-status-payload", nbd::kFlagBlockStatusPayload},
                             {"read-only", nbd::kFlagReadOnly},
                             {"rotational", nbd::kFlagRotational}};
  for (const Word& word : kWords)
    if (word.word == what) return yes_no(flags & word.flag);
  if (what == "connect" || what == "read") return 0;
  if (what == "write") return yes_no(!(flags & nbd::kFlagReadOnly));
  if (what == "structured-reply" || what == "structured")
    return yes_no(server.style != nbd::ReplyStyle::kSimple);
  if (what == "extended-headers") return yes_no(server.style == nbd::ReplyStyle::kExtended);
  if (what == "tls") return yes_no(server.tls);
  std::vector<std::string_view> known = {"connect",          "read", "write", "structured-reply",
                                         "extended-headers", "tls"};
  for (const Word& word : kWords) known.push_back(word.word);
  return absl::InvalidArgumentError(
      absl::StrCat("--can and --is do not know `", what, "`", DidYouMean(what, known)));
}

void Print(const Findings& findings, const InfoConfig& config) {
  const Server& server = findings.server;
  if (config.size && config.json) {
    std::printf("{ \"size\": %ju }\n", uintmax_t{findings.reports.front().size});
  } else if (config.size) {
    std::printf("%ju\n", uintmax_t{findings.reports.front().size});
  } else if (config.json) {
    std::printf("{\n");
    if (server.nbd)
      std::printf("\"protocol\": %s,\n\"TLS\": %s,\n\"structured\": %s,\n",
                  JsonQuote(server.protocol).c_str(), server.tls ? "true" : "false",
                  server.style != nbd::ReplyStyle::kSimple ? "true" : "false");
    std::vector<std::string> objects;
    for (const Report& report : findings.reports) objects.push_back(ReportJson(server, report));
    std::printf("\"exports\": [\n%s ]\n}\n", absl::StrJoin(objects, ",\n").c_str());
  } else {
    PrintServer(server);
    for (const Report& report : findings.reports) PrintReport(server, report);
  }
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
  if (job->config.list && !server)
    co_return absl::InvalidArgumentError("--list asks an NBD server; name one by its URI");
  std::optional<Findings> findings;
  if (server) {
    auto looked = co_await LookAtServer(*server, job->config.list);
    if (!looked.ok()) co_return co_await job->disk.Explain(looked.status());
    findings = *std::move(looked);
    if (!content || job->config.list) co_return *std::move(findings);
  }
  BLK_CO_ASSIGN_OR_RETURN(DevicePtr device, co_await job->disk.Open({.connections = 1}));
  if (!findings) findings = LookAtDevice(*device);
  if (content) findings->reports.front().content = co_await GuessContent(device.get());
  co_return *std::move(findings);
}

Task<absl::Status> Info(InfoJob* job) {
  auto findings = co_await Look(job);
  absl::Status status = findings.status();
  if (status.ok()) {
    const std::string& question = job->config.can.empty() ? job->config.is : job->config.can;
    if (!question.empty()) {
      auto answer = Answer(*findings, question);
      status = answer.status();
      if (answer.ok()) job->exit_status = *answer;
    } else {
      Print(*findings, job->config);
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
