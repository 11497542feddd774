#include "src/core/options.h"

#include <doctest/doctest.h>

#include "absl/strings/str_join.h"
#include "src/core/param_text.h"

namespace blk {
namespace {

struct Options {
  int connections = 4;
  Size request_size{256 * 1024};
  bool foreground = false;
  bool flush = true;
  int verbose = 0;
  std::vector<std::string> filters;
  std::optional<std::string> map;
  std::string socket;
  bool help = false;
};

const ParamTable<Options>& Table() {
  static const auto& table = *new ParamTable<Options>(
      ParamTable<Options>()
          .Param("connections", &Options::connections,
                 {.help = "connections at most", .letter = 'C', .min = "1"})
          .Param("request-size", &Options::request_size, {.help = "bytes in a request"})
          .Param("foreground", &Options::foreground, {.help = "do not fork", .letter = 'f'})
          .Param("flush", &Options::flush, {.help = "flush the target at the end"})
          .Param("filter", &Options::filters, {.help = "put a filter on top", .word = "FILTER"})
          .Param("map", &Options::map,
                 {.help = "print extents",
                  .letter = 'm',
                  .word = "CONTEXT",
                  .if_bare = "base:allocation"})
          .Param("unix", &Options::socket,
                 {.help = "Unix socket", .aliases = {"socket"}, .letter = 'U', .word = "PATH"})
          .Param("help", &Options::help, {.help = "print this", .letter = 'h'}));
  return table;
}

// The words left over joined by spaces, or the complaint.
std::string Parse(std::vector<std::string> args, Options* options, OptionSyntax syntax = {}) {
  absl::StatusOr<std::vector<std::string>> words =
      ParseOptions(Table(), options, "copy", args, syntax);
  return words.ok() ? absl::StrJoin(*words, " ") : std::string(words.status().message());
}
std::string Complaint(std::vector<std::string> args) {
  Options options;
  return Parse(std::move(args), &options);
}

TEST_CASE("options in every spelling") {
  for (std::vector<std::string> args : std::vector<std::vector<std::string>>{{"-C", "8"},
                                                                             {"-C8"},
                                                                             {"--connections=8"},
                                                                             {"--connections", "8"},
                                                                             {"-fC8"},
                                                                             {"-fC", "8"}}) {
    Options options;
    CHECK(Parse(args, &options) == "");
    CHECK(options.connections == 8);
    CHECK(options.foreground == (args[0][1] == 'f'));
  }
}

TEST_CASE("words and options mix, `-` is a word, `--` ends the options") {
  Options options;
  CHECK(Parse({"memory", "-U", "-", "1M", "--filter=log", "--filter", "cow", "-", "--", "-x", "--"},
              &options) == "memory 1M - -x --");
  CHECK(options.socket == "-");
  CHECK(options.filters == std::vector<std::string>{"log", "cow"});
}

TEST_CASE("switches and their opposites") {
  Options options;
  CHECK(Parse({"--no-flush", "-f", "-f", "--foreground=yes"}, &options) ==
        "copy: option `--foreground` is given twice: \"true\", then \"yes\"");
  CHECK_FALSE(options.flush);
  CHECK(options.foreground);
  Options others;
  CHECK(Parse({"--flush=off", "--foreground=no"}, &others) == "");
  CHECK_FALSE(others.flush);
  CHECK_FALSE(others.foreground);
}

TEST_CASE("a value that may be left out") {
  Options options;
  CHECK(Parse({"--map", "x"}, &options) == "x");
  CHECK(options.map == "base:allocation");
  Options given;
  CHECK(Parse({"--map=qemu:dirty-bitmap:b", "x"}, &given) == "x");
  CHECK(given.map == "qemu:dirty-bitmap:b");
  Options letters;
  CHECK(Parse({"-mf"}, &letters) == "");
  CHECK(letters.map == "base:allocation");
  CHECK(letters.foreground);
}

TEST_CASE("stop at the first word, or keep brackets whole") {
  Options options;
  CHECK(Parse({"-f", "copy", "-C", "x"}, &options, {.stop_at_word = true}) == "copy -C x");
  CHECK(options.foreground);
  Options brackets;
  CHECK(Parse({"[", "qemu-nbd", "-f", "qcow2", "--", "x", "]", "-C", "2", "y"}, &brackets,
              {.brackets = true}) == "[ qemu-nbd -f qcow2 -- x ] y");
  CHECK(brackets.connections == 2);
  CHECK_FALSE(brackets.foreground);
  CHECK(Parse({"[", "x"}, &brackets, {.brackets = true}) ==
        "copy: `[` without a word `]` after it");
}

TEST_CASE("complaints name the tool and the option") {
  CHECK(Complaint({"--conections=2"}) ==
        "copy: unknown option `--conections`, did you mean `--connections`?");
  CHECK(Complaint({"--no-fllush"}) ==
        "copy: unknown option `--no-fllush`, did you mean `--no-flush`?");
  // The letters of `no-` do not make a word of others near.
  CHECK(Complaint({"--no-flxyz"}) == "copy: unknown option `--no-flxyz`; -h lists them");
  CHECK(Complaint({"--colour"}) == "copy: unknown option `--colour`; -h lists them");
  CHECK(Complaint({"-fz"}) == "copy: unknown option `-z`; -h lists them");
  CHECK(Complaint({"-C"}) == "copy: option `-C` needs a value, N");
  CHECK(Complaint({"--connections"}) == "copy: option `--connections` needs a value, N");
  CHECK(Complaint({"--connections="}) ==
        "copy: option `--connections` needs a value, --connections=N");
  CHECK(Complaint({"-C", "0"}) == "copy: --connections: 0 is out of range: give at least 1");
  CHECK(Complaint({"-Cx"}) ==
        "copy: --connections: \"x\" is not a number: give a whole number, like 42, 0x2a or 052");
  CHECK(Complaint({"-C1", "--connections=2"}) ==
        "copy: option `--connections` is given twice: \"1\", then \"2\"");
  CHECK(Complaint({"--no-flush=x"}) == "copy: option `--no-flush` takes no value");
  CHECK(Complaint({"--no-unix"}) == "copy: unknown option `--no-unix`, did you mean `--unix`?");
  CHECK(Complaint({"--foreground=maybe"}) ==
        "copy: --foreground: \"maybe\" is not a switch: give true, yes, on or 1, or false, no, off "
        "or 0");
  CHECK(Complaint({"--"}) == "");
}

TEST_CASE("help of options") {
  CHECK(ParamHelp(Table(), ParamStyle::kOption) ==
        R"(  -C, --connections=N       connections at most (at least 1; default 4)
      --request-size=SIZE   bytes in a request (default 256K)
  -f, --foreground          do not fork
      --no-flush            do not flush the target at the end
      --filter=FILTER       put a filter on top (may be repeated)
  -m, --map[=CONTEXT]       print extents
  -U, --unix=PATH           Unix socket (also --socket)
  -h, --help                print this
)");
}

}  // namespace
}  // namespace blk
