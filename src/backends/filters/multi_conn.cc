// multi-conn: makes a flush of one client cover what all clients have written, or says that it
// does.
//
// Parallel-safe: the list of open devices and the dirty marks are locked for moments; a device that
// is being flushed for another is not closed meanwhile.
#include <cerrno>
#include <optional>

#include "src/backends/filters/flush_group.h"
#include "src/backends/filters/request.h"
#include "src/core/spec.h"

namespace blk {
namespace {

enum class Mode { kAuto, kEmulate, kDisable, kPlugin, kUnsafe };
enum class Track { kConnection, kFast, kOff };

struct Config {
  Mode mode = Mode::kAuto;
  Track track = Track::kConnection;
  bool by_name = false;
};

struct Shared {
  Config config;
  FlushGroup members;
  Mutex flushing;  // held while the marks of all are taken and acted upon
};

class MultiConnDevice final : public RequestFilter {
 public:
  MultiConnDevice(FlushGroup::MemberPtr self, Facts facts, Shared* shared, bool emulate)
      : RequestFilter(self->device, std::move(facts)),
        self_(std::move(self)),
        shared_(*shared),
        config_(shared->config),
        emulate_(emulate) {}

 protected:
  Task<absl::Status> Handle(Request request) override {
    if (request.operation == Operation::kFlush) return FlushAll(request);
    const bool writes = request.operation == Operation::kWrite ||
                        request.operation == Operation::kTrim ||
                        request.operation == Operation::kZero;
    // A read may have put bytes into a cache of this connection that others make stale.
    if (writes || request.operation == Operation::kRead) return Marked(request, writes);
    return Perform(&below(), request);
  }

  Task<absl::Status> DoClose() override {
    shared_.members.Remove(self_);
    co_return co_await self_->Close();
  }

 private:
  Task<absl::Status> Marked(Request request, bool writes) {
    // FUA promises that this write is on stable storage for all.
    const bool fua = writes && request.has(kFua) && emulate_;
    const Call plain = request.call->With(request.call->flags & ~kFua);
    const Call& asked = *request.call;
    if (fua) request.call = &plain;
    absl::Status status = co_await Perform(&below(), request);
    if (writes || config_.track == Track::kConnection) self_->dirty = true;
    if (!status.ok() || !fua) co_return status;
    const Call flush = asked.With(0);
    co_return co_await FlushAll({Operation::kFlush, &flush});
  }

  Task<absl::Status> FlushAll(Request request) {
    std::vector<FlushGroup::MemberPtr> targets = {self_};
    if (emulate_ || config_.track == Track::kFast) targets = shared_.members.All();
    std::optional<MutexGuard> guard;
    if (config_.track == Track::kFast) {
      guard.emplace(co_await shared_.flushing.Lock());
      // Any dirty one makes all need it; then all are clean.
      bool dirty = false;
      for (const FlushGroup::MemberPtr& one : targets) dirty = one->dirty.exchange(false) || dirty;
      if (!dirty) co_return absl::OkStatus();
      if (!emulate_) targets = {self_};
    }
    absl::Status status;
    for (const FlushGroup::MemberPtr& one : targets) {
      if (config_.by_name && one->export_name != self_->export_name) continue;
      status.Update(
          co_await one->Flush(*request.call, /*enough=*/config_.track == Track::kConnection));
    }
    co_return status;
  }

  const FlushGroup::MemberPtr self_;
  Shared& shared_;
  const Config& config_;
  const bool emulate_;
};

class MultiConnLayer final : public FilterLayer {
 public:
  MultiConnLayer(LayerPtr below, Config config) : FilterLayer(std::move(below)) {
    shared_.config = config;
  }

 protected:
  absl::StatusOr<DevicePtr> Wrap(DevicePtr device, const OpenArgs& args) override {
    Facts facts = device->facts();
    Mode mode = shared_.config.mode;
    if (mode == Mode::kAuto) {
      mode = thread_model() == ThreadModel::kSerializeConnections ? Mode::kDisable
             : facts.multi_conn                                   ? Mode::kPlugin
                                                                  : Mode::kEmulate;
    }
    if (mode == Mode::kEmulate && !facts.flush)
      return ErrnoErrorAsIs(EINVAL,
                            "multi-conn-mode=emulate needs a disk below that can be flushed");
    if (mode != Mode::kPlugin) facts.multi_conn = mode != Mode::kDisable;
    const bool emulate = mode == Mode::kEmulate;
    return std::make_shared<MultiConnDevice>(
        shared_.members.Add(std::move(device), args.export_name, emulate), std::move(facts),
        &shared_, emulate);
  }

 private:
  Shared shared_;
};

}  // namespace

const Spec& MultiConnSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("multi-conn", "let a flush of one client cover the writes of all")
          .Param("multi-conn-mode", &Config::mode,
                 {{"auto", Mode::kAuto},
                  {"emulate", Mode::kEmulate},
                  {"disable", Mode::kDisable},
                  {"plugin", Mode::kPlugin},
                  {"unsafe", Mode::kUnsafe}},
                 {.help = "flush all where the disk needs it, always, or never; or only say so, "
                          "which is not safe"})
          .Param("multi-conn-track-dirty", &Config::track,
                 {{"connection", Track::kConnection}, {"fast", Track::kFast}, {"off", Track::kOff}},
                 {.help = "leave out flushes of a client that has none to do, of all when none "
                          "has written, or none"})
          .Param("multi-conn-exportname", &Config::by_name,
                 {.help = "exports of different names have nothing to do with each other"})
          .Example("multi-conn+memory:64K")
          .Make([](Config config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<MultiConnLayer>(std::move(below), config);
          }));
  return spec;
}

}  // namespace blk
