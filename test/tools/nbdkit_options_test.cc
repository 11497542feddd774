#include "src/tools/nbdkit_options.h"

#include <doctest/doctest.h>

#include "src/tools/names.h"
#include "src/tools/nbdkit_plugins.h"

using namespace blk;

namespace {

// The status that the command line ends with, or the options.
std::optional<int> Parse(std::vector<std::string> words, NbdkitOptions* options,
                         bool activated = false) {
  words.insert(words.begin(), "nbdkit");
  return ParseNbdkitOptions(words, activated, options);
}

}  // namespace

TEST_CASE("nbdkit: options and words mix, names are shortened, letters run together") {
  NbdkitOptions options;
  CHECK_FALSE(Parse({"-fvrU", "-", "memory", "--exportn=x", "1G", "-t2", "--", "-a"}, &options));
  CHECK(options.foreground);
  CHECK(options.verbose);
  CHECK(options.read_only);
  CHECK(options.unix_socket == "-");
  CHECK(options.export_name == "x");
  CHECK(options.threads == 2u);
  CHECK(options.words == std::vector<std::string>{"memory", "1G", "-a"});
}

TEST_CASE("nbdkit: the last of -4 and -6, and of -n and -o, counts") {
  NbdkitOptions options;
  CHECK_FALSE(Parse({"-6", "-4", "-n", "-o", "null"}, &options));
  CHECK(options.ipv4_only);
  CHECK_FALSE(options.ipv6_only);
  CHECK(options.oldstyle);
}

TEST_CASE("nbdkit: the long names of newer options, and what is short for both names") {
  for (std::vector<std::string> words :
       {std::vector<std::string>{"--keep-alive", "--no-meta-contexts", "--no-structured-replies"},
        {"--keepalive", "--no-mc", "--no-sr"},
        {"--keep", "--no-m", "--no-s"}}) {
    NbdkitOptions options;
    CHECK_FALSE(Parse(words, &options));
    CHECK(options.keepalive);
    CHECK_FALSE(options.meta_contexts);
    CHECK_FALSE(options.structured_replies);
  }
}

TEST_CASE("nbdkit: --run, -s and --exit-with-parent stay in the foreground") {
  for (std::vector<std::string> words :
       {std::vector<std::string>{"--run", "true"}, {"-s"}, {"--exit-with-parent"}}) {
    NbdkitOptions options;
    CHECK_FALSE(Parse(words, &options));
    CHECK(options.foreground);
  }
}

TEST_CASE("nbdkit: what socket activation excludes") {
  for (std::vector<std::string> words : {std::vector<std::string>{"--run", "true"},
                                         {"-s"},
                                         {"-p", "1"},
                                         {"-i", "::1"},
                                         {"-U", "-"}}) {
    NbdkitOptions options;
    CHECK(Parse(words, &options, /*activated=*/true) == 1);
  }
}

TEST_CASE("nbdkit: values that are refused") {
  for (std::string word :
       {"--log=x", "--tls=x", "-tx", "-t-1", "--mask-handshake=", "--mask-handshake=4294967296",
        "-Dx", "-Dx.y", "-D.y=1", "-Dx.=1", "--nosuch", "-Z"}) {
    CAPTURE(word);
    NbdkitOptions options;
    CHECK(Parse({word, "null"}, &options) == 1);
  }
}

TEST_CASE("nbdkit: numbers") {
  CHECK(ParseNbdkitNumber("n", "0x10", 100) == 16u);
  CHECK(ParseNbdkitNumber("n", "010", 100) == 8u);
  CHECK(ParseNbdkitNumber("n", " 5", 100) == 5u);
  CHECK_FALSE(ParseNbdkitNumber("n", "101", 100));
  CHECK_FALSE(ParseNbdkitNumber("n", " -1", 100));
  CHECK_FALSE(ParseNbdkitNumber("n", "5 ", 100));
  CHECK_FALSE(ParseNbdkitNumber("n", "", 100));
}

TEST_CASE("nbdkit: plugins and filters by path") {
  CHECK(NbdkitPluginName("memory") == "memory");
  CHECK(NbdkitPluginName("/usr/lib/nbdkit/plugins/nbdkit-memory-plugin.so") == "memory");
  CHECK(NbdkitPluginName("./.libs/nbdkit-sparse-random-plugin.so") == "sparse-random");
  CHECK(NbdkitPluginName("./nbdkit-S3-plugin") == "S3");
  CHECK(NbdkitPluginName("./mine.so") == "./mine.so");
  CHECK(NbdkitPluginName("./nbdkit-cow-filter.so") == "./nbdkit-cow-filter.so");
  CHECK(NbdkitFilterName("../filters/cow/.libs/nbdkit-cow-filter.so") == "cow");
  std::vector<std::string> filters = {"error"};
  auto stack = FindNbdkitStack(filters, "null");
  REQUIRE(stack.ok());
  CHECK(NbdkitVersions(*stack) == "nbdkit 1.32.5\nerror-inject 1.32.5\nnull 1.32.5\n");
  CHECK_FALSE(FindNbdkitStack(filters, "nosuch").ok());
  CHECK_FALSE(FindNbdkitStack(filters, "offset").ok());
}

TEST_CASE("a program is found by the last part of its name") {
  CHECK(FindOldName("/usr/bin/nbdkit") == FindOldName("nbdkit"));
  REQUIRE(FindOldName("nbdkit") != nullptr);
  CHECK(FindOldName("blk") == nullptr);
  CHECK(FindOldName("") == nullptr);
  CHECK(FindOldName("nbdkit/") == nullptr);
}
