// multi-conn: makes a flush of one client cover what all clients have written, or says that it
// does.
//
// Parallel-safe: the list of open devices and the dirty marks are locked for moments; a device that
// is being flushed for another is not closed meanwhile.
#include <algorithm>
#include <cerrno>
#include <list>
#include <memory>
#include <mutex>
#include <optional>

#include "src/backends/filters/request.h"
#include "src/core/spec.h"
#include "src/core/sync.h"

namespace blk {
namespace {

enum class Mode { kAuto, kEmulate, kDisable, kPlugin, kUnsafe };
enum class Track { kConnection, kFast, kOff };

struct Config {
  Mode mode = Mode::kAuto;
  Track track = Track::kConnection;
  bool by_name = false;
};

// One open device, as others see it.
struct Member {
  DevicePtr device;  // the one below
  std::string export_name;
  Mutex in_use;         // held while it is flushed for another, and to close it
  bool closed = false;  // guarded by in_use
  std::atomic<bool> dirty{false};
};
using MemberPtr = std::shared_ptr<Member>;

class Members {
 public:
  void Add(MemberPtr member) {
    std::lock_guard lock(mutex_);
    all_.push_back(std::move(member));
  }
  void Remove(const MemberPtr& member) {
    std::lock_guard lock(mutex_);
    std::erase(all_, member);
  }
  // Held while the marks of all are taken and acted upon.
  Mutex& flushing() { return flushing_; }
  std::vector<MemberPtr> All() const {
    std::lock_guard lock(mutex_);
    return all_;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<MemberPtr> all_;
  Mutex flushing_;
};

class MultiConnDevice final : public RequestFilter {
 public:
  MultiConnDevice(MemberPtr self, Facts facts, Members* members, const Config& config, bool emulate)
      : RequestFilter(self->device, std::move(facts)),
        self_(std::move(self)),
        members_(*members),
        config_(config),
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
    members_.Remove(self_);
    MutexGuard guard = co_await self_->in_use.Lock();
    self_->closed = true;
    co_return co_await below().Close();
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
    std::vector<MemberPtr> targets = {self_};
    if (emulate_ || config_.track == Track::kFast) targets = members_.All();
    std::optional<MutexGuard> guard;
    if (config_.track == Track::kFast) {
      guard.emplace(co_await members_.flushing().Lock());
      // Any dirty one makes all need it; then all are clean.
      bool dirty = false;
      for (const MemberPtr& one : targets) dirty = one->dirty.exchange(false) || dirty;
      if (!dirty) co_return absl::OkStatus();
      if (!emulate_) targets = {self_};
    }
    absl::Status status;
    for (const MemberPtr& one : targets) {
      if (config_.by_name && one->export_name != self_->export_name) continue;
      status.Update(co_await FlushOne(one, request));
    }
    co_return status;
  }

  // A mark that is gone says nothing before the flush that took it has ended: it may yet fail.
  Task<absl::Status> FlushOne(MemberPtr one, Request request) {
    MutexGuard guard = co_await one->in_use.Lock();
    if (one->closed) co_return absl::OkStatus();
    if (config_.track == Track::kConnection && !one->dirty.exchange(false))
      co_return absl::OkStatus();
    absl::Status status = co_await one->device->Flush(*request.call);
    if (!status.ok()) one->dirty = true;
    co_return status;
  }

  const MemberPtr self_;
  Members& members_;
  const Config& config_;
  const bool emulate_;
};

class MultiConnLayer final : public FilterLayer {
 public:
  MultiConnLayer(LayerPtr below, Config config) : FilterLayer(std::move(below)), config_(config) {}

 protected:
  absl::StatusOr<DevicePtr> Wrap(DevicePtr device, const OpenArgs& args) override {
    Facts facts = device->facts();
    Mode mode = config_.mode;
    if (mode == Mode::kAuto) {
      mode = thread_model() == ThreadModel::kSerializeConnections ? Mode::kDisable
             : facts.multi_conn                                   ? Mode::kPlugin
                                                                  : Mode::kEmulate;
    }
    if (mode == Mode::kEmulate && !facts.flush)
      return ErrnoErrorAsIs(EINVAL,
                            "multi-conn-mode=emulate needs a disk below that can be flushed");
    if (mode != Mode::kPlugin) facts.multi_conn = mode != Mode::kDisable;
    auto member = std::make_shared<Member>();
    member->device = std::move(device);
    member->export_name = args.export_name;
    members_.Add(member);
    return std::make_shared<MultiConnDevice>(std::move(member), std::move(facts), &members_,
                                             config_, mode == Mode::kEmulate);
  }

 private:
  const Config config_;
  Members members_;
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
