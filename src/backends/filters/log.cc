// log: writes every request and its result down, to a file, to a script, or both, one line each.
//
// Parallel-safe: lines are written whole; requests that run at the same time mix their lines and
// are told apart by their ids. The format of lines is nbdkit's.
#include <fcntl.h>
#include <sys/time.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <ctime>

#include "absl/strings/ascii.h"
#include "absl/strings/str_format.h"
#include "src/backends/filters/request.h"
#include "src/core/descriptor.h"
#include "src/core/process.h"
#include "src/core/spec.h"
#include "src/core/trace.h"

namespace blk {
namespace {

struct Config {
  std::string file;
  bool append = false;
  std::string script;
};

// As a shell reads it back as one word.
std::string Quoted(std::string_view text) {
  bool plain = !text.empty();
  for (char c : text)
    plain =
        plain && (absl::ascii_isalnum(static_cast<unsigned char>(c)) || strchr("-_.,:/+@%=", c));
  if (plain) return std::string(text);
  std::string quoted = "\"";
  for (char c : text) {
    if (strchr("\"\\$`", c) && c != '\0') quoted += '\\';
    quoted += c;
  }
  return quoted + "\"";
}

std::string Timestamp() {
  timeval now;
  gettimeofday(&now, nullptr);
  tm local;
  localtime_r(&now.tv_sec, &local);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S", &local);
  return absl::StrFormat("%s.%06d", text, now.tv_usec);
}

// One line: before an action, after it, or of something that takes no time.
struct Line {
  enum Type { kEnter, kLeave, kPrint } type;
  std::string_view action;
  uint64_t connection = 0;  // 0: belongs to none
  uint64_t id = 0;          // 0: has none
  std::string fields = {};  // ` name=value` ..., values quoted
};

std::string ResultFields(const absl::Status& status) {
  if (status.ok()) return " return=0";
  return absl::StrCat(" return=-1 error=", strerrorname_np(ErrnoOf(status)));
}

class Journal {
 public:
  explicit Journal(Config config) : config_(std::move(config)) {}

  bool active() const { return !config_.file.empty() || !config_.script.empty(); }

  absl::Status Open() {
    if (config_.file.empty()) return absl::OkStatus();
    int flags = O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | (config_.append ? 0 : O_TRUNC);
    file_.Reset(open(config_.file.c_str(), flags, 0666));
    if (!file_.valid()) return ErrnoError(errno, absl::StrCat("cannot open ", config_.file));
    return absl::OkStatus();
  }

  // The script has ended when this returns: lines of one request come in order.
  Task<void> Write(Line line) {
    WriteToFile(line);
    if (config_.script.empty()) co_return;
    std::unique_ptr<Process> process;
    co_await Loop::Current()->Offload([&] { process = StartScript(line); });
    if (process) (void)co_await process->Wait();
  }
  // The same before loops run.
  void WriteBlocking(const Line& line) {
    WriteToFile(line);
    if (config_.script.empty()) return;
    if (auto process = StartScript(line)) (void)process->WaitBlocking();
  }

 private:
  void WriteToFile(const Line& line) {
    if (!file_.valid()) return;
    std::string text = Timestamp();
    if (line.connection) absl::StrAppend(&text, " connection=", line.connection);
    absl::StrAppend(&text, line.type == Line::kLeave ? " ..." : " ", line.action);
    if (line.id) absl::StrAppend(&text, " id=", line.id);
    absl::StrAppend(&text, line.fields, line.type == Line::kEnter ? " ...\n" : "\n");
    // One write a line: O_APPEND keeps lines whole.
    if (write(file_.get(), text.data(), text.size()) != static_cast<ssize_t>(text.size()) &&
        !failed_.exchange(true))
      LogError(absl::StrCat("log: cannot write all lines to ", config_.file));
  }

  std::unique_ptr<Process> StartScript(const Line& line) {
    constexpr std::string_view kTypes[] = {"ENTER", "LEAVE", "PRINT"};
    std::string text = absl::StrCat("act=", line.action, " type=", kTypes[line.type]);
    if (line.connection) absl::StrAppend(&text, " connection=", line.connection);
    if (line.id) absl::StrAppend(&text, " id=", line.id);
    // The fields are assignments already.
    Command command = BashCommand(absl::StrCat(text, line.fields, "\n", config_.script));
    command.input = Redirect::Null();
    auto process = StartProcess(command);
    if (process.ok()) return *std::move(process);
    if (!failed_.exchange(true))
      LogError(absl::StrCat("log: cannot run the script: ", process.status().message()));
    return nullptr;
  }

  const Config config_;
  Descriptor file_;
  std::atomic<bool> failed_{false};
};

std::string RequestFields(const Request& request) {
  const auto bit = [&request](uint32_t flag) { return request.has(flag) ? "1" : "0"; };
  if (request.operation == Operation::kFlush) return "";
  std::string text = absl::StrFormat(" offset=0x%x count=0x%x", request.offset, request.length);
  switch (request.operation) {
    case Operation::kWrite:
    case Operation::kTrim:
      absl::StrAppend(&text, " fua=", bit(kFua));
      break;
    case Operation::kZero:
      absl::StrAppend(&text, " trim=", request.has(kNoHole) ? "0" : "1", " fua=", bit(kFua),
                      " fast=", bit(kFastZero));
      break;
    case Operation::kExtents:
      absl::StrAppend(&text, " req_one=", bit(kRequestOne));
      break;
    default:
      break;
  }
  return text;
}

std::string ExtentFields(const Request& request) {
  std::string text = " extents=(";
  uint64_t at = request.offset;
  for (const Extent& extent : request.list->extents()) {
    constexpr std::string_view kFlags[] = {"", "hole", "zero", "hole,zero"};
    absl::StrAppend(
        &text, at == request.offset ? "" : " ", absl::StrFormat("0x%x 0x%x", at, extent.length),
        " \"", request.context == kBaseAllocation ? kFlags[extent.flags & kExtentHoleZero] : "",
        "\"");
    at += extent.length;
  }
  return text + ")";
}

std::string_view ActionName(Operation operation) {
  constexpr std::string_view kNames[kOperations] = {"Read",    "Write", "Trim", "Zero",
                                                    "Extents", "Cache", "Flush"};
  return kNames[static_cast<int>(operation)];
}

std::string ConnectFields(const Device& device, const OpenArgs& args) {
  const Facts& facts = device.facts();
  const bool writes = !facts.read_only && !args.read_only;
  // Zeroes where no layer cares.
  const BlockSizes block = facts.block == BlockSizes{} ? BlockSizes{0, 0, 0} : facts.block;
  const int fua = facts.fua == Support::kNone ? 0 : facts.fua == Support::kEmulate ? 1 : 2;
  const int cache = facts.cache == Support::kNone ? 0 : facts.cache == Support::kEmulate ? 1 : 2;
  return absl::StrFormat(
      " export=%s tls=%d size=0x%x minsize=0x%x prefsize=0x%x maxsize=0x%x write=%d flush=%d "
      "rotational=%d trim=%d zero=%d fua=%d extents=%d cache=%d fast_zero=%d",
      Quoted(args.export_name), args.tls, device.size(), block.minimum, block.preferred,
      block.maximum, writes, facts.flush, facts.rotational, writes && facts.trim,
      !writes      ? 0
      : facts.zero ? 2
                   : 1,
      writes ? fua : 0, facts.extents, cache, writes && facts.fast_zero);
}

class LogDevice final : public RequestFilter {
 public:
  LogDevice(DevicePtr below, Journal* journal, uint64_t connection)
      : RequestFilter(std::move(below)), journal_(*journal), connection_(connection) {}

 protected:
  Task<absl::Status> Handle(Request request) override {
    const uint64_t id = ++transactions_;
    const std::string_view action = ActionName(request.operation);
    co_await journal_.Write({Line::kEnter, action, connection_, id, RequestFields(request)});
    absl::Status status = co_await Perform(&below(), request);
    std::string fields;
    if (status.ok() && request.operation == Operation::kExtents) fields = ExtentFields(request);
    co_await journal_.Write({Line::kLeave, action, connection_, id, fields + ResultFields(status)});
    co_return status;
  }
  Task<absl::Status> DoClose() override {
    co_await journal_.Write({Line::kPrint, "Disconnect", connection_, 0,
                             absl::StrCat(" transactions=", transactions_.load())});
    co_return co_await below().Close();
  }

 private:
  Journal& journal_;
  const uint64_t connection_;
  std::atomic<uint64_t> transactions_{0};
};

class LogLayer final : public FilterLayer {
 public:
  LogLayer(LayerPtr below, Config config)
      : FilterLayer(std::move(below)), journal_(std::move(config)) {}

  absl::Status Ready() override {
    BLK_RETURN_IF_ERROR(journal_.Open());
    journal_.WriteBlocking({Line::kPrint, "Ready", 0, 0,
                            absl::StrCat(" thread_model=", static_cast<int>(thread_model()))});
    return absl::OkStatus();
  }
  Task<absl::Status> Start() override {
    co_await journal_.Write({Line::kPrint, "Fork"});
    co_return co_await FilterLayer::Start();
  }
  Task<absl::Status> Preconnect(const Peer& peer) override {
    if (!journal_.active()) return below().Preconnect(peer);
    return LoggedPreconnect(&peer);
  }
  Task<absl::StatusOr<ExportList>> ListExports(const OpenArgs& args) override {
    if (!journal_.active()) return below().ListExports(args);
    return LoggedList(&args);
  }
  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    BLK_CO_ASSIGN_OR_RETURN(DevicePtr device, co_await below().Open(args));
    if (!journal_.active()) co_return device;
    const uint64_t connection = ++connections_;
    co_await journal_.Write({Line::kPrint, "Connect", connection, 0, ConnectFields(*device, args)});
    co_return std::make_shared<LogDevice>(std::move(device), &journal_, connection);
  }

 private:
  Task<absl::Status> LoggedPreconnect(const Peer* peer) {
    const uint64_t id = ++preconnects_;
    co_await journal_.Write({Line::kEnter, "Preconnect", 0, id, " readonly=0"});
    absl::Status status = co_await below().Preconnect(*peer);
    co_await journal_.Write({Line::kLeave, "Preconnect", 0, id, ResultFields(status)});
    co_return status;
  }
  Task<absl::StatusOr<ExportList>> LoggedList(const OpenArgs* args) {
    const uint64_t id = ++lists_;
    co_await journal_.Write(
        {Line::kEnter, "ListExports", 0, id,
         absl::StrCat(" readonly=", args->read_only ? 1 : 0, " tls=", args->tls ? 1 : 0)});
    auto list = co_await below().ListExports(*args);
    std::string fields;
    if (list.ok()) {
      std::string_view separator = "";
      for (const ExportEntry& entry : list->exports) {
        absl::StrAppend(&fields, separator, Quoted(entry.name));
        separator = " ";
      }
      fields = absl::StrCat(" exports=(", fields, ")");
    }
    co_await journal_.Write(
        {Line::kLeave, "ListExports", 0, id, fields + ResultFields(list.status())});
    co_return list;
  }

  Journal journal_;
  std::atomic<uint64_t> connections_{0}, preconnects_{0}, lists_{0};
};

}  // namespace

const Spec& LogSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("log", "write down every request and its result")
          .Param("logfile", &Config::file, {.help = "file to write to", .path = PathUse::kCreate})
          .Param("logappend", &Config::append, {.help = "keep what is in the file"})
          .Param("logscript", &Config::script,
                 {.help = "shell script to run for each line, with $act, $type, $id, $connection, "
                          "$offset, ... set",
                  .word = "SCRIPT"})
          .Description(
              "Without a file or a script nothing is done. Most actions have two lines, when they "
              "begin and when they end (`...Read`), with the same id. The script is bash where "
              "there is one; a request waits for it, so it should be short.")
          .NeedsOf([](const Config& config) {
            std::vector<Need> needs;
            if (!config.script.empty()) needs.push_back({Need::Kind::kProgram, "sh"});
            return needs;
          })
          .Example("log(logfile=/dev/null)+memory:64K")
          .PrintedExample("log(logfile=disk.log)+disk.img", "see what a client does")
          .Make([](Config config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<LogLayer>(std::move(below), std::move(config));
          }));
  return spec;
}

}  // namespace blk
