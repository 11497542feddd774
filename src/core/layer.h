#pragma once
// Layer: one word of the command line, configured once, living as long as the process. A backend
// makes devices; a filter layer makes devices over those of the layer below.
//
// Threads: Ready() runs before loops do. All else runs on any loop, several calls at a time.
// Lifetime: a LayerPtr outlives every device it has opened.
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/functional/any_invocable.h"
#include "src/core/device.h"
#include "src/core/stream.h"

namespace blk {

// The server around a stack. Any loop.
class ServerControl {
 public:
  virtual ~ServerControl() = default;
  // No new clients; the server ends when those that are there have been answered.
  virtual void ShutdownServer() = 0;
};

// What a layer may do to the connection that opened it. Any loop, AtEnd() on that of the
// connection.
class Session {
 public:
  virtual ~Session() = default;
  // Every later request is answered with ESHUTDOWN, until the client leaves; or at once.
  enum class Disconnect { kSoft, kHard };
  virtual void RequestDisconnect(Disconnect how) = 0;
  virtual void ShutdownServer() = 0;
  // `work` is done when the client has left and all that it opened is closed. (It may open several
  // devices, one after the other, before it decides.)
  void AtEnd(absl::AnyInvocable<Task<void>()> work) { at_end_.push_back(std::move(work)); }

 protected:
  // Once, last.
  Task<void> RunAtEnd() {
    for (auto& work : at_end_) co_await work();
    at_end_.clear();
  }

 private:
  std::vector<absl::AnyInvocable<Task<void>()>> at_end_;
};

struct OpenArgs {
  std::string export_name;
  bool read_only = false;
  bool tls = false;
  bool writes_behind = false;  // much is written, most of it once, and then flushed
  const Peer* peer = nullptr;  // null outside a server; lives as long as the session
  Session* session = nullptr;  // null outside a server; lives until the device is closed
};

struct ExportEntry {
  std::string name;
  std::string description;
};
struct ExportList {
  std::vector<ExportEntry> exports;
  std::string default_name;  // what "" opens
};

// How much may happen at the same time; the minimum over a stack counts.
enum class ThreadModel {
  kSerializeConnections,
  kSerializeAllRequests,
  kSerializeRequests,
  kParallel
};
// "serialize_connections" and so on: nbdkit's names.
std::string_view ThreadModelName(ThreadModel model);

class Layer {
 public:
  virtual ~Layer() = default;

  // Called instead of Ready() and all that follows, but for thread_model(): lines KEY=VALUE about
  // what the parameters name, beyond what the Spec knows (scripts have something to tell).
  virtual absl::StatusOr<std::string> DumpPlugin() { return std::string(); }
  // All parameters are in: check them together, open what must exist. Errors reach the terminal
  // before anything starts.
  virtual absl::Status Ready() { return absl::OkStatus(); }
  // Before Start(), in a server only; lives until Stop() has returned.
  virtual void AttachServer(ServerControl*) {}
  // Loops run, and so does the sandbox: what is opened here must be among the Needs of the Spec.
  virtual Task<absl::Status> Start() { return absl::OkStatus(); }
  // A client has connected and nothing was said; an error sends it away.
  virtual Task<absl::Status> Preconnect(const Peer&) { return absl::OkStatus(); }
  virtual Task<absl::StatusOr<ExportList>> ListExports(const OpenArgs&) {
    return absl::StatusOr<ExportList>(ExportList{{{"", ""}}, ""});
  }
  // Errors: ENOENT (no such export), EPERM, or what the source says.
  virtual Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) = 0;
  virtual ThreadModel thread_model() { return ThreadModel::kParallel; }
  // No device is open any more.
  virtual Task<absl::Status> Stop() { return absl::OkStatus(); }
};
using LayerPtr = std::shared_ptr<Layer>;

// A layer over another: forwards everything. Override Wrap() for the plain case (open below, put a
// device over it), Open() for the rest.
class FilterLayer : public Layer {
 public:
  explicit FilterLayer(LayerPtr below) : below_(std::move(below)) {}
  void AttachServer(ServerControl* server) override { below_->AttachServer(server); }
  Task<absl::Status> Start() override { return below_->Start(); }
  Task<absl::Status> Preconnect(const Peer& peer) override { return below_->Preconnect(peer); }
  Task<absl::StatusOr<ExportList>> ListExports(const OpenArgs& args) override {
    return below_->ListExports(args);
  }
  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override;
  ThreadModel thread_model() override { return below_->thread_model(); }
  Task<absl::Status> Stop() override { return below_->Stop(); }

 protected:
  Layer& below() const { return *below_; }
  // The device over `device`; an error closes it again.
  virtual absl::StatusOr<DevicePtr> Wrap(DevicePtr device, const OpenArgs& args);

 private:
  LayerPtr below_;
};

// Lowers what may happen at the same time to the layer's thread model. Returns `layer` itself when
// that is parallel. The one place that enforces thread models; the stack builder inserts it.
LayerPtr EnforceThreadModel(LayerPtr layer);

}  // namespace blk
