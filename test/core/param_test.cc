#include "src/core/param.h"

#include <doctest/doctest.h>
#include <pty.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <string>

#include "src/core/param_text.h"
#include "src/core/suggest.h"

namespace blk {
namespace {

enum class CacheMode { kWriteback, kUnsafe };

struct Base {
  std::string allocator = "sparse";
};

struct Config : Base {
  Size size;
  std::vector<std::string> header;
  std::optional<int> depth;
  uint16_t port = 10809;
  Nanoseconds delay = std::chrono::seconds(2);
  bool fast = false;
  CacheMode cache = CacheMode::kWriteback;
  std::vector<CacheMode> modes;
  std::string access_key;
  Secret password;
  std::string level = "low";
  Size block{65536};
  std::vector<std::pair<std::string, std::string>> others;
};

const ParamTable<Config>& Table() {
  static const auto& table = *new ParamTable<Config>(
      ParamTable<Config>()
          .Param("size", &Config::size,
                 {.help = "size of the disk", .required = true, .magic = true})
          .Param("allocator", &Config::allocator, {.help = "how memory is got"})
          .Param("header", &Config::header, {.help = "header to send"})
          .Param("depth", &Config::depth, {.help = "levels", .min = "1", .max = "100"})
          .Param("port", &Config::port, {.help = "TCP port"})
          .Param("delay", &Config::delay, {.help = "time to wait", .max = "60s"})
          .Param("fast", &Config::fast, {.help = "hurry"})
          .Param("cache", &Config::cache,
                 {{"writeback", CacheMode::kWriteback}, {"unsafe", CacheMode::kUnsafe}},
                 {.help = "mode"})
          .Param("modes", &Config::modes,
                 {{"writeback", CacheMode::kWriteback}, {"unsafe", CacheMode::kUnsafe}},
                 {.help = "modes"})
          .Param("access-key", &Config::access_key, {.help = "key", .aliases = {"access_key"}})
          .Param("password", &Config::password, {.help = "password"})
          .Param("level", &Config::level, {.help = "how much", .choices = {"low", "high"}})
          .Param("block-size", &Config::block, {.help = "block", .min = "4K", .max = "64M"})
          .Param("secret-door", &Config::fast, {.help = "", .hidden = true}));
  return table;
}

// What the reader says to these words, as a stack would give them; "" for nothing.
std::string Read(const std::vector<std::string>& words, Config* config,
                 const ParamRows& rows = Table()) {
  ParamReader reader(rows, config, "memory");
  for (const std::string& word : words) {
    auto pair = SplitKeyValue(word);
    absl::Status status = pair ? reader.Give(pair->first, pair->second) : reader.GiveBare(word);
    if (!status.ok()) return std::string(status.message());
  }
  return std::string(reader.Finish().message());
}

std::string Complaint(const std::vector<std::string>& words) {
  Config config;
  return Read(words, &config);
}

TEST_CASE("what is a key") {
  for (const char* key : {"a", "size", "access-key", "access_key", "a.b", "S3"}) CHECK(IsKey(key));
  for (const char* key : {"", "1", "-a", "_a", "a b", "a/b", "\xc3\xa4"}) CHECK_FALSE(IsKey(key));
  CHECK(SplitKeyValue("a=b=c") == std::pair<std::string_view, std::string_view>("a", "b=c"));
  CHECK(SplitKeyValue("a=") == std::pair<std::string_view, std::string_view>("a", ""));
  for (const char* word : {"a", "=b", "1=b", "./a=b", " @32768 a=1"})
    CHECK_FALSE(SplitKeyValue(word));
}

TEST_CASE("rows fill the members of their config") {
  Config config;
  CHECK(Read({"1M", "allocator=malloc", "header=a: b", "header=c", "depth=0x10", "port=1",
              "delay=250ms", "fast=on", "cache=unsafe", "modes=unsafe", "modes=writeback",
              "access_key=k", "password=pw", "level=high", "block-size=4K"},
             &config) == "");
  CHECK(config.size.bytes == 1048576);
  CHECK(config.allocator == "malloc");
  CHECK(config.header == std::vector<std::string>{"a: b", "c"});
  CHECK(config.depth == 16);
  CHECK(config.port == 1);
  CHECK(config.delay == std::chrono::milliseconds(250));
  CHECK(config.fast);
  CHECK(config.cache == CacheMode::kUnsafe);
  CHECK(config.modes == std::vector<CacheMode>{CacheMode::kUnsafe, CacheMode::kWriteback});
  CHECK(config.access_key == "k");
  CHECK(config.password.text == "pw");
  CHECK(config.level == "high");
  CHECK(config.block.bytes == 4096);
}

TEST_CASE("what was not given keeps the initialiser's value") {
  Config config;
  CHECK(Read({"size=1"}, &config) == "");
  CHECK(config.allocator == "sparse");
  CHECK_FALSE(config.depth);
  CHECK(config.port == 10809);
  CHECK(config.delay == std::chrono::seconds(2));
}

TEST_CASE("an empty text is a text") {
  Config config;
  CHECK(Read({"1", "access-key="}, &config) == "");
  CHECK(Complaint({"1", "port="}) == "memory: parameter `port` needs a value, port=N");
  CHECK(Complaint({"size="}) == "memory: parameter `size` needs a value, size=SIZE");
}

TEST_CASE("what is wrong is said with owner, parameter and remedy") {
  CHECK(Complaint({"sise=1"}) == "memory: unknown parameter `sise`, did you mean `size`?");
  CHECK(Complaint({"block_size=1"}) ==
        "memory: unknown parameter `block_size`, did you mean `block-size`?");
  CHECK(Complaint({"SIZE=1"}) == "memory: unknown parameter `SIZE`, did you mean `size`?");
  CHECK(Complaint({"colour=red"}) ==
        "memory: unknown parameter `colour`; it takes size, allocator, header, depth, port, delay, "
        "fast, cache, "
        "modes, access-key, password, level, block-size");
  CHECK(Complaint({"1M", "2M"}) == "memory: parameter `size` is given twice: \"1M\", then \"2M\"");
  CHECK(Complaint({"1M", "access-key=a", "access_key=b"}) ==
        "memory: parameter `access-key` is given twice: \"a\", then \"b\"");
  CHECK(Complaint({"password=one", "password=two"}) ==
        "memory: parameter `password` is given twice");
  CHECK(Complaint({"fast=1"}) ==
        "memory: parameter `size` is missing: give size=SIZE or just SIZE");
  CHECK(Complaint({"1Q"}) ==
        "memory: size: \"1Q\" is not a size: unknown unit \"Q\", use one of b s K M G T P E");
  CHECK(Complaint({"depth=0"}) ==
        "memory: depth: 0 is out of range: give a value between 1 and 100");
  CHECK(Complaint({"depth=99999999999"}) ==
        "memory: depth: 99999999999 is out of range: give a value between 1 and 100");
  CHECK(Complaint({"delay=61s"}) == "memory: delay: 61s is out of range: give at most 60s");
  CHECK(Complaint({"port=65536"}) ==
        "memory: port: \"65536\" is out of range: give a number between 0 and 65535");
  CHECK(Complaint({"block-size=2K"}) ==
        "memory: block-size: 2K is out of range: give a value between 4K and 64M");
  CHECK(Complaint({"cache=unsave"}) ==
        "memory: cache: \"unsave\" is not one of writeback, unsafe, did you mean `unsafe`?");
  CHECK(Complaint({"level=x"}) == "memory: level: \"x\" is not one of low, high");
}

TEST_CASE("a path that is looked at later is absolute") {
  struct Watching {
    std::string file, other;
  };
  ParamTable<Watching> table;
  table.Param("file", &Watching::file, {.help = "a file", .later = true})
      .Param("other", &Watching::other, {.help = "another", .required = true});
  Watching config;
  ParamReader reader(table, &config, "watch");
  REQUIRE(reader.Give("file", "a/b").ok());
  CHECK(config.file[0] == '/');
  CHECK(config.file == AbsolutePath("a/b").value());
  CHECK(AbsolutePath("/a/b").value() == "/a/b");
  reader.UseOldRules();
  REQUIRE(reader.Give("file", "").ok());
  CHECK(config.file.empty());
  CHECK(reader.Finish().message() ==
        "watch: you must supply the other=<TEXT> parameter after the plugin name on the command "
        "line");
}

TEST_CASE("a table without rows says so") {
  struct Empty {};
  Empty config;
  ParamTable<Empty> table;
  ParamReader reader(table, &config, "zero");
  CHECK(reader.Give("a", "b").message() == "zero: it takes no parameters, but `a` was given");
  CHECK(reader.GiveBare("b").message() == "zero: it takes no parameters, but \"b\" was given");
  CHECK(reader.Finish().ok());
}

TEST_CASE("a row for any key") {
  struct Script {
    std::string script;
    std::vector<std::pair<std::string, std::string>> others;
  };
  ParamTable<Script> table;
  table.Param("script", &Script::script, {.help = "program", .required = true, .magic = true});
  table.AnyKey(&Script::others, "passed to the script");
  Script config;
  ParamReader reader(table, &config, "sh");
  CHECK(reader.GiveBare("./x.sh").ok());
  CHECK(reader.Give("a", "1").ok());
  CHECK(reader.Give("a", "2").ok());
  CHECK(reader.Finish().ok());
  CHECK(config.script == "./x.sh");
  CHECK(config.others == std::vector<std::pair<std::string, std::string>>{{"a", "1"}, {"a", "2"}});
  CHECK(ParamHelp(table, ParamStyle::kKeyValue) ==
        "  [script=]TEXT             program (required)\n"
        "  KEY=VALUE                 passed to the script\n");
  CHECK(ParamUsage(table) == "[script=]TEXT [KEY=VALUE ...]");
}

TEST_CASE("secrets by nbdkit's rules") {
  char path[] = "/tmp/blk-secret-XXXXXX";
  int fd = mkstemp(path);
  REQUIRE(fd >= 0);
  REQUIRE(write(fd, "from file\nrest\n", 15) == 15);
  REQUIRE(lseek(fd, 0, SEEK_SET) == 0);
  CHECK(ReadSecret("literal")->text == "literal");
  CHECK(ReadSecret("")->text == "");
  CHECK(ReadSecret(absl::StrCat("+", path))->text == "from file");
  CHECK(ReadSecret(absl::StrCat("-", fd))->text == "from file");
  CHECK_FALSE(ReadSecret(absl::StrCat("-", fd)).ok());  // was closed
  CHECK(ReadSecret("-2").status().message() ==
        "a secret cannot be read from descriptors 0, 1 and 2; give it as +FILE");
  CHECK(ReadSecret("-x").status().message() ==
        "a secret that begins with `-` is `-` alone or `-FD`; give any other as +FILE");
  CHECK(ReadSecret("+/nonexistent/secret").status().message() ==
        "cannot open /nonexistent/secret for the secret: No such file or directory");
  std::ofstream(path) << std::string(65537, 'x');
  CHECK(ReadSecret(absl::StrCat("+", path)).status().message() ==
        absl::StrCat("the secret in ", path, " is longer than 65536 bytes"));
  unlink(path);
}

// What a child says that asks for a secret on a terminal of its own, where `typed` is typed; then,
// in `screen`, what that terminal showed.
std::string AskedSecret(std::string_view typed, std::string* screen) {
  int pipe_ends[2];
  REQUIRE(pipe(pipe_ends) == 0);
  int terminal = -1;
  pid_t child = forkpty(&terminal, nullptr, nullptr, nullptr);
  REQUIRE(child >= 0);
  if (child == 0) {
    absl::StatusOr<Secret> secret = ReadSecret("-");
    std::string answer = secret.ok() ? secret->text : std::string(secret.status().message());
    bool written = write(pipe_ends[1], answer.data(), answer.size()) >= 0;
    _exit(written ? 0 : 1);
  }
  close(pipe_ends[1]);
  char buffer[256];
  ssize_t got = read(terminal, buffer, sizeof buffer);  // the prompt: from now on echo is off
  screen->assign(buffer, got > 0 ? static_cast<size_t>(got) : 0);
  REQUIRE(write(terminal, typed.data(), typed.size()) == static_cast<ssize_t>(typed.size()));
  std::string answer;
  while ((got = read(pipe_ends[0], buffer, sizeof buffer)) > 0)
    answer.append(buffer, static_cast<size_t>(got));
  while ((got = read(terminal, buffer, sizeof buffer)) > 0)
    screen->append(buffer, static_cast<size_t>(got));
  int status = -1;
  CHECK(waitpid(child, &status, 0) == child);
  CHECK(status == 0);
  close(pipe_ends[0]);
  close(terminal);
  return answer;
}

TEST_CASE("a secret is asked for without echo") {
  std::string screen;
  CHECK(AskedSecret("open sesame\n", &screen) == "open sesame");
  CHECK(screen == "password: \r\n");
  CHECK(AskedSecret("\n", &screen) == "");
  CHECK(AskedSecret("half\x03", &screen) == "no secret was given");
  CHECK(screen == "password: \r\n");
}

TEST_CASE("suggestions are near or absent") {
  std::vector<std::string_view> names{"memory", "null", "nbd", "sparse-random", "random", "S3"};
  CHECK(Nearest("memroy", names) == "memory");
  CHECK(Nearest("mem", names) == "memory");
  CHECK(Nearest("Memory", names) == "memory");
  CHECK(Nearest("sparse_random", names) == "sparse-random");
  CHECK(Nearest("nul", names) == "null");
  CHECK(Nearest("s3", names) == "S3");
  CHECK(Nearest("disk", names) == "");
  CHECK(Nearest("x", names) == "");
  CHECK(Nearest("", names) == "");
  CHECK(Nearest(std::string(1000, 'm'), names) == "");
  CHECK(DidYouMean("reqests", std::vector<std::string_view>{"requests"}, "--") ==
        ", did you mean `--requests`?");
}

TEST_CASE("help") {
  CHECK(ParamHelp(Table(), ParamStyle::kKeyValue) ==
        R"(  [size=]SIZE               size of the disk (required)
  allocator=TEXT            how memory is got (default sparse)
  header=TEXT               header to send (may be repeated)
  depth=N                   levels (1 to 100)
  port=N                    TCP port (default 10809)
  delay=TIME                time to wait (at most 60s; default 2s)
  fast=BOOL                 hurry (default false)
  cache=writeback|unsafe    mode (default writeback)
  modes=writeback|unsafe    modes (may be repeated)
  access-key=TEXT           key (also access_key)
  password=SECRET           password (- asks, +FILE or -FD reads it)
  level=low|high            how much (default low)
  block-size=SIZE           block (4K to 64M; default 64K)
)");
}

struct Few {
  Size size{1024};
  bool fast = true;
  std::vector<std::string> header;
  std::string level = "low";
};

const ParamTable<Few>& FewRows() {
  static const auto& table = *new ParamTable<Few>(
      ParamTable<Few>()
          .Param("size", &Few::size, {.help = "a \"size\"", .letter = 's', .min = "1"})
          .Param("fast", &Few::fast, {.help = "hurry"})
          .Param("header", &Few::header, {.help = "to send", .aliases = {"h2"}})
          .Param("level", &Few::level, {.help = "how much", .choices = {"low", "high"}}));
  return table;
}

TEST_CASE("the other texts made from rows") {
  CHECK(
      ParamJson(FewRows()) ==
      R"([{"name":"size","type":"size","help":"a \"size\"","letter":"s","default":"1K","min":"1"},)"
      R"({"name":"fast","type":"boolean","help":"hurry","default":"true"},)"
      R"({"name":"header","type":"text","help":"to send","repeatable":true,"aliases":["h2"]},)"
      R"({"name":"level","type":"text","help":"how much","default":"low","values":["low","high"]}])");
  CHECK(ParamCompletions(FewRows(), ParamStyle::kKeyValue) ==
        std::vector<std::string>{"size=\ta \"size\"", "fast=\thurry", "fast=true\thurry",
                                 "fast=false\thurry", "header=\tto send", "level=\thow much",
                                 "level=low\thow much", "level=high\thow much"});
  CHECK(ParamCompletions(FewRows(), ParamStyle::kOption) ==
        std::vector<std::string>{"-s\ta \"size\"", "--size=\ta \"size\"", "--no-fast\tdo not hurry",
                                 "--header=\tto send", "--level=\thow much",
                                 "--level=low\thow much", "--level=high\thow much"});
  CHECK(ParamDictionary(FewRows()) ==
        "\"size=\"\n\"fast=\"\n\"true\"\n\"false\"\n\"header=\"\n\"h2=\"\n\"level="
        "\"\n\"low\"\n\"high\"\n");
  CHECK(ParamUsage(FewRows()) == "[size=SIZE] [fast=BOOL] [header=TEXT ...] [level=low|high]");
  CHECK(ParamMan(FewRows(), ParamStyle::kOption) ==
        ".TP\n.B \\-s, \\-\\-size=SIZE\na \"size\" (at least 1; default 1K)\n"
        ".TP\n.B \\-\\-no\\-fast\ndo not hurry\n"
        ".TP\n.B \\-\\-header=TEXT\nto send (may be repeated; also \\-\\-h2)\n"
        ".TP\n.B \\-\\-level=low|high\nhow much (default low)\n");
}

TEST_CASE("quoting") {
  CHECK(JsonQuote("a\"b\\c\n\t\x7f\xc3\xa4") == "\"a\\\"b\\\\c\\n\\u0009\\u007f\xc3\xa4\"");
  CHECK(JsonQuote("\xff\xc0\xaf\xed\xa0\x80x") ==
        "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdx\"");
  CHECK(JsonQuote("\xf0\x9f\x92\xbe\xe2\x82") == "\"\xf0\x9f\x92\xbe\xef\xbf\xbd\xef\xbf\xbd\"");
  CHECK(ManQuote(".a\n'b\\c-d") == "\\&.a\n\\&'b\\ec\\-d");
}

TEST_CASE("wrapping") {
  CHECK(WrapText("one two three", 2, 10) == "  one two\n  three\n");
  CHECK(WrapText("a\n\n  kept  as is, however long\nb", 0, 10) ==
        "a\n\n  kept  as is, however long\nb\n");
  CHECK(WrapText("unbreakably-long", 4, 10) == "    unbreakably-long\n");
}

}  // namespace
}  // namespace blk
