// multi-conn: makes a flush of one client cover what all clients have written, or says that it
// does.
//
// Parallel-safe: the marks are atomic, and the flushes of a group come one after the other; a
// device that is being flushed for another is not closed meanwhile.
#include <atomic>
#include <cerrno>
#include <map>
#include <memory>
#include <mutex>
#include <string>

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

// Clients whose writes a flush of any of them covers.
struct Group {
  std::atomic<bool> dirty{false};  // somebody has written since the last flush
  Mutex flushing;                  // held while the marks of all are taken and acted upon
};

struct Shared {
  Config config;
  FlushGroup members;

  std::shared_ptr<Group> GroupOf(const std::string& export_name) {
    std::lock_guard lock(mutex);
    std::erase_if(groups, [](const auto& entry) { return entry.second.expired(); });
    std::weak_ptr<Group>& entry = groups[config.by_name ? export_name : ""];
    std::shared_ptr<Group> group = entry.lock();
    if (!group) entry = group = std::make_shared<Group>();
    return group;
  }

  std::mutex mutex;
  std::map<std::string, std::weak_ptr<Group>> groups;  // guarded by mutex; of open devices
};

class MultiConnDevice final : public RequestFilter {
 public:
  MultiConnDevice(FlushGroup::MemberPtr self, std::shared_ptr<Group> group, Facts facts,
                  Shared* shared, bool emulate)
      : RequestFilter(self->device, std::move(facts)),
        self_(std::move(self)),
        group_(std::move(group)),
        members_(shared->members),
        config_(shared->config),
        emulate_(emulate) {}

 protected:
  Task<absl::Status> Handle(Request request) override {
    switch (request.operation) {
      case Operation::kFlush:
        return FlushAll(request);
      case Operation::kExtents:
        return Perform(&below(), request);
      case Operation::kRead:
      case Operation::kCache:
        return Marked(request, /*writes=*/false);
      default:
        return Marked(request, /*writes=*/true);
    }
  }

  Task<absl::Status> DoClose() override {
    members_.Remove(self_);
    co_return co_await self_->Close();
  }

 private:
  Task<absl::Status> Marked(Request request, bool writes) {
    // FUA promises that this write is on stable storage for all.
    const bool fua = writes && request.has(kFua);
    const Call plain = request.call->With(request.call->flags & ~kFua);
    const Call& asked = *request.call;
    if (fua && emulate_) request.call = &plain;
    absl::Status status = co_await Perform(&below(), request);
    if (!fua || emulate_ || !status.ok()) Mark(writes);
    if (!status.ok() || !fua || !emulate_) co_return status;
    const Call flush = asked.With(0);
    co_return co_await FlushAll({Operation::kFlush, &flush});
  }

  void Mark(bool writes) {
    if (config_.track == Track::kOff) return;
    if (config_.track == Track::kConnection) (writes ? self_->dirty : self_->has_read) = true;
    if (writes) group_->dirty = true;
  }

  // Marks go before the flush, and come back when it fails.
  Task<absl::Status> FlushAll(Request request) {
    MutexGuard guard = co_await group_->flushing.Lock();
    const bool dirty = group_->dirty.exchange(false);
    absl::Status status;
    if (emulate_) {
      status = co_await FlushEach(request, dirty);
    } else if (dirty || config_.track == Track::kOff) {
      status = co_await self_->Flush(*request.call, /*enough=*/false);
      // A disk that says nothing of other connections was flushed for this one only.
      const bool covers_all = below().facts().multi_conn || config_.track == Track::kFast;
      if (status.ok() && !covers_all) group_->dirty = true;
    }
    if (!status.ok() && dirty) group_->dirty = true;
    co_return status;
  }

  // What others have written makes stale what one has read.
  Task<absl::Status> FlushEach(Request request, bool group_dirty) {
    absl::Status status;
    for (const FlushGroup::MemberPtr& one : members_.All()) {
      if (config_.by_name && one->export_name != self_->export_name) continue;
      const bool has_read = group_dirty && one->has_read.exchange(false);
      const bool stale = has_read || (group_dirty && config_.track == Track::kFast);
      const absl::Status flushed =
          co_await one->Flush(*request.call, /*enough=*/config_.track != Track::kOff && !stale);
      if (!flushed.ok() && has_read) one->has_read = true;
      status.Update(flushed);
    }
    co_return status;
  }

  const FlushGroup::MemberPtr self_;
  const std::shared_ptr<Group> group_;
  FlushGroup& members_;
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
    if (mode == Mode::kEmulate && facts.fua != Support::kNone) facts.fua_by_flush = true;
    const bool emulate = mode == Mode::kEmulate;
    return std::make_shared<MultiConnDevice>(
        shared_.members.Add(std::move(device), args.export_name, emulate),
        shared_.GroupOf(args.export_name), std::move(facts), &shared_, emulate);
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
                 {{"connection", Track::kConnection},
                  {"conn", Track::kConnection},
                  {"fast", Track::kFast},
                  {"off", Track::kOff}},
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
