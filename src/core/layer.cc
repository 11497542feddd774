#include "src/core/layer.h"

#include "src/core/sync.h"

namespace blk {

Task<absl::StatusOr<DevicePtr>> FilterLayer::Open(OpenArgs args) {
  BLK_CO_ASSIGN_OR_RETURN(DevicePtr device, co_await below_->Open(args));
  absl::StatusOr<DevicePtr> wrapped = Wrap(device, args);
  if (!wrapped.ok()) (void)co_await device->Close();
  co_return wrapped;
}

absl::StatusOr<DevicePtr> FilterLayer::Wrap(DevicePtr device, const OpenArgs&) { return device; }

namespace {

// One request at a time, of this device or of all devices of the layer: whoever shares the mutex.
class SerializedDevice final : public Filter {
 public:
  SerializedDevice(DevicePtr below, std::shared_ptr<Mutex> requests,
                   std::shared_ptr<Semaphore> connections)
      : Filter(below, FactsOf(*below, connections != nullptr), /*passes_data=*/false),
        requests_(std::move(requests)),
        connections_(std::move(connections)) {}

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    MutexGuard guard = co_await requests_->Lock();
    co_return co_await below().Read(call, offset, into);
  }
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override {
    MutexGuard guard = co_await requests_->Lock();
    co_return co_await below().Write(call, offset, from);
  }
  Task<absl::Status> DoFlush(const Call& call) override {
    MutexGuard guard = co_await requests_->Lock();
    co_return co_await below().Flush(call);
  }
  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override {
    MutexGuard guard = co_await requests_->Lock();
    co_return co_await below().Trim(call, offset, length);
  }
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override {
    MutexGuard guard = co_await requests_->Lock();
    co_return co_await below().Zero(call, offset, length);
  }
  Task<absl::Status> DoCache(const Call& call, uint64_t offset, uint64_t length) override {
    MutexGuard guard = co_await requests_->Lock();
    co_return co_await below().Cache(call, offset, length);
  }
  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override {
    MutexGuard guard = co_await requests_->Lock();
    co_return co_await below().Extents(call, context, list);
  }
  Task<absl::Status> DoClose() override {
    MutexGuard guard = co_await requests_->Lock();
    absl::Status status = co_await below().Close();
    if (connections_) connections_->Release();
    co_return status;
  }

 private:
  // Who would open a second connection, to be faster, would wait for the end of its first.
  static Facts FactsOf(const Device& below, bool one_connection) {
    Facts facts = below.facts();
    if (one_connection) facts.multi_conn = false;
    return facts;
  }

  std::shared_ptr<Mutex> requests_;
  std::shared_ptr<Semaphore> connections_;  // null unless connections are serialized
};

class SerializedLayer final : public FilterLayer {
 public:
  SerializedLayer(LayerPtr below, ThreadModel model) : FilterLayer(std::move(below)) {
    if (model != ThreadModel::kSerializeRequests) all_requests_ = std::make_shared<Mutex>();
    if (model == ThreadModel::kSerializeConnections) connections_ = std::make_shared<Semaphore>(1);
  }

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    if (connections_) co_await connections_->Acquire();
    std::shared_ptr<Mutex> requests = all_requests_ ? all_requests_ : std::make_shared<Mutex>();
    MutexGuard guard = co_await requests->Lock();
    auto device = co_await FilterLayer::Open(std::move(args));
    if (!device.ok()) {
      if (connections_) connections_->Release();
      co_return device;
    }
    co_return std::make_shared<SerializedDevice>(*std::move(device), std::move(requests),
                                                 connections_);
  }
  ThreadModel thread_model() override { return ThreadModel::kParallel; }

 private:
  std::shared_ptr<Mutex> all_requests_;     // null: one per device
  std::shared_ptr<Semaphore> connections_;  // null: any number
};

}  // namespace

std::string_view ThreadModelName(ThreadModel model) {
  switch (model) {
    case ThreadModel::kSerializeConnections:
      return "serialize_connections";
    case ThreadModel::kSerializeAllRequests:
      return "serialize_all_requests";
    case ThreadModel::kSerializeRequests:
      return "serialize_requests";
    case ThreadModel::kParallel:
      return "parallel";
  }
  return "parallel";
}

LayerPtr EnforceThreadModel(LayerPtr layer) {
  ThreadModel model = layer->thread_model();
  if (model == ThreadModel::kParallel) return layer;
  return std::make_shared<SerializedLayer>(std::move(layer), model);
}

}  // namespace blk
