// limit: so many clients at a time. Parallel-safe: one atomic counter.
#include <atomic>
#include <cerrno>

#include "src/core/spec.h"

namespace blk {
namespace {

struct Config {
  uint32_t limit = 1;
};

class CountedDevice final : public Filter {
 public:
  CountedDevice(DevicePtr below, std::atomic<uint32_t>* clients)
      : Filter(below, below->facts(), /*passes_data=*/true), clients_(*clients) {}

 protected:
  Task<absl::Status> DoClose() override {
    absl::Status status = co_await below().Close();
    --clients_;
    co_return status;
  }

 private:
  std::atomic<uint32_t>& clients_;
};

class LimitLayer final : public FilterLayer {
 public:
  LimitLayer(LayerPtr below, uint32_t limit) : FilterLayer(std::move(below)), limit_(limit) {}

  // A client that is too much is sent away before anything is said to it.
  Task<absl::Status> Preconnect(const Peer& peer) override {
    if (limit_ != 0 && clients_ >= limit_) return TooMany();
    return below().Preconnect(peer);
  }
  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    if (limit_ == 0) co_return co_await below().Open(std::move(args));
    if (clients_.fetch_add(1) >= limit_) {
      --clients_;
      co_return TooMany();
    }
    auto device = co_await below().Open(std::move(args));
    if (!device.ok()) {
      --clients_;
      co_return device;
    }
    co_return std::make_shared<CountedDevice>(*std::move(device), &clients_);
  }

 private:
  absl::Status TooMany() const {
    return ErrnoErrorAsIs(EAGAIN, absl::StrCat("there are ", limit_,
                                               " clients already, which is the limit: this one is "
                                               "sent away"));
  }
  const uint32_t limit_;
  std::atomic<uint32_t> clients_{0};  // with an open device
};

}  // namespace

const Spec& LimitSpec() {
  static const Spec& spec =
      *new Spec(FilterSpec<Config>("limit", "limit how many clients there are at a time")
                    .Param("limit", &Config::limit, {.help = "most clients; 0: any number"})
                    .Example("limit(limit=100)+memory:64K")
                    .Make([](Config config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
                      return std::make_shared<LimitLayer>(std::move(below), config.limit);
                    }));
  return spec;
}

}  // namespace blk
