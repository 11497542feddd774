// The entry point of blk.
#include <cstdio>
#include <string_view>

int main(int argc, char** argv) {
  if (argc == 2 && std::string_view(argv[1]) == "--version") {
    std::puts("blk 0.1.0");
    return 0;
  }
  std::fputs("usage: blk --version\n", stderr);
  return 2;
}
