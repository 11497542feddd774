// What expressions mean, and how little is read to find out.
#include <map>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "doctest/doctest.h"
#include "src/backends/data/evaluate.h"

namespace blk {
namespace {

bool Contains(std::string_view text, std::string_view part) {
  return text.find(part) != std::string_view::npos;
}

// What a fake file or script gives: `content`, over and over when it is endless, then `failure`.
struct Source {
  std::string content;
  bool endless = false;
  bool seekable = false;
  std::string failure = {};
};

// Counts what the evaluator does with them.
struct Usage {
  int opened = 0;
  int closed = 0;
  int finished = 0;
  uint64_t bytes = 0;
};

class FakeInput : public DataInput {
 public:
  FakeInput(const Source& source, Usage& usage) : source_(source), usage_(usage) {
    ++usage_.opened;
  }
  ~FakeInput() override { ++usage_.closed; }

  absl::StatusOr<size_t> Read(std::span<char> buffer) override {
    REQUIRE(!buffer.empty());
    const std::string& content = source_.content;
    if (position_ >= content.size() && !source_.endless) return 0;
    // Seldom all that was asked for, as with a pipe.
    const size_t count = std::min<size_t>({buffer.size(), 1000, content.size() - At()});
    content.copy(buffer.data(), count, At());
    position_ += count;
    usage_.bytes += count;
    return count;
  }
  absl::Status Finish() override {
    ++usage_.finished;
    return source_.failure.empty() ? absl::OkStatus() : absl::UnknownError(source_.failure);
  }
  bool Skip(uint64_t bytes) override {
    if (source_.seekable) position_ += bytes;
    return source_.seekable;
  }

 private:
  size_t At() const { return source_.endless ? position_ % source_.content.size() : position_; }
  const Source& source_;
  Usage& usage_;
  size_t position_ = 0;
};

struct Strings : DataSink {
  absl::Status Put(uint64_t offset, std::string_view data) override {
    bytes.replace(offset, data.size(), data);
    return absl::OkStatus();
  }
  std::string bytes;
};

class Evaluation {
 public:
  Evaluation() {
    options_.open_file = options_.open_script = [this](std::string name) { return Open(name); };
  }

  absl::StatusOr<ImagePtr> Image(std::string_view text) {
    usage.clear();
    auto program = ParseData(text, nullptr);
    if (!program.ok()) return program.status();
    return EvaluateData(*program, options_);
  }
  std::string Bytes(std::string_view text) {
    auto image = Image(text);
    if (!image.ok()) return std::string(image.status().message());
    Strings strings;
    strings.bytes.resize((*image)->size());
    CHECK(RenderImage(**image, 1 << 30, strings).ok());
    return strings.bytes;
  }
  std::string Hex(std::string_view text) { return absl::BytesToHexString(Bytes(text)); }

  DataOptions& options() { return options_; }
  std::map<std::string, Source> sources;
  std::map<std::string, Usage> usage;

 private:
  absl::StatusOr<std::unique_ptr<DataInput>> Open(const std::string& name) {
    auto source = sources.find(name);
    if (source == sources.end()) return absl::NotFoundError(absl::StrCat(name, ": not there"));
    return std::make_unique<FakeInput>(source->second, usage[name]);
  }
  DataOptions options_;
};

TEST_CASE("expressions mean what they mean to nbdkit") {
  const struct {
    const char* text;
    const char* hex;
  } kCases[] = {
      // Each was given to nbdkit 1.32.5.
      {"1 2 @-1 3", "0103"},
      {"@10 @^4 1", "00000000000000000000000001"},
      {"1 @4", "01000000"},
      {"le32:0x12345678 be64:010", "785634120000000000000008"},
      {"\"a\\n\\t\\x41\\\\\\\"\\a\\b\\f\\r\\v\\e\\q\\?\\'\"", "610a09415c2207080c0d0b65713f27"},
      {"\"\"", ""},
      {"\"\\xfff\"", "ff66"},
      {"1*3", "010101"},
      {"1* 3", "010101"},
      {"1*0", ""},
      {"1*2*3", "010101010101"},
      {"1[0:1]*4", "01010101"},
      {"(1 2 3)[1:2]", "02"},
      {"(1 2 3)[1:]", "0203"},
      {"(1 2 3)[:]", "010203"},
      {"(1 2 3)[3:]", ""},
      {"(1 2 3)[2:2]", ""},
      {"\"\\n\"*2[0:1]", "0a"},
      {"\"abc\"[1:2]\"z\"", "627a"},
      {"1\"abc\"", "01616263"},
      {"@1\"a\"", "0061"},
      {"@1le16:5", "000500"},
      {"1 2*3", "01020202"},
      {"1->\\x \\x\\x", "0101"},
      {"1 -> \\x 2 -> \\x \\x", "02"},
      {"1 -> \\x (2 -> \\x \\x) \\x", "0201"},
      {"1 -> \\x \\x -> \\y \\y \\y", "0101"},
      {"1 -> \\x (\\x 2) -> \\x \\x", "0102"},
      {"1 -> \\x (\\x \\x)->\\x \\x", "0101"},
      {"1 -> \\a (\\a 2) -> \\b 3 -> \\a \\b", "0102"},
      {"(@4)*2 1", "000000000000000001"},
      {"(1 @4)*2", "0100000001000000"},
      {"(1 @0)*3", "010101"},
      {"(1 2 @-1)*3", "010201020102"},
      {"()", ""},
      {"( )*5", ""},
      {"(1*3 -> \\x)*2", ""},
      {"@5 @2 1", "0000010000"},
      {"1 @5 @2", "0100000000"},
      {"1 @10 @0 2", "02000000000000000000"},
      {"(@5 @0 1)*2", "01000000000100000000"},
      {"@4 (1 @^4 2)*2", "0000000001000000020100000002"},
      {"1*2 @^4 3 @+3 @-1 4", "0101000003000004"},
      {"(1*3)[1:]*2[1:3]", "0101"},
      {"\"a\"*3\"b\"*2", "6161616262"},
      {"((((1 2)*2 3)[1:4])*2 [1:])*2", "01020201020102020102"},
      {"1 2 3 @1 0 0", "010000"},
      {"(1 2 3)*3 @2 (9 0 9)*2", "010209000909000903"},
      {"1*3 @1 ( @1 )", "010001"},
      {"1*5 @1 (@2 7)", "0100000701"},
      {"1*5 @1 0*2", "0100000101"},
      {"1*5 @1 (0 0)", "0100000101"},
      {"1*5 @1 (@3)", "0100000001"},
      {"1 @1 \"\" @0", "01"},
      {"(1 2) -> \\a-b_c0 \\a-b_c0", "0102"},
      {"be16:0xffff le64:18446744073709551615", "ffffffffffffffffffff"},
      {"(1 2 3)[0x1:02]", "02"},
      {"1*0x10", "01010101010101010101010101010101"},
      {"1*010", "0101010101010101"},
      {"1 # * 3", "01"},
      {"((1 @10)*3)[5:25]", "0000000000010000000000000000000100000000"},
  };
  for (const auto& c : kCases) {
    CAPTURE(c.text);
    CHECK(Evaluation().Hex(c.text) == c.hex);
  }
}

TEST_CASE("what nbdkit refuses and blk takes") {
  CHECK(Evaluation().Hex("\"\\101\\0\\7z\\1018\"") == "4100077a4138");
  CHECK(Evaluation().Bytes("\"\\u00e9\\u20ac\\U0001f600$\\u0024\"") ==
        "\xc3\xa9€\xf0\x9f\x98\x80$$");
  CHECK(Evaluation().Hex("(le16:0x1)*2 le16:1*2 le16:3[1:2]\"a\"") == "01000100010001000061");
  CHECK(Evaluation().Hex("(1 2 3) [ 1 : 2 ]") == "02");
  CHECK(Evaluation().Image("1 @1M")->get()->size() == 1 << 20);
}

TEST_CASE("errors that only the value shows say where") {
  CHECK(Evaluation().Bytes("1 @-2") ==
        "data parameter @-2 must not be larger than the current offset 1 at offset 2 near `@-2`: "
        "move back by less");
  CHECK(Evaluation().Bytes("1 (1 2 3)[:4]") ==
        "[N:M] does not describe a valid slice at offset 9 near `[:4]`: the expression is 3 bytes "
        "long");
  CHECK(Contains(Evaluation().Bytes("(1 2 3)[4:]"), "does not describe a valid slice"));
  CHECK(Contains(Evaluation().Bytes("\"abc\"*2[7:]"), "the expression is 6 bytes long"));
  CHECK(Contains(Evaluation().Bytes("1 \"ab\"*7E"),
                 "the image would be larger than 2^63-1 bytes at offset 6"));
  CHECK(
      Contains(Evaluation().Bytes("@9223372036854775807 1"), "larger than 2^63-1 bytes at offset"));
  CHECK(Contains(Evaluation().Bytes("1 @9223372036854775807 @+1"), "larger than 2^63-1 bytes"));
  CHECK(Contains(Evaluation().Bytes("@9223372036854775807 @^4K"), "larger than 2^63-1 bytes"));
  CHECK(Evaluation().Image("@9223372036854775806 1")->get()->size() == kImageSizeMax);
  CHECK(Contains(Evaluation().Bytes("1 <nope"), "nope: not there at offset 2 near `<nope`"));
  DataOptions closed;
  auto program = ParseData("<(ls)", nullptr);
  CHECK(EvaluateData(*program, closed).status().message().find("<(SCRIPT) is not allowed here") ==
        0);
}

TEST_CASE("a repeat costs what is seen of it") {
  Evaluation e;
  CHECK(e.Image("0*1E 1")->get()->size() == (uint64_t{1} << 60) + 1);
  CHECK(e.Image("((0*1M)*1M)*1M")->get()->zero());
  CHECK(e.Bytes("(\"ab\"*1E)[:10]") == "ababababab");
  CHECK(e.Bytes("(\"ab\"*1E)[1152921504606846975:1152921504606846979]") == "baba");
  CHECK(e.Bytes("((\"ab\"*1P @1E 1)*3)[1125899906842623:1125899906842627]") == "baba");
  // Each name stands for two of the one before: 2^50 bytes from 51 small expressions.
  std::string doubling = "\"ab\" -> \\x ";
  for (int i = 0; i < 50; ++i) doubling += "(\\x \\x) -> \\x ";
  CHECK(e.Image(doubling + "\\x")->get()->size() == uint64_t{1} << 51);
  CHECK(e.Bytes(doubling + "\\x[4294967297:4294967301]") == "baba");
  // Another need at every use, and still few steps.
  std::string needs = "\"ab\"*30 -> \\x ";
  for (int i = 1; i < 50; ++i) absl::StrAppend(&needs, "(\\x[:", i, "] \\x[:", i + 1, "]) -> \\x ");
  e.options().steps_max = 10'000;
  CHECK(e.Bytes(needs + "\\x[:4]") == "aaaa");
  e.options().steps_max = 5;
  CHECK(Contains(e.Bytes("1*2 1*2 1*2"), "more than 5 steps to evaluate at offset 9"));
}

TEST_CASE("an endless script is read as far as the slice needs, once, and ended") {
  Evaluation e;
  e.sources["count"] = {.content = "0123456789", .endless = true};
  CHECK(e.Bytes("<(count)[:2048]").size() == 2048);
  CHECK(e.usage["count"].bytes == 2048);
  CHECK(e.usage["count"].opened == 1);
  CHECK(e.usage["count"].closed == 1);
  CHECK(e.usage["count"].finished == 0);

  const std::pair<const char*, std::pair<const char*, uint64_t>> kCases[] = {
      {"<(count)[2:5]*2", {"234234", 5}},
      {"(<(count))[:3]", {"012", 3}},
      {"(\"x\" <(count) \"never\")[:3]", {"x01", 2}},
      {"<(count)*5[:3]", {"012", 3}},
      {"(<(count) @+5 1 @^512 2)[1:3]", {"12", 3}},
      {"(@8 <(count) @0 \"z\" @2 \"y\")[:9]",
       {std::string_view("z\0y\0\0\0\0\0"
                         "0",
                         9)
            .data(),
        1}},
      {"(<(count)[:4] @-2 \"z\")[:4]", {"01z3", 4}},
      {"(\"abc\" <(count))[:2]", {"ab", 0}},
      {"<(count) -> \\c \\c[:2] \\c[:4] \\c[1:3]", {"01012312", 4}},
      {"<(count)[:4] -> \\c \\c \\c", {"01230123", 4}},
      {"<(count)[:0]", {"", 0}},
      {"(<(count)[:4] -> \\c \\c \\c)[6:8]*2", {"2323", 4}},
      {"<(count)[:9][:3]", {"012", 3}},
  };
  for (const auto& [text, expected] : kCases) {
    CAPTURE(text);
    const std::string bytes = e.Bytes(text);
    CHECK(bytes.substr(0, bytes.find('\0')) == expected.first);
    CHECK(e.usage["count"].bytes == expected.second);
    CHECK(e.usage["count"].opened <= 1);
    CHECK(e.usage["count"].closed == e.usage["count"].opened);
  }
  e.options().need = 100;
  CHECK(e.Image("<(count)")->get()->size() == 100);
  CHECK(e.usage["count"].bytes == 100);
}

TEST_CASE("an endless script without a slice meets the bound") {
  Evaluation e;
  e.sources["count"] = {.content = "0123456789", .endless = true};
  e.sources["zero"] = {.content = std::string(10, '\0'), .endless = true};
  e.options().held_bytes_max = 1 << 20;
  e.options().input_bytes_max = 4 << 20;
  CHECK(Contains(e.Bytes("1 <(count)"),
                 "files and scripts give more than 1048576 bytes at offset 2 near `<(count)`"));
  CHECK(e.usage["count"].closed == 1);
  CHECK(Contains(e.Bytes("<zero"), "files and scripts give more than 4194304 bytes"));
  CHECK(e.Image("<(count)").status().code() == absl::StatusCode::kResourceExhausted);
  // @- may bring the offset back, so that the length of the script must be known.
  CHECK(Contains(e.Bytes("(<(count) @-2 1)[:5]"), "files and scripts give more than"));
}

TEST_CASE("a script that fails is an error, unless enough was read before") {
  Evaluation e;
  e.sources["bad"] = {.content = "ab", .failure = "script failed with exit status 3: oops"};
  e.sources["good"] = {.content = "ab"};
  CHECK(Contains(e.Bytes("<(bad)"), "script failed with exit status 3: oops at offset 0 near `<("));
  CHECK(Contains(e.Bytes("1 <(bad)[:3]"), "exit status 3"));
  CHECK(e.Bytes("<(bad)[:2]") == "ab");
  CHECK(e.Bytes("<(good)[:9]") == "ab");
  CHECK(e.usage["good"].finished == 1);
  CHECK(e.Bytes("<(good)[9:]") == "");
  CHECK(e.Bytes("<good[5:9]") == "");
  CHECK(Contains(e.Bytes("<(good)*2[:9]"), "does not describe a valid slice"));
}

TEST_CASE("the far end of a file is sought when it can be") {
  Evaluation e;
  e.sources["disk"] = {.content = std::string(500'000, 'x') + "end", .seekable = true};
  CHECK(e.Bytes("<disk[500000:]") == "end");
  CHECK(e.usage["disk"].bytes == 3);
  e.sources["disk"].seekable = false;
  CHECK(e.Bytes("<disk[500000:]") == "end");
  CHECK(e.usage["disk"].bytes == 500'003);
  CHECK(e.usage["disk"].closed == e.usage["disk"].opened);
  CHECK(e.Bytes("<disk[499999:500002]") == "xen");
}

// Random expressions over everything but definitions: cutting by need must not change what is seen.
class Writer {
 public:
  explicit Writer(uint64_t seed) : state_(seed * 2 + 1) {}

  std::string List(int depth) {
    std::string text;
    for (uint64_t i = Below(4) + 1; i > 0; --i) absl::StrAppend(&text, Item(depth), " ");
    return text;
  }

 private:
  uint64_t Below(uint64_t bound) {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return (state_ >> 33) % bound;
  }
  std::string Item(int depth) {
    switch (Below(depth == 0 ? 6 : 11)) {
      case 0:
        return absl::StrCat(Below(256));
      case 1:
        return absl::StrCat("@", Below(60));
      case 2:
        return absl::StrCat("@+", Below(5));
      case 3:
        return absl::StrCat("1*9 @-", Below(9));
      case 4:
        return absl::StrCat("@^", 1 << Below(5));
      case 5:
        return absl::StrCat("<(s", Below(3), ")");
      case 6:
      case 7:
        return absl::StrCat("(", List(depth - 1), ")*", Below(5));
      case 8:
        return absl::StrCat("(", List(depth - 1), " 1*9)[", Below(4), ":", Below(5) + 4, "]");
      case 9:
        return absl::StrCat("(", List(depth - 1), " 0*4)[", Below(4), ":]");
      default:
        return absl::StrCat("(", List(depth - 1), ") -> \\n \\n \\n 7 \\n");
    }
  }
  uint64_t state_;
};

TEST_CASE("the first bytes are the same however few are needed") {
  Evaluation whole;
  whole.sources = {{"s0", {.content = "abcdefghij"}},
                   {"s1", {.content = ""}},
                   {"s2", {.content = std::string("0\0k", 3)}}};
  Evaluation part;
  part.sources = whole.sources;
  int compared = 0;
  for (uint64_t seed = 0; seed < 3000; ++seed) {
    const std::string text = Writer(seed).List(3);
    CAPTURE(text);
    auto image = whole.Image(text);
    REQUIRE_MESSAGE(image.ok(), image.status().message());
    const std::string all = whole.Bytes(text);
    for (uint64_t need : {uint64_t{1}, uint64_t{7}, uint64_t{40}, all.size(), all.size() + 1}) {
      part.options().need = need;
      const std::string some = part.Bytes(text);
      CHECK(some.size() >= std::min<uint64_t>(need, all.size()));
      REQUIRE((some.substr(0, need) == all.substr(0, need)));
      if (need > all.size()) REQUIRE(some.size() == all.size());
      ++compared;
    }
  }
  CHECK(compared == 15000);
}

}  // namespace
}  // namespace blk
