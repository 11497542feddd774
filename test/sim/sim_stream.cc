#include "test/sim/sim_stream.h"

#include <algorithm>
#include <cstring>

namespace blk::sim {
namespace {

constexpr size_t kCapacityMax = 48 << 10;  // bytes under way in one direction
constexpr size_t kPieceMax = 20'000;

// One direction. Each of the two ends waits in at most one place.
struct Pipe {
  std::string bytes;   // sent and not yet read
  size_t arrived = 0;  // of those, how many the reader may have
  size_t capacity = kCapacityMax;
  bool ended = false;        // no more is sent
  bool reader_shut = false;  // the reader wants no more
  std::coroutine_handle<> reader, writer;
};

struct Wire {
  SimLoop* loop;
  StreamFaults faults;
  Pipe pipes[2];
  uint64_t passed = 0;
  bool cut = false, stalled = false;
  absl::Status failure;

  void Wake(std::coroutine_handle<>& waiter) {
    if (waiter) loop->Post(std::exchange(waiter, nullptr));
  }
  void Cut() {
    cut = true;
    for (Pipe& pipe : pipes) {
      Wake(pipe.reader);
      Wake(pipe.writer);
    }
  }
};

struct WaitIn {
  std::coroutine_handle<>& place;
  bool await_ready() const noexcept { return false; }
  void await_suspend(std::coroutine_handle<> handle) const {
    BLK_CHECK(!place);  // one read and one write at a time
    place = handle;
  }
  void await_resume() const noexcept {}
};

absl::Status Reset() { return ErrnoError(ECONNRESET, "the simulated connection was cut"); }
absl::Status Cancelled() { return ErrnoErrorAsIs(ECANCELED, "the stream was cancelled"); }

class SimStream final : public Stream {
 public:
  SimStream(std::shared_ptr<Wire> wire, int side) : wire_(std::move(wire)), side_(side) {
    peer_.text = "simulated";
  }
  ~SimStream() override {
    BLK_CHECK(!in().reader && !out().writer);  // nobody waits on a stream that goes
    EndWriting();
    in().reader_shut = true;
    wire_->Wake(in().writer);
  }

  Task<absl::StatusOr<size_t>> ReadSome(std::span<char> into) override {
    if (wire_->loop->OneIn(4)) co_await Yield();
    for (;;) {
      if (cancelled_) co_return Cancelled();
      if (shut_read_) co_return size_t{0};
      if (in().arrived > 0) {
        size_t step = std::min(into.size(), in().arrived);
        if (wire_->loop->OneIn(2)) step = 1 + wire_->loop->Below(step);
        std::memcpy(into.data(), in().bytes.data(), step);
        in().bytes.erase(0, step);
        in().arrived -= step;
        wire_->Wake(in().writer);
        co_return step;
      }
      if (wire_->cut) co_return Reset();
      if (in().ended && in().bytes.empty()) co_return size_t{0};
      co_await WaitIn{in().reader};
    }
  }

  Task<absl::Status> WriteAll(std::span<const iovec> parts) override {
    for (const iovec& part : parts) {
      const char* data = static_cast<const char*>(part.iov_base);
      for (size_t at = 0; at < part.iov_len;) {
        if (wire_->loop->OneIn(8)) co_await Yield();
        if (cancelled_) co_return Cancelled();
        if (wire_->cut || out().ended) co_return Reset();
        if (out().reader_shut) co_return ErrnoError(EPIPE, "the other end reads no more");
        size_t room = out().capacity - std::min(out().capacity, out().bytes.size());
        if (room == 0) {
          co_await WaitIn{out().writer};
          continue;
        }
        size_t step = std::min({room, part.iov_len - at, 1 + wire_->loop->Below(kPieceMax)});
        Send({data + at, step});
        at += step;
      }
    }
    co_return absl::OkStatus();
  }

  void ShutdownWrite() override { EndWriting(); }
  void ShutdownRead() override {
    shut_read_ = true;
    wire_->Wake(in().reader);
  }
  void Cancel() override {
    cancelled_ = true;
    wire_->Wake(in().reader);
    wire_->Wake(out().writer);
  }
  const Peer& peer() const override { return peer_; }

 private:
  Pipe& in() { return wire_->pipes[side_]; }
  Pipe& out() { return wire_->pipes[1 - side_]; }

  void EndWriting() {
    if (std::exchange(out().ended, true)) return;
    wire_->Wake(out().reader);
  }

  void Send(std::string_view piece) {
    Wire& wire = *wire_;
    const uint64_t from = wire.passed;
    wire.passed += piece.size();
    if (wire.passed > wire.faults.cut_after) piece = piece.substr(0, wire.faults.cut_after - from);
    if (wire.passed > wire.faults.stall_after) Stall();
    out().bytes += piece;
    if (!wire.stalled) Deliver(wire_, &out(), piece.size());
    if (wire.passed > wire.faults.cut_after) wire.Cut();
  }

  // After a while, in order: a piece may arrive together with those after it, never before others.
  static void Deliver(std::shared_ptr<Wire> wire, Pipe* pipe, size_t bytes) {
    int64_t delay_ns = wire->loop->RandomDelayNs(wire->faults.delay_ns_max);
    auto arrive = [wire, pipe, bytes] {
      if (wire->stalled) return;
      pipe->arrived = std::min(pipe->bytes.size(), pipe->arrived + bytes);
      wire->Wake(pipe->reader);
    };
    if (delay_ns == 0) return arrive();
    wire->loop->StartTimer(wire->loop->NowNs() + delay_ns, arrive);
  }

  void Stall() {
    if (std::exchange(wire_->stalled, true) || wire_->faults.stall_ns == INT64_MAX) return;
    wire_->loop->StartTimer(wire_->loop->NowNs() + wire_->faults.stall_ns,
                            [wire = wire_] { wire->Cut(); });
  }

  std::shared_ptr<Wire> wire_;
  const int side_;
  bool cancelled_ = false, shut_read_ = false;
  Peer peer_;
};

}  // namespace

std::pair<StreamPtr, StreamPtr> MakeSimStreams(SimLoop* loop, StreamFaults faults) {
  auto wire = std::make_shared<Wire>();
  wire->loop = loop;
  wire->faults = faults;
  for (Pipe& pipe : wire->pipes) pipe.capacity = 1 + loop->Below(kCapacityMax);
  return {std::make_unique<SimStream>(wire, 0), std::make_unique<SimStream>(wire, 1)};
}

}  // namespace blk::sim
