#include "src/tools/endpoint.h"

#include "absl/strings/str_join.h"
#include "src/backends/file.h"
#include "src/backends/nbd_captive.h"
#include "src/backends/nbd_connect.h"
#include "src/backends/registry.h"
#include "src/proto/uri.h"
#include "src/tools/serve.h"

namespace blk {

Endpoint::Endpoint() = default;
Endpoint::Endpoint(Endpoint&&) = default;
Endpoint& Endpoint::operator=(Endpoint&&) = default;
Endpoint::~Endpoint() = default;

absl::StatusOr<Endpoint> Endpoint::Parse(std::span<const std::string> words) {
  BLK_CHECK(!words.empty());
  Endpoint endpoint;
  endpoint.text_ = absl::StrJoin(words, " ");
  if (words[0] == "[") {
    std::span<const std::string> command = words.subspan(1, words.size() - 2);
    if (command.empty())
      return absl::InvalidArgumentError("`[ ]` is empty: write the command of a server in it");
    bool named_blk = command[0] == "blk" && command.size() > 1 && command[1] == "serve";
    if (named_blk || command[0] == "serve") {
      BLK_ASSIGN_OR_RETURN(ServeArguments serve,
                           ParseServeArguments(command.subspan(named_blk ? 2 : 1)));
      endpoint.plan_ = std::move(serve.plan);
      endpoint.file_ = endpoint.plan_.path;
      endpoint.plan_.path.clear();  // a server's file is never created
      endpoint.export_name_ = serve.export_name;
      endpoint.read_only_ = serve.read_only;
      return endpoint;
    }
    endpoint.kind_ = Kind::kCaptive;
    endpoint.command_.assign(command.begin(), command.end());
    return endpoint;
  }
  if (words[0] == "-") {
    endpoint.kind_ = Kind::kStream;
    return endpoint;
  }
  if (words[0] == "null:") return Null();
  BLK_ASSIGN_OR_RETURN(endpoint.plan_, PlanSpec(AllSpecs(), words[0]));
  endpoint.file_ = endpoint.plan_.path;
  if (endpoint.plan_.layers.size() > 1) endpoint.plan_.path.clear();  // a window of a file, say
  return endpoint;
}

absl::StatusOr<Endpoint> Endpoint::Uri(std::string uri) {
  BLK_RETURN_IF_ERROR(nbd::ParseUri(uri).status());
  Endpoint endpoint;
  endpoint.text_ = uri;
  InlineSpec spec{.filters = {},
                  .source = {.name = "nbd", .params = {{"uri", std::move(uri)}}},
                  .form = InlineSpec::Form::kUri};
  BLK_ASSIGN_OR_RETURN(endpoint.plan_, PlanSpec(AllSpecs(), spec));
  return endpoint;
}

absl::StatusOr<Endpoint> Endpoint::Path(std::string path) {
  Endpoint endpoint;
  endpoint.text_ = path;
  InlineSpec spec{.filters = {},
                  .source = {.name = "file", .params = {{"file", std::move(path)}}},
                  .form = InlineSpec::Form::kPath};
  BLK_ASSIGN_OR_RETURN(endpoint.plan_, PlanSpec(AllSpecs(), spec));
  endpoint.file_ = endpoint.plan_.path;
  return endpoint;
}

Endpoint Endpoint::Captive(std::vector<std::string> command) {
  Endpoint endpoint;
  endpoint.kind_ = Kind::kCaptive;
  endpoint.text_ = command.front();
  endpoint.command_ = std::move(command);
  endpoint.captive_input_ = true;
  return endpoint;
}

Endpoint Endpoint::Null() {
  Endpoint endpoint;
  endpoint.kind_ = Kind::kNull;
  endpoint.text_ = "null:";
  return endpoint;
}

Endpoint Endpoint::Stream(std::string text, int fd) {
  Endpoint endpoint;
  endpoint.kind_ = Kind::kStream;
  endpoint.text_ = std::move(text);
  endpoint.fd_ = fd;
  return endpoint;
}

Task<absl::Status> Endpoint::StartCaptive() {
  if (kind_ != Kind::kCaptive || captive_) co_return absl::OkStatus();
  BLK_CO_ASSIGN_OR_RETURN(captive_, co_await CaptiveServer::Start(command_, captive_input_));
  BLK_CO_ASSIGN_OR_RETURN(plan_, PlanSpec(AllSpecs(), captive_->uri()));
  co_return absl::OkStatus();
}

Task<absl::StatusOr<std::optional<NbdConnectOptions>>> Endpoint::NbdServer() {
  BLK_CO_RETURN_IF_ERROR(co_await StartCaptive());
  if (plan_.layers.empty()) co_return std::nullopt;
  co_return NbdServerOf(plan_);
}

Task<absl::Status> Endpoint::Explain(absl::Status failure) {
  if (!captive_) return failure;
  return captive_->Explain(std::move(failure));
}

Task<absl::StatusOr<LayerPtr>> Endpoint::MakeLayer(const Wish& wish) {
  BLK_CO_RETURN_IF_ERROR(co_await StartCaptive());
  if (wish.create_bytes && !plan_.path.empty()) {
    BLK_CO_RETURN_IF_ERROR(PrepareTargetFile(plan_.path, *wish.create_bytes, &reads_as_zeroes_));
  }
  AdjustNbdPlan(&plan_, wish.connections, wish.contexts, wish.arena, wish.shm);
  co_return BuildStack(std::move(plan_));
}

Task<absl::StatusOr<DevicePtr>> Endpoint::Open(Wish wish) {
  if (kind_ == Kind::kNull) {
    if (!wish.create_bytes)
      co_return absl::InvalidArgumentError("null: is only a target; a disk of zeroes is null:SIZE");
    BLK_CO_ASSIGN_OR_RETURN(plan_, PlanSpec(AllSpecs(), absl::StrCat("null:", *wish.create_bytes)));
    reads_as_zeroes_ = true;
  }
  if (kind_ == Kind::kStream)
    co_return absl::InvalidArgumentError("`-` (a stream) cannot be used as a disk here");
  BLK_CO_ASSIGN_OR_RETURN(layer_, co_await MakeLayer(wish));
  BLK_CO_RETURN_IF_ERROR(co_await layer_->Start());
  OpenArgs args;
  args.export_name = export_name_;
  args.read_only = wish.read_only || read_only_;
  args.writes_behind = wish.writes_behind;
  auto device = co_await layer_->Open(std::move(args));
  if (!device.ok() && captive_) co_return co_await Explain(device.status());
  if (!device.ok()) co_return Annotate(device.status(), text_);
  device_ = *std::move(device);
  if (!wish.read_only && (device_->facts().read_only || read_only_))
    co_return ErrnoErrorAsIs(EROFS, absl::StrCat(text_, " is read-only: it cannot be a target"));
  co_return device_;
}

Task<absl::Status> Endpoint::Close() {
  absl::Status status;
  if (device_) status = co_await device_->Close();
  device_.reset();
  if (layer_) {
    absl::Status stopped = co_await layer_->Stop();
    if (status.ok()) status = stopped;
  }
  layer_.reset();
  if (captive_) {
    absl::Status stopped = co_await captive_->Stop();
    if (status.ok()) status = stopped;
  }
  captive_.reset();
  co_return Annotate(status, text_);
}

absl::StatusOr<std::vector<std::vector<std::string>>> SplitEndpoints(
    std::span<const std::string> words) {
  std::vector<std::vector<std::string>> result;
  for (size_t i = 0; i < words.size(); ++i) {
    if (words[i] == "]") return absl::InvalidArgumentError("`]` without a `[` before it");
    result.push_back({words[i]});
    if (words[i] != "[") continue;
    int depth = 1;
    while (depth > 0) {
      if (++i == words.size())
        return absl::InvalidArgumentError(
            "`[` without a `]` after it; both are words of their own");
      if (words[i] == "[") ++depth;
      if (words[i] == "]") --depth;
      result.back().push_back(words[i]);
    }
  }
  return result;
}

}  // namespace blk
