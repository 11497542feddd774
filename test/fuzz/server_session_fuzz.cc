// Whatever a client sends after the handshake: the server comes to an end of it, its replies are
// well formed, and none is to a request that was not made. The first byte of the input chooses the
// style of replies, what is advertised and whether the disk is slow; the second how much one
// receive brings.
//
// Fuzzes: src/proto/codec
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "src/core/scope.h"
#include "src/proto/session_server.h"
#include "test/proto/memory_stream.h"
#include "test/support/array_device.h"
#include "test/support/queue_loop.h"

namespace {

using namespace blk;
using namespace blk::nbd;

constexpr uint64_t kDiskBytes = 20'000;

void Require(bool promise) {
  if (!promise) std::abort();
}

Task<void> Serve(ServerSession* session, std::optional<absl::Status>* outcome) {
  outcome->emplace(co_await session->Run());
}

// Structured and extended replies can be told apart without the requests.
void RequireReplies(std::string_view bytes, ReplyStyle style) {
  while (!bytes.empty()) {
    Reply reply;
    if (ParseReply(bytes, style, reply) == ParseResult::kShort) break;  // the client left
    Require(ParseReply(bytes, style, reply) == ParseResult::kComplete);
    Require(reply.length <= limits::kRequestBytesMax + 8);
    const uint64_t all = reply.header_bytes + (reply.simple ? 0 : reply.length);
    if (all > bytes.size()) break;
    bytes.remove_prefix(all);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  test::QueueLoop loop;
  RunQueue queue;
  MemoryConnection connection(queue, data[1] == 0 ? SIZE_MAX : data[1]);
  const auto style = static_cast<ReplyStyle>(data[0] % 3);
  Facts facts = test::ArrayFacts(kDiskBytes);
  facts.read_only = data[0] & 0x10;
  test::ArrayDevice device(facts);
  device.suspend = data[0] & 0x20;
  // As in a server: whoever holds nothing gets what one request needs, also beyond the bound.
  MemoryBudget process(1 << 20), budget(1 << 20, &process);
  ServerSessionOptions options;
  options.style = style;
  options.transmission_flags = TransmissionFlagsFor(facts, style);
  if (style != ReplyStyle::kSimple) options.contexts = {{7, std::string(blk::kBaseAllocation)}};
  options.requests_in_flight_max = data[0] & 0x40 ? 1 : 16;
  options.budget = &budget;
  BufferedReader reader(&connection.server, 256);
  std::optional<absl::Status> outcome;
  {
    ServerSession session(&reader, &device, options);
    TaskScope scope;
    scope.Spawn(Serve(&session, &outcome));
    auto run = [&] {
      do queue.Run();
      while (loop.Run());
    };
    connection.to_server.Write({reinterpret_cast<const char*>(data) + 2, size - 2});
    run();
    connection.to_server.Close();
    run();
    Require(outcome.has_value());
    Require(scope.running() == 0);
  }
  Require(device.bytes.size() == kDiskBytes);
  if (facts.read_only) Require(device.bytes == std::string(kDiskBytes, '\0'));
  if (style != ReplyStyle::kSimple) RequireReplies(connection.to_client.bytes(), style);
  return 0;
}
