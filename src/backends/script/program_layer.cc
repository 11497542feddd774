#include "src/backends/script/program_layer.h"

#include <algorithm>
#include <cerrno>
#include <map>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "src/backends/script/parse.h"
#include "src/backends/script/program_device.h"
#include "src/core/limits.h"
#include "src/core/sync.h"
#include "src/core/trace.h"

namespace blk::script {
namespace {

using Known = MethodCaller::Known;

// unload must not keep the process from ending for ever.
constexpr int64_t kUnloadTimeoutNs = 10'000'000'000;

class ProgramLayer final : public Layer {
 public:
  ProgramLayer(std::unique_ptr<MethodCaller> caller, ProgramSettings settings)
      : asker_{std::move(caller)}, settings_(std::move(settings)) {}
  ~ProgramLayer() override {
    if (loaded_) (void)RunApart(Unload());
  }

  absl::StatusOr<std::string> DumpPlugin() override {
    std::string text;
    BLK_RETURN_IF_ERROR(RunApart(ThenRest(Dump(&text))));
    return text;
  }
  absl::Status Ready() override { return RunApart(ThenRest(GetReady())); }

  Task<absl::Status> Start() override { co_return co_await Tell("after_fork"); }

  Task<absl::Status> Preconnect(const Peer& peer) override {
    if (asker_.caller->Has("preconnect") == Known::kNo) co_return absl::OkStatus();
    BLK_CO_RETURN_IF_ERROR(co_await StartAgain());
    MethodCall call{.method = "preconnect", .arguments = {"false"}};
    if (asker_.caller->wants_peer()) call.arguments.push_back(PeerWord(&peer));
    BLK_CO_ASSIGN_OR_RETURN(Answer answer, co_await asker_.Ask(std::move(call)));
    if (answer.kind == Answer::Kind::kFalse)
      co_return ErrnoErrorAsIs(EPERM, absl::StrCat(name(), ": preconnect answers no"));
    co_return absl::OkStatus();
  }

  Task<absl::StatusOr<ExportList>> ListExports(const OpenArgs& args) override {
    BLK_CO_RETURN_IF_ERROR(co_await StartAgain());
    Asker asker{asker_.caller, args.session};
    auto ask = [&](std::string method) {
      return asker.Ask(
          {.method = std::move(method),
           .arguments = {args.read_only ? "true" : "false", args.tls ? "true" : "false"}});
    };
    ExportList list;
    BLK_CO_ASSIGN_OR_RETURN(Answer all, co_await ask("list_exports"));
    // Who has no default export may have others; on its own, that leaves nothing to list.
    const auto chosen = co_await DefaultName(asker, args);
    if (chosen.ok()) list.default_name = *chosen;
    if (!all.done()) {
      if (chosen.ok()) list.exports.push_back({list.default_name, ""});
      co_return list;
    }
    auto exports = ReadExports(all.output);
    if (!exports.ok()) co_return Annotate(exports.status(), absl::StrCat(name(), ": list_exports"));
    for (const ExportEntry& entry : *exports)
      if (std::max(entry.name.size(), entry.description.size()) > limits::kStringBytesMax)
        co_return ErrnoErrorAsIs(EINVAL, absl::StrCat(name(),
                                                      ": list_exports: a name or "
                                                      "description has more than ",
                                                      limits::kStringBytesMax, " bytes"));
    list.exports = *std::move(exports);
    co_return list;
  }

  // A program that ends meanwhile, because of somebody else perhaps, gets a second chance.
  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    Asker asker{asker_.caller, args.session};
    BLK_CO_RETURN_IF_ERROR(co_await StartAgain());
    std::string default_name;
    if (args.export_name.empty()) {
      BLK_CO_ASSIGN_OR_RETURN(default_name, co_await DefaultName(asker, args));
    }
    auto device = co_await OpenProgramDevice(asker, args, default_name);
    if (device.ok() || !asker_.caller->wants_start()) co_return device;
    BLK_CO_RETURN_IF_ERROR(co_await StartAgain());
    co_return co_await OpenProgramDevice(asker, args, default_name);
  }

  ThreadModel thread_model() override {
    if (asker_.caller->keeps_order() && model_ != ThreadModel::kSerializeConnections)
      return ThreadModel::kParallel;
    return model_;
  }

  Task<absl::Status> Stop() override {
    if (std::exchange(loaded_, false)) (void)co_await Unload();
    co_return absl::OkStatus();
  }

 private:
  const std::string& name() const { return asker_.caller->name(); }

  // Missing is fine; its output does not matter.
  Task<absl::Status> Tell(std::string method) {
    auto answer = co_await asker_.Ask({.method = std::move(method)});
    co_return answer.status();
  }

  Task<absl::Status> Load() {
    BLK_CO_RETURN_IF_ERROR(co_await asker_.caller->Start());
    loaded_ = true;
    if (settings_.has_load) BLK_CO_RETURN_IF_ERROR(co_await Tell("load"));
    std::string magic_key;
    for (const auto& [key, value] : settings_.config) {
      if (key.empty() && magic_key.empty()) {
        BLK_CO_ASSIGN_OR_RETURN(magic_key, co_await MagicKey(value));
      }
      BLK_CO_RETURN_IF_ERROR(co_await Configure(key.empty() ? magic_key : key, value));
    }
    co_return absl::OkStatus();
  }

  Task<absl::StatusOr<std::string>> MagicKey(const std::string& word) {
    BLK_CO_ASSIGN_OR_RETURN(Answer answer, co_await asker_.Ask({.method = "magic_config_key"}));
    std::string key(WithoutNewline(answer.output));
    if (answer.done() && !key.empty()) co_return key;
    co_return absl::InvalidArgumentError(
        absl::StrCat(name(), ": \"", word,
                     "\" is not KEY=VALUE, and the program names no key "
                     "for words without one"));
  }

  Task<absl::Status> Configure(std::string key, std::string value) {
    MethodCall call{.method = "config", .arguments = {key, std::move(value)}};
    BLK_CO_ASSIGN_OR_RETURN(Answer answer, co_await asker_.Ask(std::move(call)));
    if (answer.done()) co_return absl::OkStatus();
    co_return absl::InvalidArgumentError(
        absl::StrCat(name(), ": unknown parameter `", key, "`: the program ",
                     answer.missing() ? "takes none" : "does not want it"));
  }

  Task<absl::Status> GetReady() {
    BLK_CO_RETURN_IF_ERROR(co_await Load());
    BLK_CO_RETURN_IF_ERROR(co_await Tell("config_complete"));
    BLK_CO_RETURN_IF_ERROR(co_await FindThreadModel());
    co_return co_await Tell("get_ready");
  }

  // Asked for once for each connection, as nbdkit does it.
  Task<absl::StatusOr<std::string>> DefaultName(const Asker& asker, const OpenArgs& args) {
    if (args.session != nullptr) {
      std::lock_guard lock(mutex_);
      auto known = default_names_.find(args.session);
      if (known != default_names_.end()) co_return known->second;
    }
    BLK_CO_ASSIGN_OR_RETURN(std::string name, co_await DefaultExport(asker, args));
    if (args.session == nullptr) co_return name;
    {
      std::lock_guard lock(mutex_);
      default_names_[args.session] = name;
    }
    args.session->AtEnd([this, session = args.session]() -> Task<void> {
      std::lock_guard lock(mutex_);
      default_names_.erase(session);
      return {};
    });
    co_return name;
  }

  Task<absl::Status> FindThreadModel() {
    BLK_CO_ASSIGN_OR_RETURN(Answer model, co_await asker_.Ask({.method = "thread_model"}));
    if (!model.done()) co_return absl::OkStatus();
    auto read = ReadThreadModel(model.output);
    if (!read.ok()) LogDebug(name(), ": thread_model: ", read.status().message());
    if (read.ok()) model_ = *read;
    co_return absl::OkStatus();
  }

  // A program that ended is started anew for the next client, with the same parameters.
  Task<absl::Status> StartAgain() {
    if (!asker_.caller->wants_start()) co_return absl::OkStatus();
    MutexGuard guard = co_await starting_.Lock();
    if (!asker_.caller->wants_start()) co_return absl::OkStatus();
    LogError(absl::StrCat(name(), ": it has ended, and is started again"));
    BLK_CO_RETURN_IF_ERROR(co_await Load());
    for (const char* method : {"config_complete", "get_ready", "after_fork"})
      BLK_CO_RETURN_IF_ERROR(co_await Tell(method));
    co_return absl::OkStatus();
  }

  Task<absl::Status> Dump(std::string* text) {
    BLK_CO_RETURN_IF_ERROR(co_await Load());
    BLK_CO_RETURN_IF_ERROR(co_await FindThreadModel());
    BLK_CO_ASSIGN_OR_RETURN(Answer answer, co_await asker_.Ask({.method = "dump_plugin"}));
    *text = std::move(answer.output);
    co_return absl::OkStatus();
  }

  // The loop that `work` runs on is about to go.
  Task<absl::Status> ThenRest(Task<absl::Status> work) {
    absl::Status status = co_await std::move(work);
    co_await asker_.caller->Rest();
    co_return status;
  }

  Task<absl::Status> Unload() {
    if (!asker_.caller->wants_start())
      (void)co_await asker_.Ask({.method = "unload", .timeout_ns_max = kUnloadTimeoutNs});
    co_await asker_.caller->Stop();
    co_return absl::OkStatus();
  }

  Asker asker_;
  const ProgramSettings settings_;
  bool loaded_ = false;
  ThreadModel model_ = ThreadModel::kSerializeAllRequests;
  Mutex starting_;
  std::mutex mutex_;
  std::map<const Session*, std::string> default_names_;  // guarded by mutex_
};

}  // namespace

LayerPtr MakeProgramLayer(std::unique_ptr<MethodCaller> caller, ProgramSettings settings) {
  return std::make_shared<ProgramLayer>(std::move(caller), std::move(settings));
}

}  // namespace blk::script
