#include "src/core/tls.h"

#include <doctest/doctest.h>
#include <stdlib.h>
#include <unistd.h>

#include <array>
#include <cstring>
#include <fstream>
#include <optional>

#include "src/core/scope.h"
#include "src/core/tls_make.h"
#include "src/core/tls_openssl.h"
#include "test/proto/memory_stream.h"

namespace blk {
namespace {

using namespace std::string_literals;

// A folder of the test's own, removed at its end.
class Folder {
 public:
  Folder() {
    char path[] = "/tmp/blk-tls-XXXXXX";
    REQUIRE(mkdtemp(path) != nullptr);
    path_ = path;
  }
  ~Folder() {
    for (const std::string& file : files_) unlink(file.c_str());
    rmdir(path_.c_str());
  }
  std::string Write(const std::string& name, std::string_view text) {
    files_.push_back(path_ + "/" + name);
    std::ofstream(files_.back()) << text;
    return files_.back();
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  std::vector<std::string> files_;
};

using ContextPtr = std::shared_ptr<const TlsContext>;

// Both ends of a connection, and what became of their handshakes.
class Pair {
 public:
  explicit Pair(size_t read_bytes_max = SIZE_MAX)
      : connection_(queue_, read_bytes_max),
        client(std::make_unique<MemoryStream>(connection_.to_client, connection_.to_server,
                                              read_bytes_max)),
        server(std::make_unique<MemoryStream>(connection_.to_server, connection_.to_client,
                                              read_bytes_max)) {}
  ~Pair() { Close(); }

  void ShakeHands(ContextPtr for_client, ContextPtr for_server) {
    scope_.Spawn(Upgrade(for_client, &client, &client_status));
    scope_.Spawn(Upgrade(for_server, &server, &server_status));
    queue_.Run();
  }
  // All that one end writes, as the other reads it.
  std::string Send(Stream* from, Stream* to, const std::vector<std::string>& parts) {
    std::vector<iovec> spans;
    size_t total = 0;
    for (const std::string& part : parts) {
      spans.push_back({const_cast<char*>(part.data()), part.size()});
      total += part.size();
    }
    std::string got;
    scope_.Spawn(WriteParts(from, spans));
    scope_.Spawn(ReadBytes(to, total, &got));
    queue_.Run();
    return got;
  }
  absl::StatusOr<size_t> ReadOnce(Stream* from) {
    std::optional<absl::StatusOr<size_t>> result;
    scope_.Spawn(ReadInto(from, &result));
    queue_.Run();
    return result.value_or(absl::UnavailableError("nothing has come"));
  }
  void Close() {
    connection_.client.Cancel();
    connection_.server.Cancel();
    queue_.Run();
  }
  MemoryPipe& to_server() { return connection_.to_server; }

 private:
  RunQueue queue_;
  MemoryConnection connection_;
  TaskScope scope_;

  static Task<void> Upgrade(ContextPtr context, StreamPtr* stream, absl::Status* status) {
    *status = co_await TlsContext::Upgrade(context, stream);
    if (!status->ok()) (*stream)->ShutdownWrite();
  }
  static Task<void> WriteParts(Stream* stream, std::vector<iovec> parts) {
    CHECK((co_await stream->WriteAll(parts)).ok());
  }
  static Task<void> ReadBytes(Stream* stream, size_t total, std::string* got) {
    while (got->size() < total) {
      std::string piece(total - got->size(), '\0');
      auto size = co_await stream->ReadSome({piece.data(), piece.size()});
      if (!size.ok() || *size == 0) co_return;
      got->append(piece, 0, *size);
    }
  }
  static Task<void> ReadInto(Stream* stream, std::optional<absl::StatusOr<size_t>>* result) {
    std::array<char, 64> piece;
    result->emplace(co_await stream->ReadSome(piece));
  }

 public:
  StreamPtr client, server;
  absl::Status client_status = absl::UnavailableError("not done"),
               server_status = absl::UnavailableError("not done");
};

// Two users, one key changed, one user more.
struct Keys {
  Folder folder;
  std::string file = folder.Write("keys.psk", "alice:00112233\nbob:aabbccddeeff\n");
  std::string other = folder.Write("other.psk", "alice:00112234\nmallory:00112233\n");

  ContextPtr Server() { return TlsContext::ForServer({.psk_file = file}).value(); }
  ContextPtr Client(const std::string& user) {
    return TlsContext::ForClient({.psk_file = file, .username = user}).value();
  }
};

struct Certificates {
  Folder folder;
  Certificates() {
    const auto files = MakeCertificates({.hosts = {"example.com", "127.0.0.1"}, .client = "me"});
    REQUIRE(files.ok());
    for (const NewFile& made : *files) folder.Write(made.name, made.text);
  }
  ContextPtr Server(bool verify_peer = false) {
    return TlsContext::ForServer({.certificates = folder.path(), .verify_peer = verify_peer})
        .value();
  }
  ContextPtr Client(const std::string& host, bool verify_peer = true) {
    return TlsContext::ForClient(
               {.certificates = folder.path(), .hostname = host, .verify_peer = verify_peer})
        .value();
  }
};

TEST_CASE("TLS: bytes go both ways, however small the pieces of the wire") {
  Keys keys;
  for (const size_t read_bytes_max : {size_t{1}, size_t{7}, size_t{4096}, SIZE_MAX}) {
    Pair pair(read_bytes_max);
    pair.ShakeHands(keys.Client("alice"), keys.Server());
    REQUIRE(pair.client_status.ok());
    REQUIRE(pair.server_status.ok());
    const std::string large(read_bytes_max == 1 ? 40'000 : 1'000'001, 'x');
    CHECK(pair.Send(pair.client.get(), pair.server.get(), {"hel", "", "lo"}) == "hello");
    CHECK(pair.Send(pair.server.get(), pair.client.get(), {"a", large, "b"}) == "a" + large + "b");
    CHECK(pair.Send(pair.client.get(), pair.server.get(), {large}) == large);
  }
}

TEST_CASE("TLS: small parts are gathered into full records") {
  Keys keys;
  Pair pair;
  pair.ShakeHands(keys.Client("bob"), keys.Server());
  REQUIRE(pair.client_status.ok());
  std::vector<std::string> parts(64, std::string(1024, 'p'));  // 64 KiB: four records
  std::vector<iovec> spans;
  for (std::string& part : parts) spans.push_back({part.data(), part.size()});
  TaskScope scope;
  REQUIRE(pair.to_server().bytes().empty());
  Task<absl::Status> written = pair.client->WriteAll(spans);
  struct Driver {
    static Task<void> Run(Task<absl::Status> task) { CHECK((co_await std::move(task)).ok()); }
  };
  scope.Spawn(Driver::Run(std::move(written)));
  const std::string_view wire = pair.to_server().bytes();
  int records = 0;
  for (size_t at = 0; at < wire.size(); ++records) {
    CHECK(wire[at] == 0x17);  // application data
    at += 5 + 256 * static_cast<uint8_t>(wire[at + 3]) + static_cast<uint8_t>(wire[at + 4]);
  }
  CHECK(records == 4);
  CHECK(wire.find("pppp") == std::string_view::npos);
}

// A client of another make, which asks for records of 512 bytes (RFC 6066, section 4).
class SmallRecordClient {
 public:
  explicit SmallRecordClient(int version) : context_(SSL_CTX_new(TLS_client_method())) {
    SSL_CTX_set_min_proto_version(context_.get(), version);
    SSL_CTX_set_max_proto_version(context_.get(), version);
    REQUIRE(SSL_CTX_set_ciphersuites(context_.get(), "TLS_AES_128_GCM_SHA256") == 1);
    // The cipher that adds most.
    REQUIRE(SSL_CTX_set_cipher_list(context_.get(), "PSK-AES256-CBC-SHA384:PSK@SECLEVEL=0") == 1);
    SSL_CTX_set_psk_client_callback(context_.get(), Key);
    REQUIRE(SSL_CTX_set_tlsext_max_fragment_length(context_.get(),
                                                   TLSEXT_max_fragment_length_512) == 1);
    ssl_.reset(SSL_new(context_.get()));
    BIO* in = BIO_new(BIO_s_mem());
    BIO* out = BIO_new(BIO_s_mem());
    SSL_set_bio(ssl_.get(), in, out);
    SSL_set_connect_state(ssl_.get());
  }
  bool ShakeHands() { return SSL_do_handshake(ssl_.get()) == 1; }
  bool Write(const std::string& bytes) {
    return SSL_write(ssl_.get(), bytes.data(), static_cast<int>(bytes.size())) > 0;
  }
  // Wire -> what it means.
  std::string Read(std::string_view wire) {
    BIO_write(SSL_get_rbio(ssl_.get()), wire.data(), static_cast<int>(wire.size()));
    std::string all;
    std::array<char, 4096> piece;
    for (int got; (got = SSL_read(ssl_.get(), piece.data(), piece.size())) > 0;)
      all.append(piece.data(), got);
    return all;
  }
  // What it wants to send.
  std::string Output() {
    char* bytes = nullptr;
    const long size = BIO_get_mem_data(SSL_get_wbio(ssl_.get()), &bytes);
    std::string output(bytes, size);
    (void)BIO_reset(SSL_get_wbio(ssl_.get()));
    return output;
  }

 private:
  static unsigned Key(SSL*, const char*, char* user, unsigned user_bytes_max, unsigned char* key,
                      unsigned) {
    std::string_view("alice").copy(user, user_bytes_max);
    user[5] = '\0';
    std::memcpy(key, "\x00\x11\x22\x33", 4);
    return 4;
  }
  tls::Handle<SSL_CTX, SSL_CTX_free> context_;
  tls::SslHandle ssl_;
};

size_t LargestRecord(std::string_view wire) {
  size_t largest = 0;
  while (!wire.empty()) {
    REQUIRE(wire.size() >= 5);
    const size_t bytes = 256 * static_cast<uint8_t>(wire[3]) + static_cast<uint8_t>(wire[4]);
    largest = std::max(largest, bytes);
    REQUIRE(wire.size() >= 5 + bytes);
    wire.remove_prefix(5 + bytes);
  }
  return largest;
}

struct Exchange {
  static Task<void> Upgrade(ContextPtr context, StreamPtr* stream, bool* done) {
    CHECK((co_await TlsContext::Upgrade(context, stream)).message() == "");
    *done = true;
  }
  static Task<void> Write(Stream* stream, const std::string* bytes) {
    const iovec part{const_cast<char*>(bytes->data()), bytes->size()};
    CHECK((co_await stream->WriteAll({&part, 1})).ok());
  }
  static Task<void> Read(Stream* stream, size_t total, std::string* into) {
    std::string piece(total, '\0');
    while (into->size() < total) {
      const auto got = co_await stream->ReadSome(piece);
      REQUIRE(got.ok());
      if (*got == 0) co_return;
      into->append(piece, 0, *got);
    }
  }
};

TEST_CASE("TLS: a client may ask for records of 512 bytes") {
  Keys keys;
  for (const int version : {TLS1_2_VERSION, TLS1_3_VERSION}) {
    CAPTURE(version);
    RunQueue queue;
    MemoryConnection connection(queue);
    StreamPtr server = std::make_unique<MemoryStream>(connection.to_server, connection.to_client);
    SmallRecordClient client(version);
    TaskScope scope;
    bool ready = false;
    scope.Spawn(Exchange::Upgrade(keys.Server(), &server, &ready));
    std::string received;
    for (int i = 0; i < 10 && !(client.ShakeHands() && ready); ++i) {
      connection.to_server.Write(client.Output());
      queue.Run();
      received += client.Read(connection.to_client.Take());
    }
    REQUIRE(ready);
    // One full buffer of small records, and more than fits one.
    const std::string large(300'001, 'x');
    scope.Spawn(Exchange::Write(server.get(), &large));
    queue.Run();
    const std::string wire = connection.to_client.Take();
    CHECK(LargestRecord(wire) > 512);
    CHECK(LargestRecord(wire) <= 512 + 128);
    received += client.Read(wire);
    CHECK(received == large);
    std::string got;
    scope.Spawn(Exchange::Read(server.get(), large.size(), &got));
    CHECK(client.Write(large));
    const std::string sent = client.Output();
    CHECK(LargestRecord(sent) <= 512 + 128);
    connection.to_server.Write(sent);
    queue.Run();
    CHECK(got == large);
    server->Cancel();
    queue.Run();
  }
}

TEST_CASE("TLS: wrong keys and unknown users fail at both ends") {
  Keys keys;
  for (const char* user : {"alice", "mallory"}) {
    Pair pair;
    pair.ShakeHands(TlsContext::ForClient({.psk_file = keys.other, .username = user}).value(),
                    keys.Server());
    CHECK_FALSE(pair.server_status.ok());
    CHECK_FALSE(pair.client_status.ok());
  }
  const auto unknown = TlsContext::ForClient({.psk_file = keys.file, .username = "carol"});
  CHECK(absl::IsNotFound(unknown.status()));
}

TEST_CASE("TLS: certificates are for a host, and of a known authority") {
  Certificates good, other;
  const auto client_accepts = [](ContextPtr client, ContextPtr server) {
    Pair pair;
    pair.ShakeHands(std::move(client), std::move(server));
    CHECK(pair.client_status.ok() == pair.server_status.ok());
    return pair.client_status.ok();
  };
  CHECK(client_accepts(good.Client("example.com"), good.Server()));
  CHECK(client_accepts(good.Client("127.0.0.1"), good.Server()));
  CHECK(client_accepts(good.Client(""), good.Server()));
  CHECK_FALSE(client_accepts(good.Client("example.org"), good.Server()));
  CHECK_FALSE(client_accepts(good.Client("127.0.0.2"), good.Server()));
  CHECK_FALSE(client_accepts(good.Client("sub.example.com"), good.Server()));
  CHECK_FALSE(client_accepts(good.Client("example.com\0.org"s), good.Server()));
  CHECK_FALSE(client_accepts(other.Client("example.com"), good.Server()));
  CHECK(client_accepts(other.Client("example.org", /*verify_peer=*/false), good.Server()));
}

TEST_CASE("TLS: a server that verifies its clients") {
  Certificates good, other;
  Pair known, unknown;
  known.ShakeHands(good.Client("example.com"), good.Server(/*verify_peer=*/true));
  CHECK(known.server_status.ok());
  unknown.ShakeHands(other.Client("", /*verify_peer=*/false), good.Server(/*verify_peer=*/true));
  CHECK_FALSE(unknown.server_status.ok());
  // With TLS 1.3 the client learns of it with its first read.
  const auto got = unknown.ReadOnce(unknown.client.get());
  CHECK_FALSE(got.ok());
  CHECK(got.status().message().find("refused") != std::string::npos);
}

TEST_CASE("TLS: keys and certificates do not mix") {
  Keys keys;
  Certificates certificates;
  Pair key_client, key_server;
  key_client.ShakeHands(keys.Client("alice"), certificates.Server());
  CHECK_FALSE(key_client.client_status.ok());
  CHECK_FALSE(key_client.server_status.ok());
  key_server.ShakeHands(certificates.Client("example.com"), keys.Server());
  CHECK_FALSE(key_server.client_status.ok());
  CHECK_FALSE(key_server.server_status.ok());
}

TEST_CASE("TLS: a goodbye and a cut are the end of the stream; a changed byte is an error") {
  Keys keys;
  Pair polite;
  polite.ShakeHands(keys.Client("alice"), keys.Server());
  polite.client->ShutdownWrite();
  CHECK(polite.ReadOnce(polite.server.get()).value() == 0);
  Pair cut;
  cut.ShakeHands(keys.Client("alice"), keys.Server());
  cut.to_server().Close();
  CHECK(cut.ReadOnce(cut.server.get()).value() == 0);
  Pair changed;
  changed.ShakeHands(keys.Client("alice"), keys.Server());
  changed.to_server().Write("\x17\3\3\0\x20" + std::string(32, 'x'));
  CHECK(ErrnoOf(changed.ReadOnce(changed.server.get()).status()) == EPROTO);
  Pair nonsense;
  nonsense.to_server().Write("IHAVEOPT\0\0\0\3\0\0\0\0"s);
  nonsense.ShakeHands(keys.Client("alice"), keys.Server());
  CHECK(ErrnoOf(nonsense.server_status) == EPERM);
}

TEST_CASE("TLS: what a PSK file may hold") {
  const auto parsed = ParsePskFile("# a comment\n\nal ice:00fF\r\n#6:1\n", "f");
  CHECK_FALSE(parsed.ok());
  CHECK(parsed.status().message().find("f:4") != std::string::npos);
  const auto keys = ParsePskFile("al ice:00fF\r\n#613a62:01\nlast:02", "f");
  REQUIRE(keys.ok());
  CHECK(keys->at("al ice") == "\0\xff"s);
  CHECK(keys->at("a:b") == "\1");
  CHECK(keys->at("last") == "\2");
  for (const char* wrong : {"", "# only\n", "alice\n", "alice:\n", "alice:0\n", "alice:0g\n",
                            ":00\n", "a:00\na:01\n", "#zz:00\n", "#:00\n"}) {
    const auto failed = ParsePskFile(wrong, "f");
    CHECK_FALSE(failed.ok());
    CHECK(failed.status().message().find("0g") == std::string::npos);  // no key in messages
  }
  CHECK(MakePskLine("alice")->size() == 6 + 64 + 1);
  CHECK(*MakePskLine("alice") != *MakePskLine("alice"));
  for (const char* wrong : {"", "a:b", "#00", "a\nb"}) CHECK_FALSE(MakePskLine(wrong).ok());
}

TEST_CASE("TLS: made certificates refuse names that are none") {
  for (const char* wrong : {"", "a,DNS:b", "a b", "http://x"})
    CHECK_FALSE(MakeCertificates({.hosts = {wrong}, .client = "me"}).ok());
  CHECK_FALSE(MakeCertificates({.hosts = {}, .client = "me"}).ok());
}

TEST_CASE("TLS: files that are missing or wrong are named") {
  Folder folder;
  const auto message = [&] {
    return std::string(TlsContext::ForServer({.certificates = folder.path()}).status().message());
  };
  CHECK(message().find("server-cert.pem") != std::string::npos);
  folder.Write("server-cert.pem", "nonsense");
  CHECK(message().find("server-key.pem") != std::string::npos);
  folder.Write("server-key.pem", "nonsense");
  CHECK(message().find("not a certificate") != std::string::npos);
}

}  // namespace
}  // namespace blk
