#include "src/proto/handshake_server.h"

#include <doctest/doctest.h>

#include <array>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>

#include "src/core/limits.h"
#include "src/core/scope.h"
#include "test/proto/handshake_host.h"
#include "test/proto/memory_stream.h"

namespace blk::nbd {
namespace {

using namespace std::string_literals;
using namespace std::string_view_literals;

constexpr std::string_view kBothFlags = "\0\0\0\3"sv;

// A server handshake to which a test speaks in bytes.
class Server {
 public:
  explicit Server(ServerHandshakeOptions options = {}, size_t read_bytes_max = SIZE_MAX)
      : connection_(queue_, read_bytes_max), secure_(queue_), reader_(&connection_.server) {
    scope_.Spawn(Drive(options));
  }
  ~Server() { Close(); }

  // Sends, lets the server work, and gives what it answered.
  std::string Say(std::string_view bytes) {
    connection_.to_server.Write(bytes);
    queue_.Run();
    return connection_.to_client.Take();
  }
  std::string SaySecurely(std::string_view bytes) {
    secure_.to_server.Write(bytes);
    queue_.Run();
    return secure_.to_client.Take();
  }
  std::string Option(uint32_t option, std::string_view data = {}) {
    return Say(OptionRequest(option, data));
  }
  std::string Go(std::string_view name, std::initializer_list<uint16_t> infos = {}) {
    return Option(kOptGo, EncodeInfoRequest(name, std::vector<uint16_t>(infos)));
  }
  void Close() {
    connection_.to_server.Close();
    secure_.to_server.Close();
    queue_.Run();
  }
  void HangUpOnWriter() { connection_.to_client.Close(); }
  void OfferTls() { host.secure = &secure_.server; }

  bool done() const { return outcome_.has_value(); }
  const absl::StatusOr<ServerHandshakeResult>& outcome() {
    REQUIRE(outcome_.has_value());
    return *outcome_;
  }
  const ServerHandshakeResult& result() {
    INFO(outcome().status().ToString());
    REQUIRE(outcome().ok());
    return **outcome_;
  }
  std::string failure() {
    REQUIRE_FALSE(outcome().ok());
    return std::string(outcome().status().message());
  }
  std::string leftover() { return {reader_.buffered().data(), reader_.buffered().size()}; }

  TestHost host;

 private:
  Task<void> Drive(ServerHandshakeOptions options) {
    outcome_.emplace(co_await RunServerHandshake(reader_, host, options));
  }

  RunQueue queue_;
  MemoryConnection connection_, secure_;
  BufferedReader reader_;
  std::optional<absl::StatusOr<ServerHandshakeResult>> outcome_;
  TaskScope scope_;
};

// A server that has been greeted with both flags.
std::unique_ptr<Server> Greeted(ServerHandshakeOptions options = {}) {
  auto server = std::make_unique<Server>(options);
  CHECK(server->Say(kBothFlags) == "NBDMAGICIHAVEOPT\0\3"sv);
  return server;
}

// The type of a lone reply, which must answer `option`; its text must be there if it is an error.
uint32_t OnlyReply(std::string_view bytes, uint32_t option) {
  REQUIRE(bytes.size() >= kOptionReplyHeaderBytes);
  const auto header = ParseOptionReplyHeader({bytes.data(), bytes.size()});
  REQUIRE(header.ok());
  CHECK(header->option == option);
  CHECK(bytes.size() == kOptionReplyHeaderBytes + header->length);
  if (IsOptionError(header->type)) CHECK(header->length > 0);
  return header->type;
}

std::string Ack(uint32_t option) { return OptionReplyMessage(option, kRepAck); }
std::string Context(uint32_t option, uint32_t id, std::string_view name) {
  return OptionReplyMessage(option, kRepMetaContext,
                            EncodeMetaContextReply({id, std::string(name)}));
}
std::string Queries(std::string_view name, std::vector<std::string> queries) {
  return EncodeMetaContextRequest(name, queries);
}

TEST_CASE("server handshake: EXPORT_NAME with and without the zeroes") {
  for (const bool zeroes : {true, false}) {
    Server server;
    server.Say(zeroes ? "\0\0\0\1"sv : "\0\0\0\3"sv);
    const std::string reply = server.Say("IHAVEOPT\0\0\0\1\0\0\0\4diskREST"sv);
    CHECK(reply.substr(0, 10) == "\0\0\0\0\0\x10\0\0\0\5"sv);
    CHECK(reply.size() == (zeroes ? 134 : 10));
    CHECK(server.result().transmission);
    CHECK(server.result().style == ReplyStyle::kSimple);
    CHECK(server.result().export_name == "disk");
    CHECK(server.result().export_info.flags == (kFlagHasFlags | kFlagSendFlush));
    CHECK(server.host.held == "disk");
    CHECK(server.leftover() == "REST");
  }
}

TEST_CASE("server handshake: EXPORT_NAME without fixed newstyle") {
  Server server({.handshake_flags = 0});
  CHECK(server.Say("\0\0\0\0"sv) == "NBDMAGICIHAVEOPT\0\0"sv);
  CHECK(server.Option(kOptExportName).size() == 134);
  CHECK(server.result().transmission);
}

TEST_CASE("server handshake: without fixed newstyle no other option exists") {
  for (const uint32_t option : {kOptAbort, kOptList, kOptGo, kOptStartTls}) {
    Server server({.handshake_flags = kFlagNoZeroes});
    server.Say("\0\0\0\2"sv);
    CHECK(server.Option(option).empty());
    CHECK(server.failure().find("NBD_OPT_EXPORT_NAME") != std::string::npos);
  }
}

TEST_CASE("server handshake: client flags that were not offered end the connection") {
  for (const std::string_view flags : {"\0\0\0\4"sv, "\x80\0\0\1"sv, "\0\0\0\7"sv}) {
    Server server;
    server.Say(flags);
    CHECK(server.failure().find("flags") != std::string::npos);
  }
  Server server({.handshake_flags = kFlagFixedNewstyle});
  server.Say("\0\0\0\2"sv);
  CHECK_FALSE(server.outcome().ok());
}

TEST_CASE("server handshake: oldstyle is one message") {
  Server server({.oldstyle = true});
  CHECK(server.Say("") == OldstyleGreeting(0x100000, kFlagHasFlags | kFlagSendFlush));
  CHECK(server.result().transmission);
  CHECK(server.result().oldstyle);
  Server refused({.oldstyle = true, .tls = TlsMode::kRequire});
  CHECK(refused.Say("").empty());
  CHECK_FALSE(refused.outcome().ok());
}

TEST_CASE("server handshake: GO tells what was asked for") {
  auto server = Greeted();
  const std::string reply = server->Go("disk", {kInfoDescription, 0x7777, kInfoBlockSize});
  CHECK(reply == OptionReplyMessage(kOptGo, kRepInfo, "\0\0\0\0\0\0\0\x10\0\0\0\5"sv) +
                     OptionReplyMessage(kOptGo, kRepInfo, "\0\2a test disk"sv) +
                     OptionReplyMessage(kOptGo, kRepInfo, "\0\3\0\0\0\1\0\0\x10\0\2\0\0\0"sv) +
                     Ack(kOptGo));
  CHECK(server->result().transmission);
  auto bare = Greeted();
  CHECK(bare->Go("") ==
        OptionReplyMessage(kOptGo, kRepInfo, "\0\0\0\0\0\0\0\x10\0\0\0\5"sv) + Ack(kOptGo));
  auto named = Greeted();
  CHECK(named->Go("", {kInfoName}).find("\0\1disk"sv) != std::string::npos);
}

TEST_CASE("server handshake: INFO tells the same and goes on; the export is opened once") {
  auto server = Greeted();
  const std::string data = EncodeInfoRequest("disk", std::array<uint16_t, 1>{kInfoName});
  const std::string info = server->Option(kOptInfo, data);
  CHECK_FALSE(server->done());
  std::string go = server->Option(kOptGo, data);
  CHECK(server->result().transmission);
  CHECK(server->host.opens == 1);
  REQUIRE(go.size() == info.size());
  for (const size_t reply : {size_t{0}, size_t{32}}) go[reply + 11] = '\6';
  go[go.size() - 9] = '\6';
  CHECK(go == info);
}

TEST_CASE("server handshake: another export replaces the one held") {
  auto server = Greeted();
  server->Option(kOptInfo, EncodeInfoRequest("disk", {}));
  server->Go("other");
  CHECK(server->host.held == "other");
  CHECK(server->result().export_info.size_bytes == 512);
}

TEST_CASE("server handshake: errors of opening get their replies") {
  const auto reply_for = [](absl::Status error) {
    auto server = Greeted();
    server->host.open_error = error;
    const uint32_t type = OnlyReply(server->Go("disk"), kOptGo);
    CHECK_FALSE(server->done());
    // A failed GO leaves the client free to try again.
    server->host.open_error = absl::OkStatus();
    server->Go("disk");
    CHECK(server->result().transmission);
    return type;
  };
  CHECK(reply_for(absl::NotFoundError("x")) == kRepErrUnknown);
  CHECK(reply_for(ErrnoError(ENOENT, "x")) == kRepErrUnknown);
  CHECK(reply_for(ErrnoError(EIO, "x")) == kRepErrUnknown);
  CHECK(reply_for(ErrnoError(EACCES, "x")) == kRepErrPolicy);
  CHECK(reply_for(absl::PermissionDeniedError("x")) == kRepErrPolicy);
  CHECK(reply_for(ErrnoError(ESHUTDOWN, "x")) == kRepErrShutdown);
  CHECK(reply_for(absl::UnauthenticatedError("x")) == kRepErrTlsReqd);
  auto server = Greeted();
  CHECK(server->Go("nosuch") == OptionReplyMessage(kOptGo, kRepErrUnknown, "no export nosuch"));
  CHECK(server->Option(kOptExportName, "nosuch").empty());
  CHECK(server->failure().find("no export nosuch") != std::string::npos);
}

TEST_CASE("server handshake: malformed GO and INFO are INVALID and nothing is lost") {
  for (const std::string_view data :
       {""sv, "\0\0\0"sv, "\0\0\0\4disk"sv, "\0\0\0\4disk\0"sv, "\0\0\0\4disk\0\1"sv,
        "\0\0\0\4disk\0\0x"sv, "\xff\xff\xff\xff"sv, "\0\0\0\2a\0\0\0"sv}) {
    auto server = Greeted();
    CHECK(OnlyReply(server->Option(kOptInfo, data), kOptInfo) == kRepErrInvalid);
    CHECK(OnlyReply(server->Option(kOptGo, data), kOptGo) == kRepErrInvalid);
    server->Go("disk");
    CHECK(server->result().transmission);
  }
  auto server = Greeted();
  CHECK(OnlyReply(server->Go(std::string(4097, 'n')), kOptGo) == kRepErrInvalid);
}

TEST_CASE("server handshake: block sizes may be required") {
  auto server = Greeted();
  server->host.exports["disk"].block_sizes_required = true;
  server->host.exports["disk"].block_sizes = {512, 4096, 65536};
  const std::string reply = server->Go("disk");
  CHECK(reply.find("\0\3\0\0\2\0\0\0\x10\0\0\1\0\0"sv) != std::string::npos);
  CHECK(reply.find("\x80\0\0\x08"sv) != std::string::npos);
  CHECK_FALSE(server->done());
  server->Go("disk", {kInfoBlockSize});
  CHECK(server->result().transmission);
  Server blunt;
  blunt.host.exports[""].block_sizes_required = true;
  blunt.Say(kBothFlags);
  blunt.Option(kOptExportName);
  CHECK(blunt.failure().find("block sizes") != std::string::npos);
}

TEST_CASE("server handshake: LIST") {
  auto server = Greeted();
  CHECK(server->Option(kOptList) ==
        OptionReplyMessage(kOptList, kRepServer, "\0\0\0\4diska test disk"sv) +
            OptionReplyMessage(kOptList, kRepServer, "\0\0\0\5other"sv) + Ack(kOptList));
  CHECK(OnlyReply(server->Option(kOptList, "x"), kOptList) == kRepErrInvalid);
  server->host.list_error = absl::PermissionDeniedError("not told");
  CHECK(OnlyReply(server->Option(kOptList), kOptList) == kRepErrPolicy);
  server->host.list_error = absl::InternalError("x");
  CHECK(OnlyReply(server->Option(kOptList), kOptList) == kRepErrPlatform);
  server->host.list_error = ErrnoError(ESHUTDOWN, "x");
  CHECK(OnlyReply(server->Option(kOptList), kOptList) == kRepErrShutdown);
}

TEST_CASE("server handshake: LIST leaves out what is no NBD string, and is sent in pieces") {
  auto server = Greeted();
  server->host.exports.clear();
  ExportInfo wordy;
  wordy.description = std::string(5000, 'd');
  server->host.exports["ok"] = wordy;
  server->host.exports[std::string(4097, 'n')] = {};
  server->host.exports["n\0l"s] = {};
  CHECK(server->Option(kOptList) ==
        OptionReplyMessage(kOptList, kRepServer, "\0\0\0\2ok"s + std::string(4096, 'd')) +
            Ack(kOptList));
  for (int i = 0; i < 1000; ++i) server->host.exports["e" + std::to_string(i)] = wordy;
  const std::string many = server->Option(kOptList);
  CHECK(many.size() > 1001 * 4096);
  CHECK(many.ends_with(Ack(kOptList)));
}

TEST_CASE("server handshake: ABORT") {
  auto server = Greeted();
  server->Option(kOptInfo, EncodeInfoRequest("disk", {}));
  CHECK(server->Option(kOptAbort, "bye") == Ack(kOptAbort));
  CHECK_FALSE(server->result().transmission);
  CHECK_FALSE(server->host.held.has_value());
  auto hasty = Greeted();
  hasty->HangUpOnWriter();
  hasty->Option(kOptAbort);
  CHECK_FALSE(hasty->result().transmission);
}

TEST_CASE("server handshake: leaving between options is no error, within one it is") {
  const std::string script = std::string(kBothFlags) + OptionRequest(kOptList, "") +
                             OptionRequest(kOptInfo, EncodeInfoRequest("disk", {}));
  const std::set<size_t> boundaries{4, 20, script.size()};
  for (size_t size = 0; size <= script.size(); ++size) {
    INFO(size);
    Server server;
    server.Say(std::string_view(script).substr(0, size));
    CHECK_FALSE(server.done());
    server.Close();
    CHECK(server.outcome().ok() == boundaries.contains(size));
    if (server.outcome().ok()) CHECK_FALSE(server.result().transmission);
  }
}

TEST_CASE("server handshake: bytes one at a time make no difference") {
  const std::string script =
      std::string(kBothFlags) + OptionRequest(kOptStructuredReply, "") +
      OptionRequest(kOptSetMetaContext, Queries("disk", {"base:allocation"})) +
      OptionRequest(kOptGo, EncodeInfoRequest("disk", {}));
  Server whole, bytewise({}, 1);
  CHECK(whole.Say(script) == bytewise.Say(script));
  CHECK(whole.result().contexts.size() == 1);
  CHECK(bytewise.result().contexts.size() == 1);
}

TEST_CASE("server handshake: structured replies") {
  auto server = Greeted();
  CHECK(OnlyReply(server->Option(kOptStructuredReply, "x"), kOptStructuredReply) == kRepErrInvalid);
  CHECK(server->Option(kOptStructuredReply) == Ack(kOptStructuredReply));
  CHECK(OnlyReply(server->Option(kOptStructuredReply), kOptStructuredReply) == kRepErrInvalid);
  server->Go("disk");
  CHECK(server->result().style == ReplyStyle::kStructured);
  CHECK((server->result().export_info.flags & kFlagSendDf) != 0);
  CHECK((server->result().export_info.flags & kFlagBlockStatusPayload) == 0);
}

TEST_CASE("server handshake: extended headers") {
  auto server = Greeted();
  CHECK(server->Option(kOptStructuredReply) == Ack(kOptStructuredReply));
  CHECK(OnlyReply(server->Option(kOptExtendedHeaders, "x"), kOptExtendedHeaders) == kRepErrInvalid);
  CHECK(server->Option(kOptExtendedHeaders) == Ack(kOptExtendedHeaders));
  CHECK(OnlyReply(server->Option(kOptExtendedHeaders), kOptExtendedHeaders) == kRepErrInvalid);
  CHECK(OnlyReply(server->Option(kOptStructuredReply), kOptStructuredReply) ==
        kRepErrExtHeaderReqd);
  server->Option(kOptSetMetaContext, Queries("disk", {"base:allocation"}));
  server->Go("disk");
  CHECK(server->result().style == ReplyStyle::kExtended);
  CHECK((server->result().export_info.flags & kFlagBlockStatusPayload) != 0);
  CHECK((server->result().export_info.flags & kFlagSendDf) != 0);
  auto broken = Greeted();
  broken->Option(kOptExtendedHeaders);
  CHECK(broken->Option(kOptExportName, "disk").empty());
  CHECK(broken->failure().find("extended headers") != std::string::npos);
}

TEST_CASE("server handshake: features can be turned off") {
  auto server = Greeted({.structured_replies = false});
  CHECK(OnlyReply(server->Option(kOptStructuredReply), kOptStructuredReply) == kRepErrUnsup);
  CHECK(OnlyReply(server->Option(kOptExtendedHeaders), kOptExtendedHeaders) == kRepErrUnsup);
  CHECK(OnlyReply(server->Option(kOptSetMetaContext, Queries("disk", {})), kOptSetMetaContext) ==
        kRepErrInvalid);
  auto compact = Greeted({.extended_headers = false});
  CHECK(OnlyReply(compact->Option(kOptExtendedHeaders), kOptExtendedHeaders) == kRepErrUnsup);
  CHECK(compact->Option(kOptStructuredReply) == Ack(kOptStructuredReply));
  auto blind = Greeted({.meta_contexts = false});
  blind->Option(kOptStructuredReply);
  for (const uint32_t option : {kOptListMetaContext, kOptSetMetaContext}) {
    CHECK(OnlyReply(blind->Option(option, Queries("disk", {})), option) == kRepErrUnsup);
  }
}

TEST_CASE("server handshake: listing contexts") {
  auto server = Greeted();
  const auto list = [&](std::vector<std::string> queries) {
    return server->Option(kOptListMetaContext, Queries("disk", std::move(queries)));
  };
  CHECK(OnlyReply(list({}), kOptListMetaContext) == kRepErrInvalid);  // before structured replies
  server->Option(kOptStructuredReply);
  const uint32_t option = kOptListMetaContext;
  const std::string base = Context(option, 0, "base:allocation");
  const std::string bitmap = Context(option, 0, "qemu:dirty-bitmap:b");
  const std::string depth = Context(option, 0, "qemu:allocation-depth");
  CHECK(list({}) == base + bitmap + depth + Ack(option));
  CHECK(list({"base:"}) == base + Ack(option));
  CHECK(list({"base:allocation", "base:"}) == base + Ack(option));
  CHECK(list({"qemu:"}) == bitmap + depth + Ack(option));
  CHECK(list({"qemu:dirty-bitmap:"}) == Ack(option));
  CHECK(list({"base:nosuch", "x-unknown:y"}) == Ack(option));
  CHECK(OnlyReply(list({"base"}), option) == kRepErrInvalid);
  CHECK(OnlyReply(list({":allocation"}), option) == kRepErrInvalid);
  CHECK(OnlyReply(list({""}), option) == kRepErrInvalid);
  CHECK(OnlyReply(server->Option(option, Queries("nosuch", {})), option) == kRepErrUnknown);
  CHECK(OnlyReply(server->Option(option, "\0\0\0\4disk"sv), option) == kRepErrInvalid);
  server->Go("disk");
  CHECK(server->result().contexts.empty());
}

TEST_CASE("server handshake: selecting contexts") {
  auto server = Greeted();
  server->Option(kOptStructuredReply);
  const uint32_t option = kOptSetMetaContext;
  CHECK(server->Option(option, Queries("disk", {"base:", "qemu:", "x:y"})) == Ack(option));
  CHECK(server->Option(option, Queries("disk", {"qemu:dirty-bitmap:b", "base:allocation",
                                                "base:allocation"})) ==
        Context(option, 1, "base:allocation") + Context(option, 2, "qemu:dirty-bitmap:b") +
            Ack(option));
  server->Go("disk");
  REQUIRE(server->result().contexts.size() == 2);
  CHECK(server->result().contexts[1].id == 2);
  CHECK(server->result().contexts[1].name == "qemu:dirty-bitmap:b");
}

TEST_CASE("server handshake: a later SET replaces an earlier one even when it fails") {
  const auto contexts_after = [](uint32_t option, std::string data) {
    auto server = Greeted();
    server->Option(kOptStructuredReply);
    server->Option(kOptSetMetaContext, Queries("disk", {"base:allocation"}));
    server->Option(option, data);
    server->Go("disk");
    return server->result().contexts.size();
  };
  CHECK(contexts_after(kOptListMetaContext, Queries("disk", {})) == 1);
  CHECK(contexts_after(kOptInfo, EncodeInfoRequest("other", {})) == 1);
  CHECK(contexts_after(kOptSetMetaContext, Queries("disk", {})) == 0);
  CHECK(contexts_after(kOptSetMetaContext, Queries("nosuch", {"base:allocation"})) == 0);
  CHECK(contexts_after(kOptSetMetaContext, "garbage") == 0);
  CHECK(contexts_after(kOptSetMetaContext, std::string(limits::kOptionBytesMax + 1, 'x')) == 0);
}

TEST_CASE("server handshake: contexts count for their export alone") {
  auto server = Greeted();
  server->Option(kOptStructuredReply);
  server->Option(kOptSetMetaContext, Queries("disk", {"base:allocation"}));
  server->Go("other");
  CHECK(server->result().contexts.empty());
}

TEST_CASE("server handshake: too many contexts are TOO_BIG") {
  auto server = Greeted();
  std::vector<std::string>& contexts = server->host.exports["disk"].contexts;
  for (int i = 0; i < 64; ++i) contexts.push_back("x-t:" + std::to_string(i));
  server->Option(kOptStructuredReply);
  CHECK(OnlyReply(server->Option(kOptSetMetaContext, Queries("disk", contexts)),
                  kOptSetMetaContext) == kRepErrTooBig);
  CHECK(OnlyReply(server->Option(kOptListMetaContext,
                                 Queries("disk", std::vector<std::string>(1025, "a:b"))),
                  kOptListMetaContext) == kRepErrTooBig);
}

TEST_CASE("server handshake: unknown and private options") {
  auto server = Greeted();
  CHECK(OnlyReply(server->Option(4711, "data"), 4711) == kRepErrUnsup);
  CHECK(OnlyReply(server->Option(kOptPeekExport), kOptPeekExport) == kRepErrUnsup);
  CHECK(OnlyReply(server->Option(0), 0) == kRepErrUnsup);
  server->host.private_option = 4711;
  CHECK(server->Option(4711, "data") == OptionReplyMessage(4711, kRepInfo, "data") + Ack(4711));
}

TEST_CASE("server handshake: option data is bounded") {
  auto server = Greeted();
  const std::string large(limits::kOptionBytesMax + 1, 'x');
  for (const uint32_t option : {kOptGo, kOptList, kOptSetMetaContext, Option{4711}}) {
    CHECK(OnlyReply(server->Option(option, large), option) == kRepErrTooBig);
  }
  CHECK(OnlyReply(server->Option(4711, large.substr(1)), 4711) == kRepErrUnsup);
  server->Say("IHAVEOPT\0\0\0\7\0\x10\0\1"sv);
  CHECK(server->failure().find("1048577 bytes") != std::string::npos);
  auto named = Greeted();
  named->Option(kOptExportName, std::string(4097, 'n'));
  CHECK_FALSE(named->outcome().ok());
  auto with_nul = Greeted();
  with_nul->Option(kOptExportName, "di\0sk"sv);
  CHECK_FALSE(with_nul->outcome().ok());
}

TEST_CASE("server handshake: the number of options is bounded") {
  auto server = Greeted();
  for (size_t i = 0; i < limits::kOptionsMax; ++i) server->Option(4711);
  CHECK(server->failure().find("1024 options") != std::string::npos);
}

TEST_CASE("server handshake: what is not an option ends it") {
  auto server = Greeted();
  CHECK(server->Say("GET / HTTP/1.1\r\n\r\n").empty());
  CHECK(server->failure().find("IHAVEOPT") != std::string::npos);
}

TEST_CASE("server handshake: shutting down") {
  auto server = Greeted();
  server->host.shutting_down = true;
  for (const uint32_t option : {kOptList, kOptGo, kOptStructuredReply, Option{4711}}) {
    CHECK(OnlyReply(server->Option(option), option) == kRepErrShutdown);
  }
  CHECK(server->Option(kOptAbort) == Ack(kOptAbort));
  auto named = Greeted();
  named->host.shutting_down = true;
  named->Option(kOptExportName);
  CHECK_FALSE(named->outcome().ok());
}

TEST_CASE("server handshake: TLS off") {
  auto server = Greeted();
  CHECK(OnlyReply(server->Option(kOptStartTls), kOptStartTls) == kRepErrPolicy);
  CHECK(OnlyReply(server->Option(kOptStartTls, "x"), kOptStartTls) == kRepErrInvalid);
}

TEST_CASE("server handshake: TLS at the client's choice forgets what was said in clear") {
  auto server = Greeted({.tls = TlsMode::kOn});
  server->OfferTls();
  server->Option(kOptStructuredReply);
  server->Option(kOptSetMetaContext, Queries("disk", {"base:allocation"}));
  CHECK(server->host.held == "disk");
  CHECK(server->Option(kOptStartTls) == Ack(kOptStartTls));
  CHECK_FALSE(server->host.held.has_value());
  CHECK(OnlyReply(server->SaySecurely(OptionRequest(kOptStartTls, "")), kOptStartTls) ==
        kRepErrInvalid);
  server->host.open_error = absl::UnauthenticatedError("still");
  const std::string go = OptionRequest(kOptGo, EncodeInfoRequest("disk", {}));
  CHECK(OnlyReply(server->SaySecurely(go), kOptGo) == kRepErrPolicy);  // never TLS_REQD inside TLS
  server->host.open_error = absl::OkStatus();
  server->SaySecurely(go);
  CHECK(server->result().tls);
  CHECK(server->result().style == ReplyStyle::kSimple);
  CHECK(server->result().contexts.empty());
  CHECK(server->host.held == "disk");
}

TEST_CASE("server handshake: TLS required") {
  auto server = Greeted({.tls = TlsMode::kRequire});
  server->OfferTls();
  for (const uint32_t option : {kOptList, kOptInfo, kOptGo, kOptStructuredReply, kOptSetMetaContext,
                                kOptExtendedHeaders, Option{4711}}) {
    CHECK(OnlyReply(server->Option(option, "x"), option) == kRepErrTlsReqd);
  }
  CHECK(server->host.opens == 0);
  CHECK(OnlyReply(server->Option(kOptStartTls, "x"), kOptStartTls) == kRepErrInvalid);
  CHECK(server->Option(kOptStartTls) == Ack(kOptStartTls));
  server->SaySecurely(OptionRequest(kOptExportName, "disk"));
  CHECK(server->result().tls);
  CHECK(server->result().transmission);

  auto aborted = Greeted({.tls = TlsMode::kRequire});
  CHECK(aborted->Option(kOptAbort) == Ack(kOptAbort));
  auto named = Greeted({.tls = TlsMode::kRequire});
  CHECK(named->Option(kOptExportName, "disk").empty());
  CHECK(named->failure().find("TLS") != std::string::npos);
  Server unfixed({.tls = TlsMode::kRequire});
  unfixed.Say("\0\0\0\0"sv);
  CHECK(unfixed.failure().find("TLS") != std::string::npos);
}

TEST_CASE("server handshake: clear text behind STARTTLS is an attack, not an option") {
  auto server = Greeted({.tls = TlsMode::kOn});
  server->OfferTls();
  CHECK(server->Say(OptionRequest(kOptStartTls, "") + OptionRequest(kOptList, "")).empty());
  CHECK(server->failure().find("without waiting") != std::string::npos);
  auto failed = Greeted({.tls = TlsMode::kOn});
  failed->Option(kOptStartTls);
  CHECK(failed->failure().find("bad certificate") != std::string::npos);
}

TEST_CASE("server handshake: without the client's fixed newstyle flag options work, TLS does not") {
  Server server({.tls = TlsMode::kOn});
  server.OfferTls();
  server.Say("\0\0\0\0"sv);
  CHECK(OnlyReply(server.Option(kOptStartTls), kOptStartTls) == kRepErrPolicy);
  server.Go("disk");
  CHECK(server.result().transmission);
}

TEST_CASE("server handshake: a client that cannot be written to") {
  auto server = Greeted();
  server->HangUpOnWriter();
  server->Option(kOptList);
  CHECK_FALSE(server->outcome().ok());
}

}  // namespace
}  // namespace blk::nbd
