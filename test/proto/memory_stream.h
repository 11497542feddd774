#pragma once
// Byte streams in memory for tests of protocols: no loop, no socket, no time. What one end writes
// the other reads; a reader that finds nothing waits until RunQueue::Run() is called with something
// to read. One thread.
#include <algorithm>
#include <coroutine>
#include <cstring>
#include <deque>
#include <string>
#include <string_view>
#include <utility>

#include "src/core/stream.h"
#include "src/core/task.h"

namespace blk {

// Coroutines that may go on. Resuming them from here keeps the stack flat.
class RunQueue {
 public:
  void Add(std::coroutine_handle<> handle) { ready_.push_back(handle); }
  // Until nobody can go on.
  void Run() {
    while (!ready_.empty()) {
      const std::coroutine_handle<> next = ready_.front();
      ready_.pop_front();
      next.resume();
    }
  }

 private:
  std::deque<std::coroutine_handle<>> ready_;
};

// One direction.
class MemoryPipe {
 public:
  explicit MemoryPipe(RunQueue& queue) : queue_(queue) {}

  void Write(std::string_view bytes) {
    bytes_.append(bytes);
    if (!bytes.empty()) Wake();  // a read of nothing would be the end of the stream
  }
  void Close() {
    closed_ = true;
    Wake();
  }
  // All that is in it.
  std::string Take() { return std::exchange(bytes_, {}); }
  std::string_view bytes() const { return bytes_; }
  bool closed() const { return closed_; }
  bool waiting() const { return static_cast<bool>(waiter_); }

  Task<absl::StatusOr<size_t>> Read(std::span<char> into, size_t bytes_max) {
    if (bytes_.empty() && !closed_) co_await Wait{*this};
    const size_t got = std::min({into.size(), bytes_.size(), bytes_max});
    if (got > 0) std::memcpy(into.data(), bytes_.data(), got);
    bytes_.erase(0, got);
    co_return got;
  }

 private:
  struct Wait {
    MemoryPipe& pipe;
    bool await_ready() const noexcept { return false; }
    void await_suspend(std::coroutine_handle<> handle) const { pipe.waiter_ = handle; }
    void await_resume() const noexcept {}
  };
  void Wake() {
    if (waiter_) queue_.Add(std::exchange(waiter_, nullptr));
  }

  RunQueue& queue_;
  std::string bytes_;
  bool closed_ = false;
  std::coroutine_handle<> waiter_;
};

// One end of a connection. `read_bytes_max` makes reads as small as a slow network would.
class MemoryStream final : public Stream {
 public:
  MemoryStream(MemoryPipe& in, MemoryPipe& out, size_t read_bytes_max = SIZE_MAX)
      : in_(in), out_(out), read_bytes_max_(read_bytes_max) {}

  Task<absl::StatusOr<size_t>> ReadSome(std::span<char> into) override {
    return in_.Read(into, read_bytes_max_);
  }
  Task<absl::Status> WriteAll(std::span<const iovec> parts) override {
    if (out_.closed()) return ErrnoErrorAsIs(EPIPE, "the peer has gone");
    for (const iovec& part : parts) out_.Write({static_cast<char*>(part.iov_base), part.iov_len});
    return absl::OkStatus();
  }
  void ShutdownWrite() override { out_.Close(); }
  void ShutdownRead() override { in_.Close(); }
  void Cancel() override {
    in_.Close();
    out_.Close();
  }
  const Peer& peer() const override { return peer_; }

 private:
  MemoryPipe& in_;
  MemoryPipe& out_;
  size_t read_bytes_max_;
  Peer peer_;
};

// A connection with both its ends.
struct MemoryConnection {
  explicit MemoryConnection(RunQueue& queue, size_t read_bytes_max = SIZE_MAX)
      : to_server(queue),
        to_client(queue),
        client(to_client, to_server, read_bytes_max),
        server(to_server, to_client, read_bytes_max) {}

  MemoryPipe to_server, to_client;
  MemoryStream client, server;
};

}  // namespace blk
