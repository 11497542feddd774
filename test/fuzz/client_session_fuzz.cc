// Whatever a server answers after the handshake: every request ends, once, and a read that
// succeeds has all its bytes. The first byte of the input chooses the style of replies and whether
// a request is stopped half way, the second how much one receive brings.
//
// Fuzzes: src/proto/codec
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "src/core/scope.h"
#include "src/proto/session_client.h"
#include "test/proto/memory_stream.h"
#include "test/support/queue_loop.h"

namespace {

using namespace blk;
using namespace blk::nbd;

constexpr uint64_t kReadBytes = 40;

void Require(bool promise) {
  if (!promise) std::abort();
}

struct Ends {
  int count = 0;
  absl::Status last;
};
Task<void> Into(Task<absl::Status> task, Ends* ends) {
  ends->last = co_await std::move(task);
  ++ends->count;
}
Task<void> Close(ClientSession* session) { co_await session->Close(); }

// The client's end of the connection, which the session owns.
class Borrowed final : public Stream {
 public:
  explicit Borrowed(Stream* stream) : stream_(*stream) {}
  Task<absl::StatusOr<size_t>> ReadSome(std::span<char> into) override {
    return stream_.ReadSome(into);
  }
  Task<absl::Status> WriteAll(std::span<const iovec> parts) override {
    return stream_.WriteAll(parts);
  }
  void ShutdownWrite() override { stream_.ShutdownWrite(); }
  void ShutdownRead() override { stream_.ShutdownRead(); }
  void Cancel() override { stream_.Cancel(); }
  const Peer& peer() const override { return stream_.peer(); }

 private:
  Stream& stream_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  test::QueueLoop loop;
  RunQueue queue;
  MemoryConnection connection(queue, data[1] == 0 ? SIZE_MAX : data[1]);
  ClientSessionOptions options;
  options.style = static_cast<ReplyStyle>(data[0] % 3);
  options.transmission_flags = 0xffff;
  if (options.style != ReplyStyle::kSimple)
    options.contexts = {{7, std::string(blk::kBaseAllocation)}};
  options.requests_in_flight_max = 8;
  ClientSession session(std::make_unique<Borrowed>(&connection.client), {}, options);
  session.Start();
  auto run = [&] {
    do queue.Run();
    while (loop.Run());
  };
  std::stop_source stop;
  std::stop_token token = stop.get_token();
  Call stoppable{.stop = &token};
  std::string read(kReadBytes, 'x'), stopped(kReadBytes, 'x'), write(kReadBytes, 'w');
  ExtentList list(0, 10'000);
  Ends ends[6];
  TaskScope scope;
  scope.Spawn(Into(session.Read(16, read), &ends[0]));
  scope.Spawn(Into(session.Read(0, stopped, stoppable), &ends[1]));
  scope.Spawn(Into(session.Write(0, write, 0), &ends[2]));
  scope.Spawn(Into(session.Extents(blk::kBaseAllocation, &list, 0), &ends[3]));
  scope.Spawn(Into(session.Flush(), &ends[4]));
  scope.Spawn(Into(session.Zero(0, 100, 0), &ends[5]));
  run();
  std::string_view said(reinterpret_cast<const char*>(data) + 2, size - 2);
  const size_t half = data[0] & 0x40 ? said.size() / 2 : said.size();
  connection.to_client.Write(said.substr(0, half));
  run();
  if (data[0] & 0x80) stop.request_stop();
  run();
  if (data[0] & 0x80) Require(ends[1].count == 1);
  const std::string as_it_was = stopped;
  connection.to_client.Write(said.substr(half));
  run();
  if (data[0] & 0x80) Require(stopped == as_it_was);
  connection.to_client.Close();
  run();
  for (const Ends& end : ends) Require(end.count == 1);
  Require(list.next() <= list.end());
  TaskScope closing;
  closing.Spawn(Close(&session));
  run();
  loop.FireTimers(int64_t{60} * 1'000'000'000);
  run();
  Require(closing.running() == 0 && scope.running() == 0);
  return 0;
}
