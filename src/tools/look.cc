#include "src/tools/look.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "src/core/process.h"
#include "src/core/suggest.h"
#include "src/proto/session_server.h"

namespace blk {
namespace {

// What file(1) makes of the first bytes; nothing without file(1), or when they cannot be read.
Task<std::optional<std::string>> GuessContent(Device* device) {
  constexpr size_t kProbeBytes = 8192;
  std::string probe(std::min<uint64_t>(kProbeBytes, device->size()), '\0');
  probe.resize(probe.size() - probe.size() % device->facts().block.minimum);
  Call call;
  if (!(co_await device->Read(call, 0, probe)).ok()) co_return std::nullopt;
  Command command;
  command.argv = {"file", "-b", "-"};
  auto output = co_await RunCommand(std::move(command), std::move(probe),
                                    {.output_bytes_max = 4096, .timeout_ns = 10'000'000'000});
  if (!output.ok() || !output->status.ok()) co_return std::nullopt;
  co_return output->output.substr(0, output->output.find('\n'));
}

// Encodes what is neither a letter, a digit nor one of `kept`.
std::string EncodeBut(std::string_view kept, std::string_view text) {
  std::string result;
  for (unsigned char c : text) {
    if (absl::ascii_isalnum(c) || absl::StrContains(kept, c)) {
      result += static_cast<char>(c);
    } else {
      absl::StrAppendFormat(&result, "%%%02X", c);
    }
  }
  return result;
}

// A URI in the form in which libnbd shows it, which is not the one of nbdkit (Uri::ToString): a
// path always begins with a slash, and the parameters are as they are.
std::string ShownUri(const nbd::Uri& uri) {
  std::string text = uri.tls ? "nbds" : "nbd", place;
  switch (uri.transport) {
    case nbd::Uri::Transport::kTcp: {
      const bool ipv6 = absl::StrContains(uri.host, ':');
      place = absl::StrCat(ipv6 ? "[" : "", uri.host, ipv6 ? "]:" : ":", uri.port);
      break;
    }
    case nbd::Uri::Transport::kUnix:
      text += "+unix";
      break;
    case nbd::Uri::Transport::kVsock:
      text += "+vsock";
      place = absl::StrCat(uri.vsock_cid, ":", uri.port);
      break;
  }
  absl::StrAppend(&text, "://");
  if (!uri.tls_username.empty())
    absl::StrAppend(&text, EncodeBut("-_.!~*'();:&=+$,", uri.tls_username), "@");
  absl::StrAppend(&text, place, "/", EncodeBut("-_.!~*'()/;@&=+$,", uri.export_name));
  char separator = '?';
  auto add = [&](std::string_view key, const std::string& value) {
    if (value.empty()) return;
    absl::StrAppend(&text, std::string(1, std::exchange(separator, '&')), key, "=", value);
  };
  if (uri.transport == nbd::Uri::Transport::kUnix) add("socket", uri.socket);
  add("tls-certificates", uri.tls_certificates);
  add("tls-psk-file", uri.tls_psk_file);
  return text;
}

// One look at one server.
class Looker {
 public:
  Looker(NbdConnectOptions options, LookOptions look) : options_(std::move(options)), look_(look) {}

  Task<absl::StatusOr<Findings>> Run() {
    absl::Status status = co_await Look();
    if (conversation_) co_await conversation_->Close();
    if (!status.ok()) co_return status;
    co_return std::move(findings_);
  }

 private:
  struct Wanted {
    std::string name, description;
  };

  Task<absl::Status> Look() {
    std::vector<Wanted> names = {{options_.uri.export_name, ""}};
    if (look_.list) {
      auto exports = co_await List();
      if (!exports.ok()) co_return exports.status();
      names = *std::move(exports);
    }
    for (const Wanted& wanted : names) {
      auto report = co_await LookAtExport(wanted);
      if (report.ok()) {
        findings_.exports.push_back(*std::move(report));
      } else {
        findings_.failures.emplace_back(wanted.name, report.status());
      }
    }
    // Without a single word of the server's there is nothing to tell.
    co_return findings_.nbd ? absl::OkStatus() : findings_.failures.front().second;
  }

  Task<absl::StatusOr<std::vector<Wanted>>> List() {
    auto exports = co_await Asked<std::vector<nbd::ListedExport>>(
        [this] { return conversation_->handshake().List(); });
    if (!exports.ok()) co_return exports.status();
    std::vector<Wanted> names;
    for (nbd::ListedExport& entry : *exports)
      names.push_back({std::move(entry.name), std::move(entry.description)});
    co_return names;
  }

  // The answer to a first question. A server that hangs up on it may answer when it is asked for
  // less.
  template <typename Answer>
  Task<absl::StatusOr<Answer>> Asked(std::function<Task<absl::StatusOr<Answer>>()> ask) {
    absl::Status failure;
    do {
      absl::Status status = co_await Connect();
      if (status.ok()) {
        auto answer = co_await ask();
        if (answer.ok()) co_return answer;
        status = answer.status();
      }
      if (failure.ok()) failure = status;
      if (!IsHangUp(status)) break;
      conversation_.reset();
    } while (AskForLess(&options_));
    co_return failure;
  }

  Task<absl::Status> Connect() {
    if (conversation_) co_return absl::OkStatus();
    BLK_CO_ASSIGN_OR_RETURN(conversation_, co_await NbdHandshake::Open(options_));
    nbd::ClientHandshake& handshake = conversation_->handshake();
    BLK_CO_RETURN_IF_ERROR(co_await handshake.NegotiateReplyStyle());
    constexpr std::string_view kStyles[] = {"oldstyle", "newstyle", "newstyle-fixed"};
    findings_.nbd = true;
    findings_.protocol = kStyles[static_cast<int>(handshake.handshake_style())];
    findings_.tls = handshake.tls();
    findings_.style = handshake.reply_style();
    co_return absl::OkStatus();
  }

  Task<absl::StatusOr<ExportReport>> LookAtExport(const Wanted& wanted) {
    std::optional<nbd::ServerExport> told;
    ExportReport report;
    if (!look_.enter) {
      auto info = co_await Asked<nbd::ServerExport>(
          [this, &wanted] { return conversation_->handshake().Info(wanted.name); });
      if (info.ok()) {
        auto contexts = co_await conversation_->handshake().ListMetaContexts(wanted.name, {});
        if (contexts.ok()) report.contexts = *std::move(contexts);
        told = *std::move(info);
      } else if (!conversation_) {
        co_return info.status();
      }
    }
    // Some servers give a size of 0 until the export is entered.
    if (!told || told->size_bytes == 0 || look_.content) {
      auto entered = co_await Enter(wanted.name, &report);
      if (entered.ok()) {
        told = *std::move(entered);
      } else if (!told) {
        co_return entered.status();
      }
    }
    Fill(*told, wanted, &report);
    co_return report;
  }

  // Uses the connection up.
  Task<absl::StatusOr<nbd::ServerExport>> Enter(std::string name, ExportReport* report) {
    auto connection =
        co_await Asked<NbdConnection>([this, &name] { return conversation_->Enter(name); });
    if (!connection.ok()) co_return connection.status();
    conversation_.reset();
    nbd::ServerExport told = connection->told;
    NbdDevice device(*std::move(connection), nullptr, 1);
    if (look_.content) report->content = co_await GuessContent(&device);
    (void)co_await device.Close();
    co_return told;
  }

  void Fill(const nbd::ServerExport& told, const Wanted& wanted, ExportReport* report) {
    report->name = told.canonical_name;
    report->description = wanted.description.empty() ? told.description : wanted.description;
    report->size = told.size_bytes;
    report->flags = told.flags;
    if (told.block_sizes_told) report->block_sizes = told.block_sizes;
    findings_.style = told.style;
    if (!look_.show_uri) return;
    nbd::Uri uri = options_.uri;
    uri.export_name = wanted.name;
    report->uri = ShownUri(uri);
  }

  NbdConnectOptions options_;
  const LookOptions look_;
  std::unique_ptr<NbdHandshake> conversation_;
  Findings findings_;
};

}  // namespace

Task<absl::StatusOr<Findings>> LookAtServer(NbdConnectOptions options, LookOptions look) {
  Looker looker(std::move(options), look);
  co_return co_await looker.Run();
}

Task<Findings> LookAtDevice(Device* device, bool content) {
  const Facts& facts = device->facts();
  ExportReport report{.name = facts.export_name,
                      .description = facts.description,
                      .contexts = facts.contexts,
                      .size = device->size(),
                      .flags = nbd::TransmissionFlagsFor(facts, nbd::ReplyStyle::kStructured)};
  report.block_sizes =
      nbd::BlockSizes{facts.block.minimum, facts.block.preferred, facts.block.maximum};
  if (content) report.content = co_await GuessContent(device);
  Findings findings;
  findings.exports.push_back(std::move(report));
  co_return findings;
}

namespace {

// Words are the same in any case, with `-`, `_`, a space or nothing between their parts.
std::string Squashed(std::string_view word) {
  return absl::StrReplaceAll(absl::AsciiStrToLower(std::string(word)),
                             {{"-", ""}, {"_", ""}, {" ", ""}});
}

struct FlagWord {
  std::string_view word;
  uint16_t flag;
};
constexpr FlagWord kFlagWords[] = {{"zero", nbd::kFlagSendWriteZeroes},
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

}  // namespace

absl::StatusOr<bool> CanOrIs(const Findings& findings, std::string_view what) {
  using nbd::ReplyStyle;
  const uint16_t flags = findings.exports.front().flags;
  const std::string wanted = Squashed(what);
  for (const FlagWord& word : kFlagWords)
    if (Squashed(word.word) == wanted) return (flags & word.flag) != 0;
  const std::pair<std::string_view, bool> others[] = {
      {"connect", true},
      {"read", true},
      {"open", true},
      {"write", !(flags & nbd::kFlagReadOnly)},
      {"tls", findings.tls},
      {"extended-headers", findings.style == ReplyStyle::kExtended},
      {"structured-reply", findings.style != ReplyStyle::kSimple},
      {"structured-replies", findings.style != ReplyStyle::kSimple},
      {"structured", findings.style != ReplyStyle::kSimple},
      {"sr", findings.style != ReplyStyle::kSimple}};
  for (const auto& [word, yes] : others)
    if (Squashed(word) == wanted) return yes;
  std::vector<std::string_view> known;
  for (const FlagWord& word : kFlagWords) known.push_back(word.word);
  for (const auto& [word, yes] : others) known.push_back(word);
  return absl::InvalidArgumentError(
      absl::StrCat("unknown --can or --is option: ", what, DidYouMean(what, known)));
}

}  // namespace blk
