#include "src/proto/handshake_client.h"

#include <doctest/doctest.h>

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "src/core/limits.h"
#include "src/core/scope.h"
#include "src/proto/handshake_server.h"
#include "test/proto/handshake_host.h"
#include "test/proto/memory_stream.h"

namespace blk::nbd {
namespace {

using namespace std::string_literals;
using namespace std::string_view_literals;

constexpr std::string_view kGreeting = "NBDMAGICIHAVEOPT\0\3"sv;

// A client handshake whose server is a test that speaks in bytes.
class Client {
 public:
  explicit Client(ClientHandshakeOptions options = {}, size_t read_bytes_max = SIZE_MAX)
      : connection_(queue_, read_bytes_max),
        reader_(&connection_.client),
        handshake(reader_, std::move(options)) {}
  ~Client() { HangUp(); }

  // What the server says, at once or before anybody asks; gives what the client has said.
  std::string Hear(std::string_view bytes) {
    connection_.to_client.Write(bytes);
    queue_.Run();
    return connection_.to_server.Take();
  }
  void HangUp() {
    connection_.to_client.Close();
    queue_.Run();
  }
  void Begin(Task<void> task) {
    scope_.Spawn(std::move(task));
    queue_.Run();
  }
  size_t running() const { return scope_.running(); }
  std::string leftover() { return {reader_.buffered().data(), reader_.buffered().size()}; }

 private:
  RunQueue queue_;
  MemoryConnection connection_;
  BufferedReader reader_;

 public:
  ClientHandshake handshake;
  absl::Status started = absl::UnknownError("not yet");
  std::optional<absl::StatusOr<ServerExport>> opened;
  std::optional<absl::StatusOr<std::vector<ListedExport>>> listed;
  std::optional<absl::StatusOr<std::vector<std::string>>> contexts;
  bool aborted = false;

 private:
  TaskScope scope_;
};

Task<void> StartAndGo(Client& client, std::string name) {
  client.started = co_await client.handshake.Start();
  if (client.started.ok()) client.opened.emplace(co_await client.handshake.Go(std::move(name)));
}
Task<void> StartAndInfo(Client& client, std::string name) {
  client.started = co_await client.handshake.Start();
  if (client.started.ok()) client.opened.emplace(co_await client.handshake.Info(std::move(name)));
}
Task<void> StartAndList(Client& client) {
  client.started = co_await client.handshake.Start();
  if (client.started.ok()) client.listed.emplace(co_await client.handshake.List());
}
Task<void> Leave(Client& client) {
  co_await client.handshake.Abort();
  client.aborted = true;
}

std::string Ack(uint32_t option) { return OptionReplyMessage(option, kRepAck); }
std::string Refuse(uint32_t option, uint32_t type) {
  return OptionReplyMessage(option, type, "because");
}
std::string ExportReply(uint32_t option, uint64_t size, uint16_t flags) {
  return OptionReplyMessage(option, kRepInfo, EncodeInfoExport(size, flags));
}
// What a client says to enter with these answers to style and contexts.
const std::string kWantExtended = OptionRequest(kOptExtendedHeaders, "");
const std::string kWantStructured = OptionRequest(kOptStructuredReply, "");
std::string WantContext(std::string_view name) {
  const std::vector<std::string> queries{"base:allocation"};
  return OptionRequest(kOptSetMetaContext, EncodeMetaContextRequest(name, queries));
}
std::string WantGo(std::string_view name) {
  const std::vector<uint16_t> infos{kInfoName, kInfoDescription, kInfoBlockSize};
  return OptionRequest(kOptGo, EncodeInfoRequest(name, infos));
}

void ExpectExport(Client& client) {
  REQUIRE(client.opened.has_value());
  INFO(client.opened->status().ToString());
  REQUIRE(client.opened->ok());
}
std::string FailureOf(Client& client, int error) {
  const absl::Status status = client.opened.has_value()   ? client.opened->status()
                              : client.listed.has_value() ? client.listed->status()
                                                          : client.started;
  REQUIRE_FALSE(status.ok());
  CHECK(ErrnoOf(status) == error);
  return std::string(status.message());
}

TEST_CASE("client handshake: a whole conversation, byte by byte") {
  for (const size_t read_bytes_max : {SIZE_MAX, size_t{1}}) {
    Client client({}, read_bytes_max);
    client.Begin(StartAndGo(client, "d"));
    CHECK(client.Hear(kGreeting) == "\0\0\0\3"s + kWantExtended);
    CHECK(client.Hear(Ack(kOptExtendedHeaders)) == WantContext("d"));
    CHECK(client.Hear(
              OptionReplyMessage(kOptSetMetaContext, kRepMetaContext, "\0\0\0\7base:allocation"sv) +
              Ack(kOptSetMetaContext)) == WantGo("d"));
    CHECK_FALSE(client.opened.has_value());
    client.Hear(ExportReply(kOptGo, 0x1000, 0x10c5) +
                OptionReplyMessage(kOptGo, kRepInfo, "\0\1disk"sv) +
                OptionReplyMessage(kOptGo, kRepInfo, "\0\2big"sv) +
                OptionReplyMessage(kOptGo, kRepInfo, "\x77\x77?"sv) +
                OptionReplyMessage(kOptGo, kRepInfo, EncodeInfoBlockSize({512, 8192, 65536})) +
                Ack(kOptGo) + "REST");
    ExpectExport(client);
    const ServerExport& got = **client.opened;
    CHECK(got.name == "d");
    CHECK(got.canonical_name == "disk");
    CHECK(got.description == "big");
    CHECK(got.size_bytes == 0x1000);
    CHECK(got.flags == 0x10c5);
    CHECK(got.block_sizes == BlockSizes{512, 8192, 65536});
    CHECK(got.block_sizes_told);
    CHECK(got.style == ReplyStyle::kExtended);
    REQUIRE(got.contexts.size() == 1);
    CHECK(got.contexts[0].id == 7);
    CHECK(client.leftover() == "REST"s.substr(0, read_bytes_max == 1 ? 0 : 4));
  }
}

TEST_CASE("client handshake: down to structured, down to simple") {
  Client structured;
  structured.Begin(StartAndGo(structured, ""));
  structured.Hear(kGreeting);
  CHECK(structured.Hear(Refuse(kOptExtendedHeaders, kRepErrUnsup)) == kWantStructured);
  CHECK(structured.Hear(Ack(kOptStructuredReply)) == WantContext(""));
  CHECK(structured.Hear(Refuse(kOptSetMetaContext, kRepErrUnsup)) == WantGo(""));
  structured.Hear(ExportReply(kOptGo, 1, 0x1081) + Ack(kOptGo));
  ExpectExport(structured);
  CHECK((*structured.opened)->style == ReplyStyle::kStructured);
  CHECK((*structured.opened)->contexts.empty());
  CHECK((*structured.opened)->flags == 0x0081);
  CHECK_FALSE((*structured.opened)->block_sizes_told);
  CHECK((*structured.opened)->block_sizes == BlockSizes{});

  Client simple;
  simple.Begin(StartAndGo(simple, ""));
  simple.Hear(kGreeting);
  simple.Hear(Refuse(kOptExtendedHeaders, kRepErrUnsup));
  CHECK(simple.Hear(Refuse(kOptStructuredReply, kRepErrPolicy)) == WantGo(""));
  simple.Hear(ExportReply(kOptGo, 1, 0x1081) + Ack(kOptGo));
  ExpectExport(simple);
  CHECK((*simple.opened)->style == ReplyStyle::kSimple);
  CHECK((*simple.opened)->flags == 1);
}

TEST_CASE("client handshake: what is not wanted is not asked for") {
  Client client({.structured_replies = false, .extended_headers = false});
  client.Begin(StartAndGo(client, "x"));
  CHECK(client.Hear(kGreeting) == "\0\0\0\3"s + WantGo("x"));
  Client plain({.extended_headers = false, .contexts = {}});
  plain.Begin(StartAndGo(plain, "x"));
  CHECK(plain.Hear(kGreeting) == "\0\0\0\3"s + kWantStructured);
  CHECK(plain.Hear(Ack(kOptStructuredReply)) == WantGo("x"));
}

TEST_CASE("client handshake: for servers that hang up on GO") {
  Client client({.structured_replies = false, .extended_headers = false, .go = false});
  client.Begin(StartAndGo(client, "x"));
  CHECK(client.Hear(kGreeting) == "\0\0\0\3"s + OptionRequest(kOptExportName, "x"));
  client.Hear(ExportNameReply(512, 1, false));
  ExpectExport(client);
  Client asker({.structured_replies = false, .extended_headers = false, .go = false});
  asker.Begin(StartAndInfo(asker, "x"));
  CHECK(asker.Hear(kGreeting) == "\0\0\0\3"s);
  FailureOf(asker, EOPNOTSUPP);
}

TEST_CASE("client handshake: a server without GO") {
  Client client({.extended_headers = false});
  client.Begin(StartAndGo(client, "x"));
  client.Hear("NBDMAGICIHAVEOPT\0\1"sv);
  client.Hear(Ack(kOptStructuredReply));
  client.Hear(OptionReplyMessage(kOptSetMetaContext, kRepMetaContext, "\0\0\0\1base:allocation"sv) +
              Ack(kOptSetMetaContext));
  CHECK(client.Hear(Refuse(kOptGo, kRepErrUnsup)) == OptionRequest(kOptExportName, "x"));
  client.Hear(ExportNameReply(0x2000, 3, true).substr(0, 100));
  CHECK_FALSE(client.opened.has_value());
  client.Hear(std::string(34, '\0') + "R");
  ExpectExport(client);
  CHECK((*client.opened)->size_bytes == 0x2000);
  CHECK((*client.opened)->contexts.size() == 1);
  CHECK((*client.opened)->canonical_name == "x");
  CHECK(client.leftover() == "R");
}

TEST_CASE("client handshake: newstyle that is not fixed") {
  Client client;
  client.Begin(StartAndGo(client, "x"));
  CHECK(client.Hear("NBDMAGICIHAVEOPT\0\2"sv) == "\0\0\0\2"s + OptionRequest(kOptExportName, "x"));
  client.Hear(ExportNameReply(512, 1, false));
  ExpectExport(client);
  CHECK(client.handshake.handshake_style() == HandshakeStyle::kNewstyle);

  Client gone;
  gone.Begin(StartAndGo(gone, "x"));
  gone.Hear("NBDMAGICIHAVEOPT\0\0"sv);
  gone.HangUp();
  CHECK(FailureOf(gone, ENOENT).find("\"x\"") != std::string::npos);

  Client lister;
  lister.Begin(StartAndList(lister));
  lister.Hear("NBDMAGICIHAVEOPT\0\0"sv);
  FailureOf(lister, EOPNOTSUPP);
  Client asker;
  asker.Begin(StartAndInfo(asker, "x"));
  asker.Hear("NBDMAGICIHAVEOPT\0\0"sv);
  FailureOf(asker, EOPNOTSUPP);
}

TEST_CASE("client handshake: oldstyle") {
  Client client;
  client.Begin(StartAndGo(client, ""));
  CHECK(client.Hear(OldstyleGreeting(0x3000, 0x0185) + "R").empty());
  ExpectExport(client);
  CHECK(client.handshake.handshake_style() == HandshakeStyle::kOldstyle);
  CHECK((*client.opened)->size_bytes == 0x3000);
  CHECK((*client.opened)->flags == 0x0105);
  CHECK(client.leftover() == "R");

  Client named;
  named.Begin(StartAndGo(named, "x"));
  named.Hear(OldstyleGreeting(0x3000, 1));
  CHECK(FailureOf(named, ENOENT).find("without a name") != std::string::npos);
  named.Begin(Leave(named));
  std::string goodbye(kRequestBytes, '\0');
  StoreRequest(goodbye.data(), {.type = kCmdDisconnect});
  CHECK(named.Hear("") == goodbye);
}

TEST_CASE("client handshake: refusals say why and leave the handshake open") {
  const auto error_for = [](uint32_t reply) {
    Client client({.structured_replies = false, .extended_headers = false});
    client.Begin(StartAndGo(client, "x"));
    client.Hear(kGreeting);
    client.Hear(Refuse(kOptGo, reply));
    REQUIRE(client.opened.has_value());
    CHECK(client.opened->status().message().find("because") != std::string::npos);
    CHECK(client.opened->status().message().find("\"x\"") != std::string::npos);
    const int error = ErrnoOf(client.opened->status());
    client.Begin(Leave(client));
    CHECK(client.Hear("") == OptionRequest(kOptAbort, ""));
    CHECK_FALSE(client.aborted);
    client.Hear(Ack(kOptAbort));
    CHECK(client.aborted);
    return error;
  };
  CHECK(error_for(kRepErrUnknown) == ENOENT);
  CHECK(error_for(kRepErrPolicy) == EPERM);
  CHECK(error_for(kRepErrTlsReqd) == EPERM);
  CHECK(error_for(kRepErrShutdown) == ESHUTDOWN);
  CHECK(error_for(kRepErrInvalid) == EINVAL);
  CHECK(error_for(kRepErrTooBig) == EMSGSIZE);
  CHECK(error_for(kRepErrPlatform) == EOPNOTSUPP);
  CHECK(error_for(kRepErrExtHeaderReqd) == EOPNOTSUPP);
  CHECK(error_for(kRepErrorBit + 999) == EOPNOTSUPP);
}

TEST_CASE("client handshake: a server that wants TLS is told apart") {
  Client client;
  client.Begin(StartAndGo(client, "x"));
  client.Hear(kGreeting);
  client.Hear(Refuse(kOptExtendedHeaders, kRepErrTlsReqd));
  CHECK(FailureOf(client, EPERM).find("nbds://") != std::string::npos);
}

TEST_CASE("client handshake: texts of strangers do not reach the terminal raw") {
  Client client({.structured_replies = false, .extended_headers = false});
  client.Begin(StartAndGo(client, "x\x1b"));
  client.Hear(kGreeting);
  client.Hear(OptionReplyMessage(kOptGo, kRepErrUnknown, "no\nsuch \x1b[2J\x7f"));
  CHECK(FailureOf(client, ENOENT).find("(no such ?[2J?)") != std::string::npos);
  CHECK(FailureOf(client, ENOENT).find('\x1b') == std::string::npos);
}

TEST_CASE("client handshake: LIST") {
  Client client;
  client.Begin(StartAndList(client));
  CHECK(client.Hear(kGreeting) == "\0\0\0\3"s + OptionRequest(kOptList, ""));
  client.Hear(OptionReplyMessage(kOptList, kRepServer, "\0\0\0\1abig"sv) +
              OptionReplyMessage(kOptList, kRepServer, "\0\0\0\0"sv) + Ack(kOptList));
  REQUIRE(client.listed.has_value());
  REQUIRE(client.listed->ok());
  REQUIRE((*client.listed)->size() == 2);
  CHECK((**client.listed)[0].name == "a");
  CHECK((**client.listed)[0].description == "big");
  CHECK((**client.listed)[1].name.empty());

  Client refused;
  refused.Begin(StartAndList(refused));
  refused.Hear(kGreeting);
  refused.Hear(Refuse(kOptList, kRepErrPolicy));
  FailureOf(refused, EPERM);
  Client oldstyle;
  oldstyle.Begin(StartAndList(oldstyle));
  oldstyle.Hear(OldstyleGreeting(1, 1));
  REQUIRE(oldstyle.listed->ok());
  CHECK((*oldstyle.listed)->size() == 1);
}

TEST_CASE("client handshake: a list without an end") {
  Client client;
  client.Begin(StartAndList(client));
  client.Hear(kGreeting);
  const std::string entry =
      OptionReplyMessage(kOptList, kRepServer, "\0\0\x10\0"s + std::string(8192, 'n'));
  for (size_t sent = 0; sent <= limits::kListedBytesMax && !client.listed; sent += 8192) {
    client.Hear(entry);
  }
  CHECK(FailureOf(client, EPROTO).find("too long") != std::string::npos);
}

TEST_CASE("client handshake: nonsense from the server is an error value") {
  const auto first_answer = [](std::string_view bytes) {
    Client client({.structured_replies = false, .extended_headers = false});
    client.Begin(StartAndGo(client, "x"));
    client.Hear(kGreeting);
    client.Hear(bytes);
    const std::string failure = FailureOf(client, EPROTO);
    // And it stays: nothing more is sent.
    client.Begin(Leave(client));
    CHECK(client.aborted);
    CHECK(client.Hear("").empty());
    return failure;
  };
  CHECK(first_answer("HTTP/1.1 400 Bad Request\r\n").find("magic") != std::string::npos);
  CHECK(first_answer(Ack(kOptInfo)).find("answer to option 6") != std::string::npos);
  CHECK(first_answer(Ack(kOptGo)).find("without its size") != std::string::npos);
  CHECK(first_answer(OptionReplyMessage(kOptGo, kRepServer, "\0\0\0\0"sv)).find("NBD_REP_SERVER") !=
        std::string::npos);
  CHECK(first_answer(OptionReplyMessage(kOptGo, 77, "")).find("reply type 77") !=
        std::string::npos);
  CHECK(first_answer(OptionReplyMessage(kOptGo, kRepInfo, "\0"sv)).find("without a type") !=
        std::string::npos);
  CHECK(first_answer(OptionReplyMessage(kOptGo, kRepInfo, "\0\0short"sv)).find("7 bytes") !=
        std::string::npos);
  std::string huge = OptionReplyMessage(kOptGo, kRepInfo, "");
  StoreU32(huge.data() + 16, 0xffffffff);
  CHECK(first_answer(huge).find("4294967295 bytes") != std::string::npos);
  std::string many;
  for (size_t i = 0; i <= limits::kRepliesPerOptionMax; ++i) many += ExportReply(kOptGo, 1, 1);
  CHECK(first_answer(many).find("more than 4096 replies") != std::string::npos);
}

TEST_CASE("client handshake: an impossible size") {
  Client client({.structured_replies = false, .extended_headers = false});
  client.Begin(StartAndGo(client, "x"));
  client.Hear(kGreeting);
  client.Hear(ExportReply(kOptGo, uint64_t{1} << 63, 1) + Ack(kOptGo));
  CHECK(FailureOf(client, EOVERFLOW).find("2^63-1") != std::string::npos);
  Client oldstyle;
  oldstyle.Begin(StartAndGo(oldstyle, ""));
  oldstyle.Hear(OldstyleGreeting(uint64_t{1} << 63, 1));
  FailureOf(oldstyle, EOVERFLOW);
  Client largest({.structured_replies = false, .extended_headers = false});
  largest.Begin(StartAndGo(largest, "x"));
  largest.Hear(kGreeting);
  largest.Hear(ExportReply(kOptGo, (uint64_t{1} << 63) - 1, 1) + Ack(kOptGo));
  ExpectExport(largest);
}

TEST_CASE("client handshake: contexts with one id, and too many of them") {
  const auto answer = [](std::string_view bytes) {
    Client client;
    client.Begin(StartAndGo(client, "x"));
    client.Hear(kGreeting);
    client.Hear(Ack(kOptExtendedHeaders));
    client.Hear(bytes);
    return FailureOf(client, EPROTO);
  };
  const std::string context =
      OptionReplyMessage(kOptSetMetaContext, kRepMetaContext, "\0\0\0\1a:b"sv);
  CHECK(answer(context + context).find("one id") != std::string::npos);
  std::string many;
  for (uint32_t i = 0; i <= limits::kMetaContextsMax; ++i) {
    many +=
        OptionReplyMessage(kOptSetMetaContext, kRepMetaContext, EncodeMetaContextReply({i, "a:b"}));
  }
  CHECK(answer(many).find("more than 64 replies") != std::string::npos);
}

TEST_CASE("client handshake: what is not an NBD server") {
  for (const std::string_view greeting :
       {"SSH-2.0-OpenSSH_9.2p1 Debian"sv, "HTTP/1.1 400 Bad Request\r\n"sv}) {
    Client client;
    client.Begin(StartAndGo(client, "x"));
    CHECK(client.Hear(greeting).empty());
    CHECK(FailureOf(client, EPROTO).find("no NBD server") != std::string::npos);
  }
  Client strange;
  strange.Begin(StartAndGo(strange, "x"));
  strange.Hear("NBDMAGICNBDMAGIC\0\3"sv);
  CHECK(FailureOf(strange, EPROTO).find("neither") != std::string::npos);
}

TEST_CASE("client handshake: every truncation ends in an error, never in waiting") {
  const std::string script =
      std::string(kGreeting) + Refuse(kOptExtendedHeaders, kRepErrUnsup) +
      Ack(kOptStructuredReply) +
      OptionReplyMessage(kOptSetMetaContext, kRepMetaContext, "\0\0\0\1base:allocation"sv) +
      Ack(kOptSetMetaContext) + ExportReply(kOptGo, 4096, 1) +
      OptionReplyMessage(kOptGo, kRepInfo, EncodeInfoBlockSize({1, 4096, 65536})) + Ack(kOptGo);
  for (size_t size = 0; size <= script.size(); ++size) {
    INFO(size);
    Client client;
    client.Begin(StartAndGo(client, "x"));
    client.Hear(std::string_view(script).substr(0, size));
    client.HangUp();
    CHECK(client.running() == 0);
    CHECK((client.opened.has_value() && client.opened->ok()) == (size == script.size()));
  }
}

// --- Both halves together

class FakeTls final : public TlsUpgrade {
 public:
  explicit FakeTls(Stream* secure) : secure_(secure) {}
  Task<absl::StatusOr<Stream*>> StartTls(Stream*) override {
    if (fail) return absl::StatusOr<Stream*>(absl::InternalError("bad certificate"));
    return absl::StatusOr<Stream*>(secure_);
  }
  bool fail = false;

 private:
  Stream* secure_;
};

struct Pair {
  Pair(ServerHandshakeOptions server_options, ClientHandshakeOptions client_options)
      : connection(queue, 3), secure(queue, 3), tls(&secure.client) {
    host.secure = &secure.server;
    client_options.tls_upgrade = &tls;
    client.emplace(client_reader, std::move(client_options));
    scope.Spawn(Serve(server_options));
  }
  ~Pair() {
    for (MemoryPipe* pipe :
         {&connection.to_server, &connection.to_client, &secure.to_server, &secure.to_client}) {
      pipe->Close();
    }
    queue.Run();
  }
  Task<void> Serve(ServerHandshakeOptions options) {
    served.emplace(co_await RunServerHandshake(server_reader, host, options));
    if (!served->ok()) connection.server.ShutdownWrite();
  }
  void Run(Task<void> task) {
    scope.Spawn(std::move(task));
    queue.Run();
  }

  RunQueue queue;
  MemoryConnection connection, secure;
  TestHost host;
  FakeTls tls;
  BufferedReader server_reader{&connection.server}, client_reader{&connection.client};
  std::optional<ClientHandshake> client;
  std::optional<absl::StatusOr<ServerHandshakeResult>> served;
  absl::Status started = absl::UnknownError("not yet");
  std::optional<absl::StatusOr<ServerExport>> opened;
  std::vector<std::string> contexts;
  size_t exports = 0;
  TaskScope scope;
};

Task<void> Enter(Pair& pair, std::string name) {
  pair.started = co_await pair.client->Start();
  if (pair.started.ok()) pair.opened.emplace(co_await pair.client->Go(std::move(name)));
}

// Asks for all that can be asked and leaves.
Task<void> LookAround(Pair& pair) {
  pair.started = co_await pair.client->Start();
  auto listed = co_await pair.client->List();
  CHECK(listed.ok());
  pair.exports = listed.ok() ? listed->size() : 0;
  auto contexts = co_await pair.client->ListMetaContexts("disk", {});
  CHECK(contexts.ok());
  if (contexts.ok()) pair.contexts = *contexts;
  auto missing = co_await pair.client->Info("nosuch");
  CHECK(ErrnoOf(missing.status()) == ENOENT);
  pair.opened.emplace(co_await pair.client->Info("disk"));
  co_await pair.client->Abort();
}

TEST_CASE("handshake: every combination of what both sides want agrees") {
  int combinations = 0;
  for (unsigned bits = 0; bits < 512; ++bits) {
    const auto bit = [bits](int index) { return (bits >> index & 1) != 0; };
    ServerHandshakeOptions server{
        .structured_replies = bit(0), .extended_headers = bit(1), .meta_contexts = bit(2)};
    const uint16_t masks[] = {0, kFlagFixedNewstyle, kFlagNoZeroes, 3};
    server.handshake_flags = masks[bits >> 3 & 3];
    ClientHandshakeOptions client{.structured_replies = bit(5), .extended_headers = bit(6)};
    if (!bit(7)) client.contexts.clear();
    const std::string name = bit(8) ? "disk" : "";
    Pair pair(server, client);
    pair.Run(Enter(pair, name));
    INFO(bits, " ", pair.started.ToString());
    REQUIRE(pair.opened.has_value());
    REQUIRE(pair.opened->ok());
    REQUIRE(pair.served.has_value());
    REQUIRE(pair.served->ok());
    const ServerExport& got = **pair.opened;
    const ServerHandshakeResult& gave = **pair.served;
    const bool fixed = (server.handshake_flags & kFlagFixedNewstyle) != 0;
    ReplyStyle style = ReplyStyle::kSimple;
    if (fixed && bit(0) && bit(5)) style = ReplyStyle::kStructured;
    if (fixed && bit(0) && bit(1) && bit(6)) style = ReplyStyle::kExtended;
    const bool contexts = style != ReplyStyle::kSimple && bit(2) && bit(7);
    CHECK(got.style == style);
    CHECK(gave.style == style);
    CHECK(gave.transmission);
    CHECK(gave.export_name == name);
    CHECK(got.flags == gave.export_info.flags);
    CHECK(((got.flags & kFlagSendDf) != 0) == (style != ReplyStyle::kSimple));
    CHECK(((got.flags & kFlagBlockStatusPayload) != 0) ==
          (style == ReplyStyle::kExtended && contexts));
    CHECK(got.size_bytes == 0x100000);
    CHECK(got.canonical_name == (fixed ? "disk" : name));
    CHECK(got.block_sizes_told == fixed);
    REQUIRE(got.contexts.size() == (contexts ? 1 : 0));
    REQUIRE(gave.contexts.size() == got.contexts.size());
    if (contexts) {
      CHECK(got.contexts[0].name == "base:allocation");
      CHECK(got.contexts[0].id == gave.contexts[0].id);
    }
    ++combinations;
  }
  CHECK(combinations == 512);
}

TEST_CASE("handshake: looking around and leaving") {
  Pair pair({}, {});
  pair.Run(LookAround(pair));
  CHECK(pair.exports == 2);
  CHECK(pair.contexts == std::vector<std::string>{"base:allocation", "qemu:dirty-bitmap:b",
                                                  "qemu:allocation-depth"});
  REQUIRE(pair.opened.has_value());
  REQUIRE(pair.opened->ok());
  CHECK((*pair.opened)->description == "a test disk");
  CHECK((*pair.opened)->contexts.size() == 1);
  REQUIRE(pair.served.has_value());
  REQUIRE(pair.served->ok());
  CHECK_FALSE((*pair.served)->transmission);
  CHECK_FALSE(pair.host.held.has_value());
}

TEST_CASE("handshake: oldstyle on both sides") {
  Pair pair({.oldstyle = true}, {});
  pair.Run(Enter(pair, ""));
  REQUIRE(pair.opened.has_value());
  REQUIRE(pair.opened->ok());
  CHECK((*pair.opened)->flags == (**pair.served).export_info.flags);
}

TEST_CASE("handshake: TLS as both sides want it") {
  struct Row {
    TlsMode server;
    ClientTls client;
    bool enters;
    bool tls;
  };
  for (const Row& row : {
           Row{TlsMode::kOff, ClientTls::kOff, true, false},
           Row{TlsMode::kOff, ClientTls::kPrefer, true, false},
           Row{TlsMode::kOff, ClientTls::kRequire, false, false},
           Row{TlsMode::kOn, ClientTls::kOff, true, false},
           Row{TlsMode::kOn, ClientTls::kPrefer, true, true},
           Row{TlsMode::kOn, ClientTls::kRequire, true, true},
           Row{TlsMode::kRequire, ClientTls::kOff, false, false},
           Row{TlsMode::kRequire, ClientTls::kPrefer, true, true},
           Row{TlsMode::kRequire, ClientTls::kRequire, true, true},
       }) {
    INFO(static_cast<int>(row.server), " ", static_cast<int>(row.client));
    Pair pair({.tls = row.server}, {.tls = row.client});
    pair.Run(Enter(pair, "disk"));
    CHECK((pair.opened.has_value() && pair.opened->ok()) == row.enters);
    CHECK(pair.client->tls() == row.tls);
    if (row.enters) {
      REQUIRE(pair.served->ok());
      CHECK((*pair.served)->tls == row.tls);
      CHECK((*pair.served)->contexts.size() == 1);
    } else {
      const absl::Status status = pair.started.ok() ? pair.opened->status() : pair.started;
      CHECK(ErrnoOf(status) == EPERM);
      CHECK(pair.host.opens == 0);
    }
  }
}

TEST_CASE("handshake: TLS that fails ends the client") {
  Pair pair({.tls = TlsMode::kOn}, {.tls = ClientTls::kPrefer});
  pair.tls.fail = true;
  pair.Run(Enter(pair, "disk"));
  CHECK(pair.started.message().find("bad certificate") != std::string::npos);
  CHECK_FALSE(pair.opened.has_value());
}

TEST_CASE("client handshake: clear text behind the answer to STARTTLS is an attack") {
  RunQueue queue;
  MemoryConnection secure(queue);
  FakeTls tls(&secure.client);
  Client client({.tls = ClientTls::kRequire, .tls_upgrade = &tls});
  client.Begin(StartAndGo(client, "x"));
  CHECK(client.Hear(kGreeting) == "\0\0\0\3"s + OptionRequest(kOptStartTls, ""));
  CHECK(client.Hear(Ack(kOptStartTls) + Ack(kOptExtendedHeaders)).empty());
  CHECK(FailureOf(client, EPROTO).find("before TLS") != std::string::npos);
  for (const std::string_view old : {"NBDMAGICIHAVEOPT\0\0"sv, "NBDMAGICIHAVEOPT\0\2"sv}) {
    Client strict({.tls = ClientTls::kRequire, .tls_upgrade = &tls});
    strict.Begin(StartAndGo(strict, "x"));
    CHECK(strict.Hear(old).size() == 4);
    FailureOf(strict, EPERM);
  }
}

}  // namespace
}  // namespace blk::nbd
