// exitlast: the server ends with its last client. time-limit: a client is sent away after a time.
// openonce: an export is opened once, for all clients.
//
// Parallel-safe: counters are atomic, the open devices are behind a mutex.
#include <atomic>
#include <cerrno>
#include <map>
#include <tuple>

#include "src/backends/filters/request.h"
#include "src/backends/filters/wrap_layer.h"
#include "src/core/loop.h"
#include "src/core/spec.h"
#include "src/core/sync.h"

namespace blk {
namespace {

// ---- exitlast

class ExitLastLayer final : public FilterLayer {
 public:
  using FilterLayer::FilterLayer;

 protected:
  absl::StatusOr<DevicePtr> Wrap(DevicePtr device, const OpenArgs& args) override {
    if (args.session) {
      ++open_;
      args.session->AtEnd([this, session = args.session] { return Left(session); });
    }
    return device;
  }

 private:
  Task<void> Left(Session* session) {
    if (--open_ == 0) session->ShutdownServer();
    return {};
  }

  std::atomic<int> open_{0};  // by clients that have not left
};

// ---- time-limit

struct TimeLimitConfig {
  Nanoseconds limit = std::chrono::seconds(60);
};

class TimeLimitDevice final : public RequestFilter {
 public:
  TimeLimitDevice(DevicePtr below, int64_t limit_ns, Session* session)
      : RequestFilter(std::move(below)),
        start_ns_(Loop::Current()->NowNs()),
        limit_ns_(limit_ns),
        session_(session) {}

 protected:
  Task<absl::Status> Handle(Request request) override {
    if (Loop::Current()->NowNs() - start_ns_ < limit_ns_) return Perform(&below(), request);
    if (session_) session_->RequestDisconnect(Session::Disconnect::kHard);
    return ErrnoErrorAsIs(ESHUTDOWN, absl::StrCat("the client has been here for its time of ",
                                                  FormatDuration(Nanoseconds(limit_ns_))));
  }

 private:
  const int64_t start_ns_, limit_ns_;
  Session* const session_;  // null outside a server
};

// ---- openonce

// What each client gets of a device that is shared; the layer closes it at the end.
class SharedDevice final : public Filter {
 public:
  explicit SharedDevice(DevicePtr below) : Filter(below, below->facts(), /*passes_data=*/true) {}

 protected:
  Task<absl::Status> DoClose() override { return absl::OkStatus(); }
};

class OpenOnceLayer final : public FilterLayer {
 public:
  using FilterLayer::FilterLayer;

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    const Key key{args.export_name, args.read_only, args.tls};
    MutexGuard guard = co_await mutex_.Lock();
    auto found = open_.find(key);
    if (found == open_.end()) {
      // Names are the clients' choice; what is kept open for them is bounded.
      if (open_.size() >= kExportsMax) co_return co_await below().Open(std::move(args));
      args.peer = nullptr;  // the device outlives this client
      args.session = nullptr;
      BLK_CO_ASSIGN_OR_RETURN(DevicePtr device, co_await below().Open(std::move(args)));
      found = open_.emplace(key, std::move(device)).first;
    }
    co_return std::make_shared<SharedDevice>(found->second);
  }

  Task<absl::Status> Stop() override {
    absl::Status status;
    for (auto& [key, device] : open_) status.Update(co_await device->Close());
    open_.clear();
    status.Update(co_await below().Stop());
    co_return status;
  }

 private:
  static constexpr size_t kExportsMax = 256;
  using Key = std::tuple<std::string, bool, bool>;  // name, read-only, TLS
  Mutex mutex_;                                     // guards open_, and is held while opening
  std::map<Key, DevicePtr> open_;
};

}  // namespace

const Spec& ExitLastSpec() {
  static const Spec& spec =
      *new Spec(FilterSpec<NoConfig>("exitlast", "end the server when its last client has left")
                    .Example("exitlast+memory:64K")
                    .Make([](NoConfig, LayerPtr below) -> absl::StatusOr<LayerPtr> {
                      return std::make_shared<ExitLastLayer>(std::move(below));
                    }));
  return spec;
}

const Spec& TimeLimitSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<TimeLimitConfig>("time-limit", "send clients away after a time")
          .Param("time-limit", &TimeLimitConfig::limit,
                 {.help = "how long a client may stay; 0: for ever"})
          .Description("It is looked at when a request comes; that request is refused.")
          .Example("time-limit(time-limit=1000)+memory:64K")
          .Make([](TimeLimitConfig config, LayerPtr below) {
            return MakeWrapLayer(
                std::move(below),
                [config](DevicePtr device, const OpenArgs& args) -> absl::StatusOr<DevicePtr> {
                  if (config.limit.count() == 0) return device;
                  return std::make_shared<TimeLimitDevice>(std::move(device), config.limit.count(),
                                                           args.session);
                });
          }));
  return spec;
}

const Spec& OpenOnceSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<NoConfig>("openonce", "open each export once, for all clients")
          .Description(
              "For sources that are slow to open. Each export stays open until the end; all its "
              "clients use one connection to the source.")
          .Example("openonce+memory:64K")
          .Make([](NoConfig, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<OpenOnceLayer>(std::move(below));
          }));
  return spec;
}

}  // namespace blk
