// Connections take turns: what a client that floods leaves of a loop to the others.
#include <doctest/doctest.h>
#include <sys/socket.h>

#include <algorithm>

#include "src/core/descriptor.h"
#include "src/proto/session_server.h"
#include "test/support/array_device.h"

namespace blk::nbd {
namespace {

constexpr uint64_t kDiskBytes = 4096;

// Notes whose read is served when.
class NotingDevice final : public test::ArrayDevice {
 public:
  NotingDevice() : ArrayDevice(kDiskBytes) {}
  std::vector<uint64_t> order;  // numbers of connections

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    order.push_back(call.connection);
    return ArrayDevice::DoRead(call, offset, into);
  }
};

// A session whose client has sent `requests` reads and a goodbye before it starts.
class Flooded {
 public:
  Flooded(uint64_t number, int requests, NotingDevice* device) {
    int fds[2];
    BLK_CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    client_.Reset(fds[1]);
    stream_ = MakeSocketStream(fds[0]);
    reader_ = std::make_unique<BufferedReader>(stream_.get());
    std::string bytes(static_cast<size_t>(requests + 1) * kRequestBytes, '\0');
    for (int i = 0; i < requests; ++i) {
      const Request read{.type = kCmdRead, .cookie = static_cast<uint64_t>(i), .length = 512};
      StoreRequest(bytes.data() + static_cast<size_t>(i) * kRequestBytes, read);
    }
    StoreRequest(bytes.data() + static_cast<size_t>(requests) * kRequestBytes,
                 {.type = kCmdDisconnect});
    BLK_CHECK(send(client_.get(), bytes.data(), bytes.size(), 0) ==
              static_cast<ssize_t>(bytes.size()));
    ServerSessionOptions options;
    options.transmission_flags = TransmissionFlagsFor(device->facts(), options.style);
    options.connection = number;
    options.budget = &budget_;
    session_ = std::make_unique<ServerSession>(reader_.get(), device, std::move(options));
  }
  Task<void> Run() { CHECK((co_await session_->Run()).ok()); }

 private:
  Descriptor client_;
  StreamPtr stream_;
  std::unique_ptr<BufferedReader> reader_;
  MemoryBudget budget_{64 << 20};
  std::unique_ptr<ServerSession> session_;
};

// Of the reads that are served until the honest client's 64 are done, the share that is its own.
Task<double> HonestShare(int floods) {
  constexpr int kHonestRequests = 64;
  constexpr uint64_t kHonest = 99;
  NotingDevice device;
  std::vector<std::unique_ptr<Flooded>> clients;
  for (int i = 0; i < floods; ++i)
    clients.push_back(std::make_unique<Flooded>(static_cast<uint64_t>(i), 200, &device));
  clients.push_back(std::make_unique<Flooded>(kHonest, kHonestRequests, &device));
  TaskScope scope;
  for (auto& client : clients) scope.Spawn(client->Run());
  co_await scope.Join();
  CHECK(device.order.size() == static_cast<size_t>(floods * 200 + kHonestRequests));
  const auto last = std::find(device.order.rbegin(), device.order.rend(), kHonest);
  co_return static_cast<double>(kHonestRequests) / static_cast<double>(device.order.rend() - last);
}

TEST_CASE("a client that floods gets no more of the loop than an honest one") {
  for (const int floods : {1, 2, 4, 16}) {
    LoopPool pool(1);
    CHECK(pool.RunMain(HonestShare(floods)) >= 0.8 / (floods + 1));
  }
}

}  // namespace
}  // namespace blk::nbd
