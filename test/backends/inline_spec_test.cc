#include "src/backends/inline_spec.h"

#include <doctest/doctest.h>

#include <random>
#include <string>

#include "absl/strings/match.h"

namespace blk {
namespace {

using Form = InlineSpec::Form;

InlineSpec Parse(std::string_view text) {
  CAPTURE(text);
  absl::StatusOr<InlineSpec> spec = ParseInlineSpec(text);
  CHECK_MESSAGE(spec.ok(), spec.status().message());
  if (!spec.ok()) return {};
  CHECK(FormatInlineSpec(*spec) == text);
  return *spec;
}

std::string Complaint(std::string_view text) {
  absl::StatusOr<InlineSpec> spec = ParseInlineSpec(text);
  return spec.ok() ? "ok" : std::string(spec.status().message());
}

TEST_CASE("names, values and parameters") {
  CHECK(Parse("memory").source == SpecWord{.name = "memory"});
  CHECK(Parse("memory:1T").source == SpecWord{.name = "memory", .value = "1T"});
  CHECK(Parse("memory:").source == SpecWord{.name = "memory", .value = ""});
  CHECK(Parse("memory(size=1T,allocator=zstd)").source ==
        SpecWord{.name = "memory", .params = {{"size", "1T"}, {"allocator", "zstd"}}});
  CHECK(Parse("sparse-random:1T(seed=7)").source ==
        SpecWord{.name = "sparse-random", .value = "1T", .params = {{"seed", "7"}}});
  CHECK(Parse("memory").form == Form::kName);
}

TEST_CASE("a value goes to the end but for parentheses that hold parameters") {
  CHECK(Parse("data: @0x1+2 ").source.value == " @0x1+2 ");
  CHECK(Parse("data:(1 2)").source.value == "(1 2)");
  CHECK(Parse("data:(1 2)*3").source.value == "(1 2)*3");
  CHECK(Parse("data:()").source.value == "()");
  CHECK(Parse("data:1 ()").source.value == "1 ()");
  // Empty parentheses say nothing.
  CHECK(ParseInlineSpec("random:64K()").value() == Parse("random:64K"));
  CHECK(ParseInlineSpec("memory()").value() == Parse("memory"));
  CHECK(ParseInlineSpec("log()+memory:1").value() == Parse("log+memory:1"));
  CHECK(Parse("data:1)").source.value == "1)");
  CHECK(Parse("file:disk(1)").source.value == "disk(1)");
  CHECK(Parse("file:50%25").source.value == "50%25");
  CHECK(Parse("file:/a:b").source.value == "/a:b");
  CHECK(Parse("file:a(b=c)(d=e)").source ==
        SpecWord{.name = "file", .value = "a(b=c)", .params = {{"d", "e"}}});
  CHECK(Parse("file:a(b=c)d)").source.value == "a(b=c)d)");
}

TEST_CASE("filters, the leftmost outermost") {
  InlineSpec spec = Parse("tar(tar-entry=disk.qcow2)+xz+https://h/x.tar.xz");
  CHECK(spec.filters ==
        std::vector<SpecWord>{{.name = "tar", .params = {{"tar-entry", "disk.qcow2"}}},
                              {.name = "xz"}});
  CHECK(spec.source == SpecWord{.name = "curl", .params = {{"url", "https://h/x.tar.xz"}}});
  CHECK(spec.form == Form::kUri);
  CHECK(Parse("partition(partition=2)+disk.img").source ==
        SpecWord{.name = "file", .params = {{"file", "disk.img"}}});
  CHECK(Parse("log+cow+memory:1M").filters.size() == 2);
}

TEST_CASE("paths: begin with / or ., or have a . or / before anything else") {
  for (const char* path :
       {"/dev/sda", "./memory", "../x", ".", "/a+b(c=d):e", "./-", "disk.img", "images/disk",
        "a.b+c", "a.b:c", "a.b(c=d)", "~/disk", "-x.img", "d%41.img", "\xc3\xa4.img", "a b.img"}) {
    CAPTURE(path);
    InlineSpec spec = Parse(path);
    CHECK(spec.form == Form::kPath);
    CHECK(spec.source == SpecWord{.name = "file", .params = {{"file", path}}});
    CHECK(IsPathSpec(path));
  }
  for (const char* other :
       {"", "memory", "memory:./x", "memroy:1.5", "nbd://a.b/", "c++.img", "x(a=b.c)"}) {
    CAPTURE(other);
    CHECK_FALSE(IsPathSpec(other));
  }
}

TEST_CASE("URIs") {
  for (const char* uri :
       {"nbd://localhost", "nbds://h:1/e", "nbd+unix:///?socket=/tmp/s+t",
        "nbds+unix:///x?socket=s", "nbd+vsock://2", "nbds+vsock://2", "NBD://h"}) {
    InlineSpec spec = Parse(uri);
    CHECK(spec.form == Form::kUri);
    CHECK(spec.source == SpecWord{.name = "nbd", .params = {{"uri", uri}}});
  }
  CHECK(Parse("log+nbd+unix:///?socket=s").filters == std::vector<SpecWord>{{.name = "log"}});
  CHECK(Parse("http://h/x(a=b)").source.params[0].second == "http://h/x(a=b)");
  CHECK(Complaint("nbdd://h") ==
        "\"nbdd://h\": unknown kind of URI `nbdd://`, did you mean `nbd`?");
  CHECK(Complaint("gopher://h") == "\"gopher://h\": unknown kind of URI `gopher://`");
  CHECK(Complaint("log+htp://h") ==
        "\"log+htp://h\": unknown kind of URI `htp://`, did you mean `http`?");
}

TEST_CASE("percent decoding is for values in parentheses") {
  InlineSpec spec = Parse("curl(url=http://h/%2528%29%2C%0A)");
  CHECK(spec.source.params[0].second == "http://h/%28),\n");
  CHECK(ParseInlineSpec("x(a=%2f%2F)")->source.params[0].second == "//");
  CHECK(EncodeSpecValue("a(b),c%\n\xc3\xa4 =") == "a%28b%29%2Cc%25%0A\xc3\xa4 =");
  CHECK(Complaint("x(a=%)") ==
        "\"x(a=%)\": `%` is not % and two hexadecimal digits; write % as %25");
  CHECK(Complaint("x(a=%4)") ==
        "\"x(a=%4)\": `%4` is not % and two hexadecimal digits; write % as %25");
  CHECK(Complaint("x(a=%4g)") ==
        "\"x(a=%4g)\": `%4g` is not % and two hexadecimal digits; write % as %25");
  CHECK(Complaint("x:1(a=%zz)") ==
        "\"x:1(a=%zz)\": `%zz` is not % and two hexadecimal digits; write % as %25");
  CHECK(Complaint("x(a=%00)") == "\"x(a=%00)\": a value cannot contain the byte %00");
}

TEST_CASE("what follows no rule is refused") {
  CHECK(Complaint("") == "\"\": it is empty");
  CHECK(Complaint("log+") == "\"log+\": nothing follows the last `+`");
  CHECK(Complaint("+memory") == "\"+memory\": `` cannot be a name; for a file write ./+memory");
  CHECK(Complaint("-") == "\"-\": `-` cannot be a name; for a file write ./-");
  CHECK(Complaint("my disk") ==
        "\"my disk\": `my disk` cannot be a name; for a file write ./my disk");
  CHECK(Complaint("\xc3\xa4") ==
        "\"\xc3\xa4\": `\xc3\xa4` cannot be a name; for a file write ./\xc3\xa4");
  CHECK(Complaint(":1") == "\":1\": `` cannot be a name; for a file write ./:1");
  CHECK(Complaint("memory(size=1M") == "\"memory(size=1M\": `memory(` is not closed by `)`");
  CHECK(Complaint("memory(1M)") == "\"memory(1M)\": expected KEY=VALUE instead of `1M`");
  CHECK(Complaint("memory(size=1M,)") == "\"memory(size=1M,)\": expected KEY=VALUE instead of ``");
  CHECK(Complaint("memory(size=1M)x") ==
        "\"memory(size=1M)x\": expected `+` or the end after the parentheses instead of `x`");
  CHECK(Complaint("memory(size=1M):2M") ==
        "\"memory(size=1M):2M\": expected `+` or the end after the parentheses instead of `:2M`");
  CHECK(Complaint("x(a=(b)+memory") == "\"x(a=(b)+memory\": inside parentheses write ( as %28");
  CHECK(Complaint(std::string_view("a\0b", 3)) == "a disk's spec contains a zero byte");
  CHECK(Complaint(std::string(65537, 'a')) == "a disk's spec is longer than 65536 bytes");
  std::string deep;
  for (int i = 0; i < 64; ++i) deep += "a+";
  CHECK(absl::StrContains(Complaint(deep + "b"), ": more than 63 filters"));
  CHECK(Complaint(deep.substr(2) + "b") == "ok");
}

TEST_CASE("a path made by a program is printed as one") {
  InlineSpec spec{.filters = {},
                  .source = {.name = "file", .params = {{"file", "memory"}}},
                  .form = Form::kPath};
  CHECK(FormatInlineSpec(spec) == "./memory");
}

TEST_CASE("whatever parses is printed as text that parses to the same") {
  const std::vector<std::string> pieces{
      "memory", "nbd", "http", "://", "a", ".",  "/",   "+",        ":", "(",    ")",    "=",
      ",",      "%25", "%28",  "%",   " ", "1M", "x=1", "\xc3\xa4", "-", "log+", "(k=v)"};
  std::mt19937_64 random(7);
  int parsed = 0;
  for (int round = 0; round < 50000; ++round) {
    std::string text;
    for (uint64_t count = 1 + random() % 8; count > 0; --count)
      text += pieces[random() % pieces.size()];
    absl::StatusOr<InlineSpec> spec = ParseInlineSpec(text);
    if (!spec.ok()) continue;
    ++parsed;
    std::string printed = FormatInlineSpec(*spec);
    CAPTURE(text);
    CAPTURE(printed);
    absl::StatusOr<InlineSpec> again = ParseInlineSpec(printed);
    REQUIRE(again.ok());
    REQUIRE(*again == *spec);
  }
  CHECK(parsed > 5000);
}

}  // namespace
}  // namespace blk
