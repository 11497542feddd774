#include <doctest/doctest.h>

#include <cerrno>

#include "src/backends/floppy/fat_volume.h"
#include "src/backends/floppy/names.h"

namespace blk::fat {
namespace {

std::string Short(std::string_view name, std::set<std::string>* taken, bool* exact) {
  return ShortName(name, taken, exact);
}

TEST_CASE("FAT names: short ones that say all, and those that do not") {
  std::set<std::string> taken;
  bool exact = false;
  CHECK(Short("README.TXT", &taken, &exact) == "README  TXT");
  CHECK(exact);
  CHECK(Short("readme.txt", &taken, &exact) == "README~1TXT");
  CHECK_FALSE(exact);
  CHECK(Short("A Long Name.text", &taken, &exact) == "ALONGN~1TEX");
  CHECK(Short("A Long Names.text", &taken, &exact) == "ALONGN~2TEX");
  CHECK(Short(".profile", &taken, &exact) == "PROFIL~1   ");
  CHECK(Short("NODOT", &taken, &exact) == "NODOT      ");
  CHECK(exact);
  CHECK(Short("a+b", &taken, &exact) == "A_B~1      ");
  CHECK(Short("\xc3\xb6", &taken, &exact) == "_~1        ");
  CHECK(Short("...", &taken, &exact) == "_~2        ");
}

TEST_CASE("FAT names: a thousand that are alike") {
  std::set<std::string> taken;
  bool exact = false;
  std::string last;
  for (int i = 0; i < 1000; ++i) last = Short("alike and long", &taken, &exact);
  CHECK(taken.size() == 1000);
  CHECK(last == "ALI~1000   ");
}

TEST_CASE("FAT names: long ones in UTF-16") {
  CHECK(LongName("plain") == u"plain");
  CHECK(LongName("Gr\xc3\xb6\xc3\x9f"
                 "e") == u"Gr\u00f6\u00dfe");
  CHECK(LongName("\xf0\x9f\x92\xbe") == u"\U0001F4BE");
  CHECK(LongName("a:b?") == u"a_b_");
  CHECK(LongName("bad\xff\xc3") == u"bad__");
  CHECK(LongName("\xc0\xaf") == u"__");       // longer than it need be
  CHECK(LongName("\xed\xa0\x80") == u"___");  // half of a pair
  CHECK(LongName("dot.") == u"dot_");
  CHECK(LongName(std::string(300, 'x')).size() == 255);
}

TEST_CASE("FAT names: the checksum of the specification's own formula") {
  CHECK(ShortNameChecksum("README  TXT") == 0x73);
  CHECK(ShortNameChecksum(std::string(11, '\0')) == 0);
}

Node Root(std::vector<Node> children = {}) {
  Node root{.name = "", .is_directory = true};
  root.children = std::move(children);
  return root;
}
Node File(std::string name, uint64_t size) {
  Node file{.name = std::move(name)};
  file.path = "/none/" + file.name;
  file.size = size;
  return file;
}

TEST_CASE("FAT volumes: as large as asked, whatever the type") {
  for (uint64_t bytes : {64ull << 10, 1440ull << 10, 5ull << 20, 33ull << 20, 100ull << 20,
                         3ull << 30, 100ull << 30, 1ull << 40}) {
    CAPTURE(bytes);
    auto volume = MakeVolume(Root({File("file", 1000)}), {.label = "X", .bytes = bytes});
    REQUIRE(volume.ok());
    CHECK(volume->regions.size() == bytes);
    const Type expected = bytes < (9 << 20)    ? volume->type
                          : bytes < (33 << 20) ? Type::kFat16
                                               : volume->type;
    CHECK(volume->type == expected);
  }
  CHECK(MakeVolume(Root(), {.label = "X", .bytes = 1440 << 10}).value().type == Type::kFat12);
  CHECK(MakeVolume(Root(), {.label = "X", .bytes = 20 << 20}).value().type == Type::kFat16);
  CHECK(MakeVolume(Root(), {.label = "X", .bytes = 1 << 30}).value().type == Type::kFat32);
  CHECK(MakeVolume(Root(), {.label = "X"}).value().type == Type::kFat32);
}

TEST_CASE("FAT volumes: what does not fit") {
  auto error = [](Node root, VolumeOptions options) {
    return ErrnoOf(MakeVolume(std::move(root), options).status());
  };
  CHECK(error(Root({File("a", 1ull << 32)}), {.label = "X"}) == EFBIG);
  CHECK(error(Root({File("a", 2 << 20)}), {.label = "X", .bytes = 1 << 20}) == ENOSPC);
  CHECK(error(Root(), {.label = "X", .bytes = 512}) == ENOSPC);
  CHECK(error(Root(), {.label = "X", .type = Type::kFat32, .bytes = 10 << 20}) == ENOSPC);
  CHECK(error(Root({File("Same", 1), File("sAME", 1)}), {.label = "X"}) == EEXIST);
}

}  // namespace
}  // namespace blk::fat
