// Whatever a client sends in its handshake: the server comes to an end of it, what it answers is
// well formed, and an export is held exactly when it is to be served. The first byte of the input
// chooses the server's options, the second how much one receive brings.
//
// Fuzzes: src/proto/codec
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include "src/core/scope.h"
#include "src/proto/handshake_server.h"
#include "test/proto/handshake_host.h"
#include "test/proto/memory_stream.h"

namespace {

using namespace blk;
using namespace blk::nbd;

void Require(bool promise) {
  if (!promise) std::abort();
}

ServerHandshakeOptions OptionsFrom(uint8_t bits) {
  ServerHandshakeOptions options;
  options.oldstyle = (bits & 0x0f) == 0x0f;
  options.handshake_flags = ~bits & 3;
  options.structured_replies = (bits & 4) == 0;
  options.extended_headers = (bits & 8) == 0;
  options.meta_contexts = (bits & 16) == 0;
  options.tls = static_cast<TlsMode>((bits >> 5 & 3) % 3);
  return options;
}

Task<void> Serve(BufferedReader& reader, TestHost& host, ServerHandshakeOptions options,
                 std::optional<absl::StatusOr<ServerHandshakeResult>>& outcome) {
  outcome.emplace(co_await RunServerHandshake(reader, host, options));
}

// `bytes` are option replies, and behind them what an EXPORT_NAME gets if that came.
void RequireReplies(std::string_view bytes, bool transmission) {
  while (bytes.size() >= kOptionReplyHeaderBytes) {
    const auto header = ParseOptionReplyHeader({bytes.data(), bytes.size()});
    if (!header.ok()) break;
    Require(header->length <= bytes.size() - kOptionReplyHeaderBytes);
    bytes.remove_prefix(kOptionReplyHeaderBytes + header->length);
  }
  const bool export_name = bytes.size() == kExportNameReplyBytes ||
                           bytes.size() == kExportNameReplyBytes + kReservedZeroesBytes;
  Require(bytes.empty() || (transmission && export_name));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const ServerHandshakeOptions options = OptionsFrom(data[0]);
  RunQueue queue;
  // Both sides of "TLS" are the clear connection: what matters is the handshake's own state.
  MemoryConnection connection(queue, data[1] == 0 ? SIZE_MAX : data[1]);
  TestHost host;
  host.secure = &connection.server;
  host.private_option = 0x626c6b00;
  BufferedReader reader(&connection.server, 256);
  std::optional<absl::StatusOr<ServerHandshakeResult>> outcome;
  TaskScope scope;
  scope.Spawn(Serve(reader, host, options, outcome));
  connection.to_server.Write({reinterpret_cast<const char*>(data) + 2, size - 2});
  queue.Run();
  connection.to_server.Close();
  queue.Run();
  Require(outcome.has_value());

  const bool transmission = outcome->ok() && (*outcome)->transmission;
  std::string_view said = connection.to_client.bytes();
  if (options.oldstyle) {
    Require(said.empty() || said.size() == kOldstyleBytes);
    return 0;
  }
  Require(said.size() >= kNewstyleBytes);
  RequireReplies(said.substr(kNewstyleBytes), transmission);
  if (transmission) {
    Require(host.held == (*outcome)->export_name);
    Require((*outcome)->tls || options.tls != TlsMode::kRequire);
    Require((*outcome)->contexts.empty() || (*outcome)->style != ReplyStyle::kSimple);
  }
  return 0;
}
