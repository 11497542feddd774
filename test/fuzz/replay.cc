// Runs one fuzz target over its corpus as a plain test: every file, and every truncation of it.
// FUZZ_TARGET is the target's name, see BUILD.bazel.
#include <doctest/doctest.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

TEST_CASE("the fuzz target " FUZZ_TARGET " accepts its corpus") {
  constexpr size_t kTruncationsMax = 4096;  // of a file; the longest inputs are cut in steps
  std::filesystem::path folder = "test/fuzz/corpus/" FUZZ_TARGET;
  REQUIRE_MESSAGE(std::filesystem::is_directory(folder), "no corpus; add one good input at least");
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    std::ifstream stream(entry.path(), std::ios::binary);
    const std::vector<char> input((std::istreambuf_iterator<char>(stream)), {});
    const size_t step = input.size() / kTruncationsMax + 1;
    for (size_t cut = 0; cut <= input.size(); cut += step) {
      // A copy of exactly this size, so that asan sees one byte read too far.
      const std::vector<uint8_t> bytes(input.begin(), input.end() - cut);
      INFO(entry.path().string() << " without its last " << cut << " bytes");
      CHECK(LLVMFuzzerTestOneInput(bytes.data(), bytes.size()) == 0);
    }
    ++files;
  }
  CHECK(files > 0);
}
