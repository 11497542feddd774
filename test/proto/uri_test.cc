#include "src/proto/uri.h"

#include <doctest/doctest.h>

#include <string>

namespace blk::nbd {
namespace {

Uri Parsed(std::string_view text) {
  absl::StatusOr<Uri> uri = ParseUri(text);
  INFO(text, " ", uri.status().ToString());
  REQUIRE(uri.ok());
  return *uri;
}

// The message, without which the test fails.
std::string Refused(std::string_view text) {
  const absl::StatusOr<Uri> uri = ParseUri(text);
  INFO(text);
  REQUIRE_FALSE(uri.ok());
  CHECK(uri.status().message().starts_with("\"" + std::string(text) + "\": "));
  return std::string(uri.status().message());
}

TEST_CASE("uri: TCP with its defaults") {
  const Uri bare = Parsed("nbd://localhost");
  CHECK(bare.transport == Uri::Transport::kTcp);
  CHECK(bare.host == "localhost");
  CHECK(bare.port == 10809);
  CHECK(bare.export_name.empty());
  CHECK_FALSE(bare.tls);
  CHECK(Parsed("nbd://").host == "localhost");
  CHECK(Parsed("nbd:///x").export_name == "x");
  CHECK(Parsed("nbd://h:").port == 10809);
  CHECK(Parsed("NBDS://H:1/").tls);
  CHECK(Parsed("nbd://h:65535").port == 65535);
}

TEST_CASE("uri: one slash before the export name belongs to the syntax") {
  CHECK(Parsed("nbd://h/").export_name.empty());
  CHECK(Parsed("nbd://h/a").export_name == "a");
  CHECK(Parsed("nbd://h//a").export_name == "/a");
  CHECK(Parsed("nbd://h/a/b/").export_name == "a/b/");
  CHECK(Parsed("nbd://h/a%20b%2F%C3%BC").export_name == "a b/\xc3\xbc");
  CHECK(Parsed("nbd://h/a+b").export_name == "a+b");
  CHECK(Parsed("nbd://h/a?b=c").export_name == "a");
}

TEST_CASE("uri: IPv6 literals") {
  CHECK(Parsed("nbd://[::1]").host == "::1");
  const Uri with_port = Parsed("nbd://[2001:db8::1]:7/x");
  CHECK(with_port.host == "2001:db8::1");
  CHECK(with_port.port == 7);
  CHECK(Parsed("nbd://[fe80::1%25eth0]").host == "fe80::1%eth0");
  CHECK(Refused("nbd://[::1").find("closing ]") != std::string::npos);
  CHECK(Refused("nbd://[::1]x").find(":PORT") != std::string::npos);
  CHECK(Refused("nbd://[nonsense]").find("IPv6") != std::string::npos);
  // Found by fuzzing: what is behind the % must read back too.
  CHECK(Refused("nbd://[fe80::1%2%eth0]").find("IPv6") != std::string::npos);
  CHECK(Refused("nbd://[fe80::1%25]").find("IPv6") != std::string::npos);
  CHECK(Refused("nbd://a%3Ab/").find("colon") != std::string::npos);
  CHECK(Refused("nbd://::1").find("brackets") != std::string::npos);
}

TEST_CASE("uri: Unix sockets") {
  const Uri uri = Parsed("nbd+unix:///disk%201?socket=/tmp/a%20b%2B%25%26%C3%BC");
  CHECK(uri.transport == Uri::Transport::kUnix);
  CHECK(uri.export_name == "disk 1");
  CHECK(uri.socket == "/tmp/a b+%&\xc3\xbc");
  CHECK(Parsed("nbd+unix://?socket=/s").export_name.empty());
  CHECK(Parsed("nbds+unix:///?x=y&socket=s;z").socket == "s");
  CHECK(Refused("nbd+unix:///x").find("?socket=PATH") != std::string::npos);
  CHECK(Refused("nbd+unix://x?socket=/s").find("three slashes") != std::string::npos);
  CHECK(Refused("nbd+unix://:1/?socket=/s").find("no port") != std::string::npos);
  CHECK(Refused("nbd://h/x?socket=/s").find("nbd+unix") != std::string::npos);
}

TEST_CASE("uri: vsock") {
  const Uri uri = Parsed("nbd+vsock://3:70000/x");
  CHECK(uri.transport == Uri::Transport::kVsock);
  CHECK(uri.vsock_cid == 3);
  CHECK(uri.port == 70000);
  CHECK(Parsed("nbds+vsock:///").vsock_cid == 2);
  CHECK(Refused("nbd+vsock://host").find("context id") != std::string::npos);
  CHECK(Refused("nbd+vsock://4294967296").find("context id") != std::string::npos);
}

TEST_CASE("uri: TLS parameters") {
  const Uri uri = Parsed(
      "nbds://alice@h/?tls-certificates=/c&tls-psk-file=/p&tls-hostname=n&tls-verify-peer=off");
  CHECK(uri.tls);
  CHECK(uri.tls_username == "alice");
  CHECK(uri.tls_certificates == "/c");
  CHECK(uri.tls_psk_file == "/p");
  CHECK(uri.tls_hostname == "n");
  CHECK(uri.tls_verify_peer == false);
  CHECK(Parsed("nbds://h?tls-username=bob").tls_username == "bob");
  CHECK_FALSE(Parsed("nbds://h").tls_verify_peer.has_value());
  CHECK(Parsed("nbds://h?tls-verify-peer=true").tls_verify_peer == true);
  CHECK(Refused("nbds://h?tls-verify-peer=maybe").find("neither true nor false") !=
        std::string::npos);
  CHECK(Refused("nbds://h?tls-certficates=/c").find("tls-certificates") != std::string::npos);
}

TEST_CASE("uri: what is wrong is said") {
  CHECK(Refused("http://h").find("not an NBD URI") != std::string::npos);
  CHECK(Refused("disk.img").find("not an NBD URI") != std::string::npos);
  CHECK(Refused("nbd:h").find("// must follow") != std::string::npos);
  CHECK(Refused("nbd://h:0").find("port") != std::string::npos);
  CHECK(Refused("nbd://h:65536").find("port") != std::string::npos);
  CHECK(Refused("nbd://h:nbd").find("port") != std::string::npos);
  CHECK(Refused("nbd://h:1x").find("port") != std::string::npos);
  CHECK(Refused("nbd://h/a%").find("%25") != std::string::npos);
  CHECK(Refused("nbd://h/a%2").find("%25") != std::string::npos);
  CHECK(Refused("nbd://h/a%zz").find("%25") != std::string::npos);
  CHECK(Refused("nbd://h/a%00").find("%00") != std::string::npos);
  CHECK(Refused("nbd://h/a#b").find("%23") != std::string::npos);
  CHECK(Refused("nbd://a%20b/").find("space") != std::string::npos);
  CHECK(Refused("nbd+ssh://h/x").find("ssh") != std::string::npos);
  CHECK(ParseUri("nbd+ssh://h/x").status().code() == absl::StatusCode::kUnimplemented);
  const std::string longest(4096, 'x');
  CHECK(Parsed("nbd://h/" + longest).export_name == longest);
  CHECK(Refused("nbd://h/" + longest + "x").find("4096") != std::string::npos);
}

TEST_CASE("uri: what looks like one") {
  CHECK(LooksLikeNbdUri("nbd:x"));
  CHECK(LooksLikeNbdUri("Nbd+Unix://"));
  CHECK(LooksLikeNbdUri("nbd+ssh://h"));
  CHECK_FALSE(LooksLikeNbdUri("nbd"));
  CHECK_FALSE(LooksLikeNbdUri("nbdx://h"));
  CHECK_FALSE(LooksLikeNbdUri("/nbd:x"));
}

TEST_CASE("uri: the text is the one nbdkit prints") {
  // The left sides were printed by nbdkit 1.32.5 as $uri.
  Uri uri;
  uri.port = 10999;
  CHECK(uri.ToString() == "nbd://localhost:10999");
  uri.export_name = "/lead";
  CHECK(uri.ToString() == "nbd://localhost:10999//lead");
  uri.transport = Uri::Transport::kUnix;
  uri.socket = "/tmp/a b+%&\xc3\xbc";
  uri.export_name = "";
  CHECK(uri.ToString() == "nbd+unix://?socket=/tmp/a%20b%2B%25%26%C3%BC");
  uri.socket = "/s";
  uri.export_name = "a:b@c&d=e+f?g#h;i,j!k*l(m)n~o[p]q$r\\s|t";
  CHECK(uri.ToString() ==
        "nbd+unix:///a%3Ab%40c%26d%3De%2Bf%3Fg%23h%3Bi%2Cj%21k%2Al%28m%29n~o%5Bp%5Dq%24r%5Cs%7Ct"
        "?socket=/s");
  uri.tls = true;
  uri.export_name = "a b/\xc3\xbc";
  CHECK(uri.ToString() == "nbds+unix:///a%20b/%C3%BC?socket=/s");
}

TEST_CASE("uri: text and value round trip") {
  for (const std::string_view text :
       {"nbd://h:1", "nbds://al%2Fice@[fe80::1%25eth0]:9//x?tls-psk-file=/p",
        "nbd+unix:///%25?socket=s&tls-certificates=/c&tls-verify-peer=false",
        "nbds+vsock://7:123456/x", "nbd://h%2F%40:1/y?tls-hostname=n"}) {
    INFO(text);
    const Uri uri = Parsed(text);
    CHECK(uri.ToString() == text);
    CHECK(Parsed(uri.ToString()) == uri);
  }
}

}  // namespace
}  // namespace blk::nbd
