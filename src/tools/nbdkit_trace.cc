#include "src/tools/nbdkit_trace.h"

#include "src/core/trace.h"
#include "src/tools/nbdkit_plugins.h"

namespace blk {
namespace {

// What a line says: whose connection, and which layer.
struct Speaker {
  NbdkitTrace trace;
  std::string plugin;
  std::string layer;

  std::string Who(uint64_t connection) const { return absl::StrCat(plugin, "[", connection, "]"); }
  template <typename... Args>
  void Data(const Call& call, const Args&... args) const {
    if (trace.data) LogDebugFrom(Who(call.connection), absl::StrCat(layer, ": ", args...));
  }
  template <typename... Args>
  void Control(const Args&... args) const {
    if (trace.control) LogDebug(layer, ": ", args...);
  }
};

class TracedDevice final : public Filter {
 public:
  TracedDevice(DevicePtr below, Speaker speaker)
      : Filter(below, below->facts(), /*passes_data=*/true), speaker_(std::move(speaker)) {}

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    speaker_.Data(call, "pread count=", into.size(), " offset=", offset);
    return Filter::DoRead(call, offset, into);
  }
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override {
    speaker_.Data(call, "pwrite count=", from.size(), " offset=", offset, " fua=", Fua(call));
    return Filter::DoWrite(call, offset, from);
  }
  Task<absl::Status> DoFlush(const Call& call) override {
    speaker_.Data(call, "flush");
    return Filter::DoFlush(call);
  }
  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override {
    speaker_.Data(call, "trim count=", length, " offset=", offset, " fua=", Fua(call));
    return Filter::DoTrim(call, offset, length);
  }
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override {
    speaker_.Data(call, "zero count=", length, " offset=", offset,
                  " may_trim=", call.flags & kNoHole ? 0 : 1, " fua=", Fua(call),
                  " fast=", call.flags & kFastZero ? 1 : 0);
    return Filter::DoZero(call, offset, length);
  }
  Task<absl::Status> DoCache(const Call& call, uint64_t offset, uint64_t length) override {
    speaker_.Data(call, "cache count=", length, " offset=", offset);
    return Filter::DoCache(call, offset, length);
  }
  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override {
    speaker_.Data(call, "extents count=", list->end() - list->start(), " offset=", list->start(),
                  " req_one=", call.flags & kRequestOne ? 1 : 0);
    return Filter::DoExtents(call, context, list);
  }
  bool DoBorrow(const Call& call, uint64_t offset, uint64_t length, Loan* loan) override {
    if (!Filter::DoBorrow(call, offset, length, loan)) return false;
    speaker_.Data(call, "pread count=", length, " offset=", offset);
    return true;
  }
  Task<absl::Status> DoClose() override {
    speaker_.Control("close");
    return Filter::DoClose();
  }

 private:
  static int Fua(const Call& call) { return call.flags & kFua ? 1 : 0; }
  const Speaker speaker_;
};

class TracedLayer final : public FilterLayer {
 public:
  TracedLayer(LayerPtr below, Speaker speaker)
      : FilterLayer(std::move(below)), speaker_(std::move(speaker)) {}

  absl::Status Ready() override {
    speaker_.Control("config_complete");
    BLK_RETURN_IF_ERROR(below().Ready());
    speaker_.Control("get_ready");
    return absl::OkStatus();
  }
  Task<absl::Status> Start() override {
    speaker_.Control("after_fork");
    return FilterLayer::Start();
  }
  Task<absl::Status> Preconnect(const Peer& peer) override {
    speaker_.Control("preconnect");
    return FilterLayer::Preconnect(peer);
  }
  Task<absl::StatusOr<ExportList>> ListExports(const OpenArgs& args) override {
    speaker_.Control("list_exports readonly=", args.read_only ? 1 : 0, " tls=", args.tls ? 1 : 0);
    return FilterLayer::ListExports(args);
  }
  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    speaker_.Control("open readonly=", args.read_only ? 1 : 0, " exportname=\"", args.export_name,
                     "\" tls=", args.tls ? 1 : 0);
    return FilterLayer::Open(std::move(args));
  }
  Task<absl::Status> Stop() override {
    speaker_.Control("cleanup");
    return FilterLayer::Stop();
  }

 protected:
  absl::StatusOr<DevicePtr> Wrap(DevicePtr device, const OpenArgs&) override {
    for (std::string_view asked :
         {"get_size", "can_write", "can_zero", "can_fast_zero", "can_trim", "can_fua", "can_flush",
          "is_rotational", "can_multi_conn", "can_cache", "can_extents", "block_size"})
      speaker_.Control(asked);
    speaker_.Control("open returned handle 0x",
                     absl::Hex(reinterpret_cast<uintptr_t>(device.get())));
    return std::make_shared<TracedDevice>(std::move(device), speaker_);
  }

 private:
  const Speaker speaker_;
};

}  // namespace

LayerHook MakeNbdkitTraceHook(NbdkitTrace trace, std::string plugin) {
  return [trace, plugin](LayerPtr layer, const Spec& spec) -> LayerPtr {
    return std::make_shared<TracedLayer>(std::move(layer),
                                         Speaker{trace, plugin, NbdkitShownName(spec)});
  };
}

}  // namespace blk
