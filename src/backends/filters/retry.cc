// retry: when a request fails, opens the disk below again and repeats the request.
// retry-request: repeats the request alone, on the same device.
//
// What was written and not flushed may be gone with the device that it was written to. So before a
// device is closed it is flushed, and when that fails, the next flush of each who had the disk open
// fails, too: no flush says of lost bytes that they are safe, and everybody is told once.
//
// Parallel-safe: requests share the device; whoever opens it again first waits until those in
// flight have ended, and others that failed on the old device use the new one.
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <mutex>

#include "absl/strings/str_split.h"
#include "src/backends/filters/request.h"
#include "src/core/spec.h"
#include "src/core/sync.h"
#include "src/core/trace.h"

namespace blk {
namespace {

// Errors by name, as in `EIO,ETIMEDOUT`.
struct ErrnoList {
  std::vector<int> errors;
};

absl::StatusOr<int> ErrnoByName(std::string_view name) {
  constexpr int kErrnoMax = 133;
  for (int error = 1; error <= kErrnoMax; ++error) {
    const char* known = strerrorname_np(error);
    if (known && name == known) return error;
  }
  return absl::InvalidArgumentError(absl::StrCat("\"", name, "\" is no errno, such as EIO"));
}

}  // namespace

template <>
struct ParamValue<ErrnoList> {
  static constexpr std::string_view kType = "errnos", kWord = "ERRNO[:ERRNO...]";
  static absl::StatusOr<ErrnoList> Parse(std::string_view text) {
    ErrnoList list;
    for (std::string_view name : absl::StrSplit(text, absl::ByAnyChar(",:"))) {
      BLK_ASSIGN_OR_RETURN(int error, ErrnoByName(name));
      list.errors.push_back(error);
    }
    return list;
  }
  static std::string Format(const ErrnoList& list) {
    std::string text;
    for (int error : list.errors)
      absl::StrAppend(&text, text.empty() ? "" : ":", strerrorname_np(error));
    return text;
  }
};

namespace {

bool ConnectionLost(int error) {
  return error == ECONNRESET || error == EPIPE || error == ESHUTDOWN || error == ETIMEDOUT ||
         error == ENOTCONN || error == EPROTO;
}

// How often, after which errors and how long apart.
struct Policy {
  uint32_t retries;
  Nanoseconds delay = std::chrono::seconds(2);
  bool exponential = false;
  ErrnoList only = {};  // empty: all

  // `asked`: the disk below was.
  bool Wants(const Request& request, const absl::Status& status, bool asked) const {
    const int error = ErrnoOf(status);
    if (request.call->stopped()) return false;
    // That is an answer, not a failure.
    if (request.has(kFastZero) && error == EOPNOTSUPP) return false;
    // What a flush could not make stable is lost, and a second one might not say so again. Only one
    // that was not answered is asked again.
    if (request.operation == Operation::kFlush && asked && !ConnectionLost(error)) return false;
    return only.errors.empty() ||
           std::find(only.errors.begin(), only.errors.end(), error) != only.errors.end();
  }
  // Before retry number `retry`, from 0.
  int64_t DelayNs(uint32_t retry) const {
    if (!exponential) return delay.count();
    const int doublings = static_cast<int>(std::min<uint32_t>(retry, 62));
    return delay.count() > INT64_MAX >> doublings ? INT64_MAX : delay.count() << doublings;
  }
};

void LogRetry(std::string_view filter, const Request& request, const absl::Status& status,
              uint32_t retry, int64_t delay_ns) {
  LogDebug(filter, ": ", OperationName(request.operation), " failed (", status.message(),
           "): retry ", retry + 1, " in ", FormatDuration(Nanoseconds(delay_ns)));
}

// One attempt. A list of extents is only touched when it succeeds.
Task<absl::Status> Attempt(Device* device, Request request) {
  if (request.operation != Operation::kExtents) co_return co_await Perform(device, request);
  ExtentList* into = request.list;
  ExtentList list(request.offset, request.length, std::max<size_t>(into->room(), 1));
  request.list = &list;
  BLK_CO_RETURN_IF_ERROR(co_await Perform(device, request));
  for (const Extent& extent : list.extents()) into->Append(extent.length, extent.flags);
  co_return absl::OkStatus();
}

bool Writes(Operation operation) {
  return operation == Operation::kWrite || operation == Operation::kTrim ||
         operation == Operation::kZero;
}

// ---- retry

struct RetryConfig {
  uint32_t retries = 5;
  Nanoseconds delay = std::chrono::seconds(2);
  bool exponential = true;
  bool read_only = false;
  ErrnoList only;
};

// What is written and not flushed, of one export over all its clients. Any loop.
class Unflushed {
 public:
  uint64_t writes() const { return writes_; }
  uint64_t losses() const { return losses_; }
  void Wrote() { ++writes_; }
  // A flush has succeeded that began when there were so many writes.
  void Flushed(uint64_t writes) {
    uint64_t known = flushed_;
    while (known < writes && !flushed_.compare_exchange_weak(known, writes)) {
    }
  }
  // A device was closed, and could not be flushed.
  void Closed() {
    const uint64_t writes = writes_;
    if (flushed_ < writes) ++losses_;
    Flushed(writes);
  }
  bool any() const { return flushed_ < writes_; }

 private:
  std::atomic<uint64_t> writes_{0}, flushed_{0}, losses_{0};
};

class RetryDevice final : public RequestFilter {
 public:
  // `layer` opens the disk again, with `args` as the first time.
  RetryDevice(DevicePtr below, const Policy& policy, bool then_read_only, Layer* layer,
              OpenArgs args, std::shared_ptr<Unflushed> unflushed)
      : RequestFilter(below),
        policy_(policy),
        unflushed_(std::move(unflushed)),
        told_losses_(unflushed_->losses()),
        layer_(*layer),
        args_(std::move(args)),
        current_(std::move(below)) {
    args_.read_only |= then_read_only;
  }

 protected:
  Task<absl::Status> Handle(Request request) override {
    for (uint32_t retry = 0;; ++retry) {
      co_await gate_.Acquire();
      const uint64_t generation = generation_;
      const bool refused = current_ && Writes(request.operation) && current_->facts().read_only;
      absl::Status status = failure_;
      const bool asked = current_ != nullptr;
      if (asked) status = co_await AttemptAndCount(request);
      gate_.Release();
      if (request.operation == Operation::kFlush) {
        // One that was answered with an error lost what it could not save.
        if (asked && !status.ok() && !request.call->stopped() && !ConnectionLost(ErrnoOf(status)))
          unflushed_->Closed();
        const uint64_t losses = unflushed_->losses();
        if (told_losses_.exchange(losses) != losses) co_return Lost();
      }
      if (status.ok() || refused || retry == policy_.retries ||
          !policy_.Wants(request, status, asked))
        co_return status;
      const int64_t delay_ns = policy_.DelayNs(retry);
      LogRetry("retry", request, status, retry, delay_ns);
      if (!(co_await SleepFor(*request.call, delay_ns)).ok()) co_return status;
      co_await Reopen(generation, request.operation == Operation::kFlush);
    }
  }

  Task<absl::Status> DoClose() override {
    if (!current_) co_return absl::OkStatus();
    co_return co_await current_->Close();
  }

 private:
  static constexpr uint64_t kPermits = uint64_t{1} << 32;

  // Since it was opened again, the disk may be able to do less than our client was told.
  absl::Status CheckAbilities(const Request& request) const {
    const Facts& now = current_->facts();
    if (request.has(kFastZero) && facts().fast_zero && !now.fast_zero)
      return ErrnoErrorAsIs(EOPNOTSUPP, "no fast zeroing since the disk was opened again");
    if (request.has(kFua) && facts().fua != Support::kNone && now.fua == Support::kNone)
      return ErrnoErrorAsIs(EIO, "no FUA since the disk was opened again");
    return absl::OkStatus();
  }
  Task<absl::Status> AttemptAndCount(Request request) {
    BLK_CO_RETURN_IF_ERROR(CheckAbilities(request));
    const uint64_t writes = unflushed_->writes();
    absl::Status status = co_await Attempt(current_.get(), request);
    if (!status.ok()) co_return status;
    if (Writes(request.operation) && !request.has(kFua)) unflushed_->Wrote();
    if (request.operation == Operation::kFlush) unflushed_->Flushed(writes);
    co_return status;
  }
  static absl::Status Lost() {
    return ErrnoErrorAsIs(EIO,
                          "a flush has failed, or the disk was opened again before one: some of "
                          "what was written may be lost");
  }

  // Puts a new device in the place of the one with this generation.
  Task<void> Reopen(uint64_t generation, bool flush_failed) {
    co_await gate_.Acquire(kPermits);  // nothing is in flight, nothing begins
    if (generation == generation_) {
      if (current_) {
        if (unflushed_->any()) {
          // A second flush after a failed one may say that all is well, since it knows no better.
          const uint64_t writes = unflushed_->writes();
          if (!flush_failed && (co_await current_->Flush({})).ok()) {
            unflushed_->Flushed(writes);
          } else {
            unflushed_->Closed();
          }
        }
        (void)co_await current_->Close();
      }
      current_ = nullptr;
      ++generation_;
      auto device = co_await layer_.Open(args_);
      failure_ = device.status();
      if (device.ok() && (*device)->size() < size()) {
        failure_ =
            ErrnoErrorAsIs(EIO, absl::StrCat("the disk had ", size(), " bytes, and has only ",
                                             (*device)->size(), " since it was opened again"));
        (void)co_await (*device)->Close();
      } else if (device.ok()) {
        current_ = *std::move(device);
      }
      if (!failure_.ok()) LogDebug("retry: cannot open again: ", failure_.message());
    }
    gate_.Release(kPermits);
  }

  const Policy& policy_;
  const std::shared_ptr<Unflushed> unflushed_;
  std::atomic<uint64_t> told_losses_;  // before this device, or told to its client
  Layer& layer_;
  OpenArgs args_;
  Semaphore gate_{kPermits};  // each request holds one, Reopen all; guards what follows
  DevicePtr current_;         // null when it could not be opened again
  absl::Status failure_;      // then why
  uint64_t generation_ = 0;
};

class RetryLayer final : public FilterLayer {
 public:
  RetryLayer(LayerPtr below, const RetryConfig& config)
      : FilterLayer(std::move(below)),
        policy_{config.retries, config.delay, config.exponential, config.only},
        then_read_only_(config.read_only) {}

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    BLK_CO_ASSIGN_OR_RETURN(DevicePtr device, co_await below().Open(args));
    // Where a flush covers the writes of all clients, their losses concern all.
    auto unflushed =
        device->facts().multi_conn ? UnflushedOf(args.export_name) : std::make_shared<Unflushed>();
    co_return std::make_shared<RetryDevice>(std::move(device), policy_, then_read_only_, &below(),
                                            std::move(args), std::move(unflushed));
  }

 private:
  std::shared_ptr<Unflushed> UnflushedOf(const std::string& export_name) {
    std::lock_guard lock(mutex_);
    std::erase_if(unflushed_, [](const auto& entry) { return entry.second.expired(); });
    std::weak_ptr<Unflushed>& entry = unflushed_[export_name];
    std::shared_ptr<Unflushed> unflushed = entry.lock();
    if (!unflushed) entry = unflushed = std::make_shared<Unflushed>();
    return unflushed;
  }

  const Policy policy_;
  const bool then_read_only_;
  std::mutex mutex_;
  std::map<std::string, std::weak_ptr<Unflushed>> unflushed_;  // guarded by mutex_; of open disks
};

// ---- retry-request

struct RetryRequestConfig {
  uint32_t retries = 2;
  Nanoseconds delay = std::chrono::seconds(2);
  bool open = true;
};

class RetryRequestDevice final : public RequestFilter {
 public:
  RetryRequestDevice(DevicePtr below, const Policy& policy)
      : RequestFilter(std::move(below)), policy_(policy) {}

 protected:
  Task<absl::Status> Handle(Request request) override {
    for (uint32_t retry = 0;; ++retry) {
      absl::Status status = co_await Attempt(&below(), request);
      if (status.ok() || retry == policy_.retries || !policy_.Wants(request, status, true))
        co_return status;
      LogRetry("retry-request", request, status, retry, policy_.DelayNs(retry));
      if (!(co_await SleepFor(*request.call, policy_.DelayNs(retry))).ok()) co_return status;
    }
  }

 private:
  const Policy& policy_;
};

class RetryRequestLayer final : public FilterLayer {
 public:
  RetryRequestLayer(LayerPtr below, const RetryRequestConfig& config)
      : FilterLayer(std::move(below)),
        policy_{config.retries, config.delay},
        retry_open_(config.open) {}

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    auto device = co_await below().Open(args);
    for (uint32_t retry = 0; !device.ok() && retry_open_ && retry < policy_.retries; ++retry) {
      LogDebug("retry-request: cannot open (", device.status().message(), "): retry ", retry + 1);
      (void)co_await SleepFor(Call(), policy_.DelayNs(retry));
      device = co_await below().Open(args);
    }
    if (!device.ok()) co_return device;
    co_return std::make_shared<RetryRequestDevice>(*std::move(device), policy_);
  }

 private:
  const Policy policy_;
  const bool retry_open_;
};

}  // namespace

const Spec& RetrySpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<RetryConfig>("retry", "when a request fails, open the disk again and repeat it")
          .Param("retries", &RetryConfig::retries, {.help = "how often one request is repeated"})
          .Param("retry-delay", &RetryConfig::delay,
                 {.help = "time to wait before that", .min = "1ns"})
          .Param("retry-exponential", &RetryConfig::exponential,
                 {.help = "wait twice as long each time"})
          .Param("retry-readonly", &RetryConfig::read_only,
                 {.help = "after a failure open the disk for reading only"})
          .Param("retry-errno", &RetryConfig::only,
                 {.help = "repeat only after these errors; all if not given"})
          .Description(
              "Requests that are in flight on the old device end before it is closed. If the disk "
              "has become smaller, requests fail instead of being answered from it. A flush that "
              "was answered with an error is not repeated: what it could not save is lost.")
          .Example("retry(retries=3,retry-delay=1ms)+memory:64K")
          .PrintedExample("retry(retry-errno=EIO:ESHUTDOWN)+nbd://host/disk",
                          "survives restarts of the server")
          .Make([](RetryConfig config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<RetryLayer>(std::move(below), config);
          }));
  return spec;
}

const Spec& RetryRequestSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<RetryRequestConfig>("retry-request", "repeat single requests that fail")
          .Param("retry-request-retries", &RetryRequestConfig::retries,
                 {.help = "how often one request is repeated"})
          .Param("retry-request-delay", &RetryRequestConfig::delay,
                 {.help = "time to wait before that", .min = "1ns"})
          .Param("retry-request-open", &RetryRequestConfig::open,
                 {.help = "opening the disk is repeated, too"})
          .Example("retry-request(retry-request-delay=1ms)+memory:64K")
          .Make([](RetryRequestConfig config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<RetryRequestLayer>(std::move(below), config);
          }));
  return spec;
}

}  // namespace blk
