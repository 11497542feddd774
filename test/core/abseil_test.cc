// What we ask of the way Abseil is built: standard types at its surface, and live hash tables.
#include <doctest/doctest.h>

#include <optional>
#include <string>
#include <string_view>
#include <type_traits>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/types/optional.h"

namespace {

TEST_CASE("Abseil's vocabulary types are the standard ones") {
  static_assert(std::is_same_v<absl::string_view, std::string_view>);
  static_assert(std::is_same_v<absl::optional<int>, std::optional<int>>);
  absl::StatusOr<std::string> text = absl::StrCat(std::string_view("block "), 7);
  REQUIRE(text.ok());
  CHECK(*text == "block 7");
}

TEST_CASE("a flat_hash_map is looked up by string_view without a copy") {
  absl::flat_hash_map<std::string, int> sizes;
  sizes["memory"] = 1;
  CHECK(sizes.contains(std::string_view("memory")));
  CHECK_FALSE(sizes.contains(std::string_view("file")));
}

}  // namespace
