// rate: bounds how many bits a second are read and written, by each connection and by all together.
// Reading and writing have a bucket each. Parallel-safe: buckets are locked for moments.
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <mutex>

#include "absl/strings/ascii.h"
#include "src/backends/filters/request.h"
#include "src/core/loop.h"
#include "src/core/spec.h"
#include "src/core/trace.h"

namespace blk {
namespace {

constexpr double kNsPerSecond = 1e9;
constexpr int64_t kStepNsMax = 250'000'000;  // a change of rate is noticed within such a step
constexpr int64_t kFileNsMin = 100'000'000;  // between looks at a rate file

struct Config {
  std::optional<BitRate> rate, connection_rate;
  std::string rate_file, connection_rate_file;
  double burstiness = 2.0;
};

// What has not been used is kept for as many seconds as the burstiness says, so a bucket begins
// full.
class Bucket {
 public:
  explicit Bucket(double burst_seconds) : burst_seconds_(burst_seconds) {}

  // Takes what there is of `bits` and returns how long to wait for the rest; 0: all was taken.
  // `bits` becomes the rest. No rate: no limit.
  int64_t TakeNs(uint64_t rate, int64_t now_ns, double* bits) {
    if (rate == 0) return 0;
    std::lock_guard lock(mutex_);
    const double capacity = static_cast<double>(rate) * burst_seconds_;
    if (then_ns_ == 0) {
      level_ = capacity;
    } else {
      level_ += static_cast<double>(now_ns - then_ns_) / kNsPerSecond * static_cast<double>(rate);
    }
    level_ = std::min(level_, capacity);
    then_ns_ = now_ns;
    const double taken = std::min(*bits, level_);
    level_ -= taken;
    *bits -= taken;
    if (*bits < 1) return 0;
    const double wait_ns = std::min(*bits, capacity) / static_cast<double>(rate) * kNsPerSecond;
    return std::clamp<int64_t>(static_cast<int64_t>(wait_ns), 1, kStepNsMax);
  }

 private:
  const double burst_seconds_;
  std::mutex mutex_;
  double level_ = 0;  // bits that may be used at once
  int64_t then_ns_ = 0;
};

// A rate that a file may change.
class Limit {
 public:
  Limit(std::optional<BitRate> rate, std::string file)
      : rate_(rate.value_or(BitRate{}).bits_per_second), file_(std::move(file)) {}

  bool active() const { return rate_ != 0 || !file_.empty(); }

  // Bits a second, now; 0: no limit.
  Task<uint64_t> Get() {
    if (file_.empty()) return rate_.load();
    int64_t next = next_look_ns_.load(), now_ns = Loop::Current()->NowNs();
    // Whoever comes first looks.
    if (now_ns < next || !next_look_ns_.compare_exchange_strong(next, now_ns + kFileNsMin))
      return rate_.load();
    return Look();
  }

 private:
  Task<uint64_t> Look() {
    std::string text;
    co_await Loop::Current()->Offload([&] { text = ReadFile(); });
    // No file, or one that is being written: what was last read goes on.
    if (!text.empty()) {
      auto rate = ParseBitRate(text);
      if (rate.ok()) rate_ = rate->bits_per_second;
      if (!rate.ok()) LogError(absl::StrCat("rate: ", file_, ": ", rate.status().message()));
    }
    co_return rate_.load();
  }
  std::string ReadFile() const {
    char text[64];
    int fd = open(file_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t got = fd < 0 ? 0 : read(fd, text, sizeof text);
    if (fd >= 0) close(fd);
    return std::string(
        absl::StripAsciiWhitespace({text, static_cast<size_t>(std::max<ssize_t>(got, 0))}));
  }

  std::atomic<uint64_t> rate_;
  const std::string file_;
  std::atomic<int64_t> next_look_ns_{0};
};

struct Buckets {
  explicit Buckets(double burst_seconds) : read(burst_seconds), write(burst_seconds) {}
  Bucket read, write;
};

struct Shared {
  explicit Shared(const Config& config)
      : all(config.rate, config.rate_file),
        connection(config.connection_rate, config.connection_rate_file),
        buckets(config.burstiness) {}
  Limit all, connection;
  Buckets buckets;
};

class RateDevice final : public RequestFilter {
 public:
  RateDevice(DevicePtr below, Shared* shared, double burst_seconds)
      : RequestFilter(std::move(below)), shared_(*shared), own_(burst_seconds) {}

 protected:
  // Only reads and writes have bytes that are worth counting.
  Task<absl::Status> Handle(Request request) override {
    const bool reads = request.operation == Operation::kRead;
    if (!reads && request.operation != Operation::kWrite) return Perform(&below(), request);
    return Limited(request, reads);
  }

 private:
  Task<absl::Status> Limited(Request request, bool reads) {
    BLK_CO_RETURN_IF_ERROR(co_await Wait(*request.call, request.length, &shared_.all,
                                         reads ? &shared_.buckets.read : &shared_.buckets.write));
    BLK_CO_RETURN_IF_ERROR(co_await Wait(*request.call, request.length, &shared_.connection,
                                         reads ? &own_.read : &own_.write));
    co_return co_await Perform(&below(), request);
  }
  Task<absl::Status> Wait(const Call& call, uint64_t bytes, Limit* limit, Bucket* bucket) {
    if (!limit->active()) co_return absl::OkStatus();
    for (double bits = 8.0 * static_cast<double>(bytes);;) {
      const uint64_t rate = co_await limit->Get();
      int64_t wait_ns = bucket->TakeNs(rate, Loop::Current()->NowNs(), &bits);
      if (wait_ns == 0) co_return absl::OkStatus();
      BLK_CO_RETURN_IF_ERROR(co_await SleepFor(call, wait_ns));
    }
  }

  Shared& shared_;
  Buckets own_;
};

class RateLayer final : public FilterLayer {
 public:
  RateLayer(LayerPtr below, const Config& config)
      : FilterLayer(std::move(below)), shared_(config), burst_seconds_(config.burstiness) {}

 protected:
  absl::StatusOr<DevicePtr> Wrap(DevicePtr device, const OpenArgs&) override {
    if (!shared_.all.active() && !shared_.connection.active()) return device;
    return std::make_shared<RateDevice>(std::move(device), &shared_, burst_seconds_);
  }

 private:
  Shared shared_;
  const double burst_seconds_;
};

absl::StatusOr<LayerPtr> MakeRate(Config config, LayerPtr below) {
  if (config.burstiness <= 0)
    return absl::InvalidArgumentError("burstiness must be more than 0 seconds");
  return std::make_shared<RateLayer>(std::move(below), config);
}

}  // namespace

const Spec& RateSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("rate", "limit the bandwidth")
          .Param("rate", &Config::rate,
                 {.help = "bits a second for all connections together, each way", .min = "1"})
          .Param("connection-rate", &Config::connection_rate,
                 {.help = "bits a second for each connection, each way", .min = "1"})
          .Param("rate-file", &Config::rate_file,
                 {.help = "file with the rate; may change at any time",
                  .path = PathUse::kRead,
                  .later = true})
          .Param("connection-rate-file", &Config::connection_rate_file,
                 {.help = "file with the connection-rate", .path = PathUse::kRead, .later = true})
          .Param("burstiness", &Config::burstiness,
                 {.help = "how many seconds' worth may be saved up and used at once"})
          .Description(
              "Only the bytes of reads and writes count. Rate files are best replaced by renaming "
              "another over them; when one is deleted, the last rate stays.")
          .Example("rate(rate=1G)+memory:64K")
          .PrintedExample("rate(connection-rate=10M)+disk.img", "10 Mbit/s for each client")
          .Make(MakeRate));
  return spec;
}

}  // namespace blk
