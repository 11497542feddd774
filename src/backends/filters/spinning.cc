// spinning: seek times of a disk with moving heads. Requests of one arm wait for each other, as
// they do there; reading and writing itself takes no time.
//
// Parallel-safe: where the arms are is behind a lock that is held for moments; each request waits
// on a timer of its own.
#include <algorithm>
#include <mutex>
#include <vector>

#include "src/backends/filters/request.h"
#include "src/core/loop.h"
#include "src/core/spec.h"

namespace blk {
namespace {

using std::chrono::milliseconds;

struct Config {
  uint32_t heads = 1;
  bool separate_heads = false;
  Nanoseconds min_seek = milliseconds(1), half_seek = milliseconds(8), max_seek = milliseconds(15);
};

// Where the heads are, for all devices of the layer.
class Arms {
 public:
  explicit Arms(const Config& config)
      : config_(config), arms_(config.separate_heads ? config.heads : 1) {}

  // Sends the arm to `offset` of a disk of this size, from where it goes on to the end of the
  // request; returns when it will have got there.
  int64_t Seek(uint64_t offset, uint64_t length, uint64_t disk_bytes, int64_t now_ns) {
    // Each head has its share of the disk, from the first track to the last.
    const uint64_t share = std::max<uint64_t>((disk_bytes + config_.heads - 1) / config_.heads, 1);
    auto track_of = [share](uint64_t byte) {
      return static_cast<double>(byte % share) / static_cast<double>(share);
    };
    std::lock_guard lock(mutex_);
    Arm& arm = arms_[config_.separate_heads ? offset / share : 0];
    arm.free_ns = std::max(arm.free_ns, now_ns) + SeekNs(std::abs(track_of(offset) - arm.track));
    arm.track =
        track_of(offset + std::max<uint64_t>(length, 1) - 1) + 1.0 / static_cast<double>(share);
    return arm.free_ns;
  }

 private:
  struct Arm {
    double track = 0;  // 0 the first ... 1 the last
    int64_t free_ns = 0;
  };

  // `distance` is a share of all tracks. Between the three times that are known, in proportion.
  int64_t SeekNs(double distance) const {
    const double min = static_cast<double>(config_.min_seek.count()),
                 half = static_cast<double>(config_.half_seek.count()),
                 max = static_cast<double>(config_.max_seek.count());
    if (distance < 1e-9) return 0;  // goes on where it was
    if (distance < 0.5) return static_cast<int64_t>(min + (half - min) * distance * 2);
    return static_cast<int64_t>(half + (max - half) * (distance - 0.5) * 2);
  }

  const Config config_;
  std::mutex mutex_;
  std::vector<Arm> arms_;  // guarded by mutex_
};

Facts Rotating(Facts facts) {
  facts.rotational = true;
  return facts;
}

class SpinningDevice final : public RequestFilter {
 public:
  SpinningDevice(DevicePtr below, Arms* arms)
      : RequestFilter(below, Rotating(below->facts())), arms_(*arms) {}

 protected:
  Task<absl::Status> Handle(Request request) override {
    // What needs no head: the map of the disk, and what a flush finds in the disk's own memory.
    if (request.operation == Operation::kExtents || request.operation == Operation::kFlush)
      return Perform(&below(), request);
    return AfterSeek(request);
  }

 private:
  Task<absl::Status> AfterSeek(Request request) {
    const int64_t now_ns = Loop::Current()->NowNs();
    const int64_t there_ns = arms_.Seek(request.offset, request.length, size(), now_ns);
    BLK_CO_RETURN_IF_ERROR(co_await SleepFor(*request.call, there_ns - now_ns));
    co_return co_await Perform(&below(), request);
  }

  Arms& arms_;
};

class SpinningLayer final : public FilterLayer {
 public:
  SpinningLayer(LayerPtr below, const Config& config)
      : FilterLayer(std::move(below)), arms_(config) {}

 protected:
  absl::StatusOr<DevicePtr> Wrap(DevicePtr device, const OpenArgs&) override {
    return std::make_shared<SpinningDevice>(std::move(device), &arms_);
  }

 private:
  Arms arms_;
};

}  // namespace

const Spec& SpinningSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("spinning", "seek times of a disk with moving heads")
          .Param("heads", &Config::heads,
                 {.help = "between how many heads the disk is divided", .min = "1", .max = "1024"})
          .Param("separate-heads", &Config::separate_heads,
                 {.help = "the heads move each for itself, not all together"})
          .Param("min-seek-time", &Config::min_seek, {.help = "time to the next track"})
          .Param("half-seek-time", &Config::half_seek, {.help = "time across half of the disk"})
          .Param("max-seek-time", &Config::max_seek, {.help = "time across the whole disk"})
          .Description(
              "Requests that go on where the last one ended need no seek. The others wait until "
              "the heads are there, one after the other.")
          .Example("spinning(min-seek-time=1us,half-seek-time=2us,max-seek-time=3us)+memory:64K")
          .PrintedExample("spinning(heads=4)+disk.img")
          .Make([](Config config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            if (config.min_seek > config.half_seek || config.half_seek > config.max_seek)
              return absl::InvalidArgumentError(
                  "min-seek-time, half-seek-time and max-seek-time must not become smaller in this "
                  "order");
            return std::make_shared<SpinningLayer>(std::move(below), config);
          }));
  return spec;
}

}  // namespace blk
