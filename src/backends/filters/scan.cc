// scan: while there are clients, the whole disk is prefetched from its beginning to its end, ahead
// of whoever reads it. The disk below must have a cache, such as the cache filter.
//
// Parallel-safe: where the scan has come to is behind a lock that is held for moments; prefetches
// run in the background of one of the devices.
#include <algorithm>
#include <bit>
#include <mutex>

#include "src/backends/filters/background.h"
#include "src/core/spec.h"
#include "src/core/trace.h"

namespace blk {
namespace {

constexpr uint32_t kScanners = 8;                 // prefetches at a time
constexpr int64_t kRoundPauseNs = 1'000'000'000;  // a disk that is all there needs no haste
constexpr uint64_t kStepMin = 512, kStepMax = 32 << 20;

struct Config {
  bool ahead = true, clock = true, forever = false;
  Size step{2 << 20};
};

// One scan, for all devices of the layer.
class Position {
 public:
  explicit Position(const Config& config) : config_(config) {}

  // The next part of a disk of this size; length 0 at the end.
  std::pair<uint64_t, uint64_t> Take(uint64_t disk_bytes) {
    std::lock_guard lock(mutex_);
    const uint64_t offset = std::min(next_, disk_bytes), step = config_.step.bytes;
    const uint64_t length = std::min(step - offset % step, disk_bytes - offset);
    next_ = offset + length;
    return {offset, length};
  }
  // Somebody has read up to here.
  void Skip(uint64_t offset) {
    std::lock_guard lock(mutex_);
    next_ = std::max(next_, offset);
  }
  void Restart() {
    std::lock_guard lock(mutex_);
    next_ = 0;
  }

  // One device at a time scans. True for the caller who may.
  bool Claim() { return !claimed_.exchange(true); }
  void GiveUp() { claimed_ = false; }
  bool claimed() const { return claimed_.load(std::memory_order_relaxed); }

  void Joined() {
    if (clients_++ == 0 && !config_.clock) Restart();
  }
  void Left() { --clients_; }

 private:
  const Config& config_;
  std::atomic<bool> claimed_{false};
  std::atomic<int> clients_{0};
  std::mutex mutex_;
  uint64_t next_ = 0;  // guarded by mutex_
};

class ScanDevice final : public Filter {
 public:
  ScanDevice(DevicePtr below, const Config& config, Position* position)
      : Filter(below, below->facts()),
        config_(config),
        position_(*position),
        background_(kScanners) {
    position_.Joined();
  }

  // Unless another device does.
  void StartScan() {
    if (!position_.Claim()) return;
    scans_ = true;
    for (uint32_t i = 0; i < kScanners; ++i) background_.Start(Scan(i == 0));
  }

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    if (config_.ahead) position_.Skip(offset + into.size());
    if (!position_.claimed() && !background_.stopped()) StartScan();
    return below().Read(call, offset, into);
  }
  Task<absl::Status> DoClose() override {
    co_await background_.Stop();
    if (scans_) position_.GiveUp();
    position_.Left();
    co_return co_await below().Close();
  }

 private:
  // The leader begins again at the end if that is wanted; the others help it for one round.
  Task<void> Scan(bool leader) {
    const Call call = background_.call();
    while (!background_.stopped()) {
      const auto [offset, length] = position_.Take(size());
      if (length > 0) {
        absl::Status status = co_await below().Cache(call, offset, length);
        if (!status.ok()) LogDebug("scan: ", status.message());
        co_await Yield();  // a cache that has it already answers at once, for the whole disk
        continue;
      }
      if (!leader || !config_.forever) co_return;
      if (!(co_await Loop::Current()->Sleep(kRoundPauseNs, call.stop)).ok()) co_return;
      position_.Restart();
    }
  }

  const Config& config_;
  Position& position_;
  std::atomic<bool> scans_{false};
  Background background_;
};

class ScanLayer final : public FilterLayer {
 public:
  ScanLayer(LayerPtr below, const Config& config)
      : FilterLayer(std::move(below)), config_(config), position_(config_) {}

 protected:
  absl::StatusOr<DevicePtr> Wrap(DevicePtr device, const OpenArgs& args) override {
    if (!args.export_name.empty()) return device;  // only one disk has been looked at
    if (device->facts().cache == Support::kNone) {
      LogWarning(
          "scan: the disk below cannot prefetch, so this filter does nothing: put the "
          "filter cache below it");
      return device;
    }
    auto scan = std::make_shared<ScanDevice>(std::move(device), config_, &position_);
    scan->StartScan();
    return scan;
  }

 private:
  const Config config_;
  Position position_;
};

}  // namespace

const Spec& ScanSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("scan", "prefetch the whole disk while there are clients")
          .Param("scan-ahead", &Config::ahead,
                 {.help = "skip what lies before the place where a client reads"})
          .Param("scan-clock", &Config::clock,
                 {.help = "when clients come back, go on where the scan was left"})
          .Param("scan-forever", &Config::forever, {.help = "at the end begin again"})
          .Param("scan-size", &Config::step,
                 {.help = "how much to prefetch at a time: a power of two from 512 to 32M"})
          .Description(
              "The disk below must be able to prefetch. What cannot gets the filter cache, or cow "
              "with cow-on-cache=true, below this one; then all of the disk comes to be in a "
              "temporary file. Only the default export is scanned.")
          .Example("scan+memory:64K")
          .Example("scan+cache+memory:1M")
          .PrintedExample("scan+cache(cache-max-size=1G)+nbd://host/disk")
          .Make([](Config config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            const uint64_t step = config.step.bytes;
            if (!std::has_single_bit(step) || step < kStepMin || step > kStepMax)
              return absl::InvalidArgumentError(
                  "scan-size must be a power of two and between 512 and 32M");
            return std::make_shared<ScanLayer>(std::move(below), config);
          }));
  return spec;
}

}  // namespace blk
