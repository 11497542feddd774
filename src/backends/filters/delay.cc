// delay: makes operations slow. Parallel-safe: each request waits on a timer of its own.
#include <unistd.h>

#include <cerrno>

#include "src/backends/filters/request.h"
#include "src/core/loop.h"
#include "src/core/spec.h"

namespace blk {
namespace {

struct Config {
  Nanoseconds read{}, wdelay{}, extents{}, cache{}, open{}, close{};
  std::optional<Nanoseconds> write, zero, trim;  // unset: wdelay
  bool fast_zero = true;
  std::string trigger;

  int64_t ForNs(Operation operation) const {
    switch (operation) {
      case Operation::kRead:
        return read.count();
      case Operation::kWrite:
        return write.value_or(wdelay).count();
      case Operation::kTrim:
        return trim.value_or(wdelay).count();
      case Operation::kZero:
        return zero.value_or(wdelay).count();
      case Operation::kExtents:
        return extents.count();
      case Operation::kCache:
        return cache.count();
      case Operation::kFlush:
        break;
    }
    return 0;
  }
  bool armed() const { return trigger.empty() || access(trigger.c_str(), F_OK) == 0; }
};

class DelayDevice final : public RequestFilter {
 public:
  DelayDevice(DevicePtr below, const Config& config)
      : RequestFilter(std::move(below)), config_(config) {}

 protected:
  Task<absl::Status> Handle(Request request) override {
    if (request.has(kFastZero) && !config_.fast_zero)
      return ErrnoErrorAsIs(EOPNOTSUPP, "zeroing here is no faster than writing");
    const int64_t delay_ns = config_.ForNs(request.operation);
    if (delay_ns == 0 || !config_.armed()) return Perform(&below(), request);
    return Late(request, delay_ns);
  }
  Task<absl::Status> DoClose() override {
    if (config_.armed()) (void)co_await SleepFor(Call(), config_.close.count());
    co_return co_await below().Close();
  }

 private:
  Task<absl::Status> Late(Request request, int64_t delay_ns) {
    BLK_CO_RETURN_IF_ERROR(co_await SleepFor(*request.call, delay_ns));
    co_return co_await Perform(&below(), request);
  }

  const Config& config_;
};

class DelayLayer final : public FilterLayer {
 public:
  DelayLayer(LayerPtr below, Config config)
      : FilterLayer(std::move(below)), config_(std::move(config)) {}

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    if (config_.armed()) (void)co_await SleepFor(Call(), config_.open.count());
    BLK_CO_ASSIGN_OR_RETURN(DevicePtr device, co_await below().Open(std::move(args)));
    co_return std::make_shared<DelayDevice>(std::move(device), config_);
  }

 private:
  const Config config_;
};

}  // namespace

const Spec& DelaySpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("delay", "make operations slow")
          .Param("delay-read", &Config::read, {.help = "delay reads", .aliases = {"rdelay"}})
          .Param("wdelay", &Config::wdelay, {.help = "delay writes, zeroes and trims"})
          .Param("delay-write", &Config::write, {.help = "delay writes, instead of wdelay"})
          .Param("delay-zero", &Config::zero, {.help = "delay zeroes, instead of wdelay"})
          .Param("delay-trim", &Config::trim, {.help = "delay trims, instead of wdelay"})
          .Param("delay-extents", &Config::extents, {.help = "delay questions about extents"})
          .Param("delay-cache", &Config::cache, {.help = "delay prefetches"})
          .Param("delay-open", &Config::open, {.help = "delay the opening of the disk"})
          .Param("delay-close", &Config::close, {.help = "delay its closing"})
          .Param("delay-fast-zero", &Config::fast_zero,
                 {.help = "false: refuse fast zeroes at once"})
          .Param(
              "delay-trigger", &Config::trigger,
              {.help = "delay only while this file exists", .path = PathUse::kRead, .later = true})
          .Example("delay(rdelay=1ms)+memory:64K", "each read takes a millisecond longer")
          .PrintedExample("delay(rdelay=100ms,wdelay=100ms)+disk.img", "a far-away disk")
          .Make([](Config config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<DelayLayer>(std::move(below), std::move(config));
          }));
  return spec;
}

}  // namespace blk
