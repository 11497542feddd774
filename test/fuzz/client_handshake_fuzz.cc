// Whatever a server sends in its handshake: the client comes to an end of it, and an export that
// it accepts is one that can exist. The first byte of the input chooses the client's options and
// what it asks for, the second how much one receive brings.
//
// Fuzzes: src/proto/codec
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "src/core/limits.h"
#include "src/core/scope.h"
#include "src/proto/handshake_client.h"
#include "test/proto/memory_stream.h"

namespace {

using namespace blk;
using namespace blk::nbd;

void Require(bool promise) {
  if (!promise) std::abort();
}

class SameStream final : public TlsUpgrade {
 public:
  Task<absl::StatusOr<Stream*>> StartTls(Stream* plain) override {
    return absl::StatusOr<Stream*>(plain);
  }
};

ClientHandshakeOptions OptionsFrom(uint8_t bits, TlsUpgrade* upgrade) {
  ClientHandshakeOptions options;
  options.structured_replies = (bits & 1) == 0;
  options.extended_headers = (bits & 2) == 0;
  if ((bits & 4) != 0) options.contexts.clear();
  options.tls = static_cast<ClientTls>((bits >> 3 & 3) % 3);
  options.tls_upgrade = upgrade;
  return options;
}

void RequirePossible(const absl::StatusOr<ServerExport>& opened) {
  if (!opened.ok()) return;
  Require(opened->size_bytes <= limits::kDiskBytesMax);
  Require(opened->block_sizes.Valid());
  Require(opened->contexts.size() <= limits::kMetaContextsMax);
  Require(opened->contexts.empty() || opened->style != ReplyStyle::kSimple);
  Require(opened->style != ReplyStyle::kSimple || (opened->flags & kFlagSendDf) == 0);
}

Task<void> Converse(ClientHandshake& handshake, uint8_t bits) {
  const bool look_around = (bits & 0x20) != 0;
  const absl::Status started = co_await handshake.Start();
  if (!started.ok()) co_return;
  if (look_around) {
    (void)co_await handshake.List();
    (void)co_await handshake.ListMetaContexts("disk", {"base:"});
    RequirePossible(co_await handshake.Info("disk"));
  }
  const std::string name = (bits & 0x40) != 0 ? "" : "disk";
  const absl::StatusOr<ServerExport> opened = co_await handshake.Go(name);
  RequirePossible(opened);
  if (!opened.ok()) co_await handshake.Abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  RunQueue queue;
  MemoryConnection connection(queue, data[1] == 0 ? SIZE_MAX : data[1]);
  BufferedReader reader(&connection.client, 256);
  SameStream upgrade;
  ClientHandshake handshake(reader, OptionsFrom(data[0], &upgrade));
  TaskScope scope;
  scope.Spawn(Converse(handshake, data[0]));
  connection.to_client.Write({reinterpret_cast<const char*>(data) + 2, size - 2});
  queue.Run();
  connection.to_client.Close();
  queue.Run();
  Require(scope.running() == 0);
  return 0;
}
