#pragma once
// A directory of a test's own, gone with everything in it when the test ends. One thread.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <string_view>

namespace blk {

class TemporaryDirectory {
 public:
  explicit TemporaryDirectory(const std::string& parent = "/tmp") : path_(parent + "/blk-XXXXXX") {
    REQUIRE(mkdtemp(path_.data()) != nullptr);
  }
  TemporaryDirectory(const TemporaryDirectory&) = delete;
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::string& path() const { return path_; }
  std::string operator/(std::string_view name) const { return path_ + "/" + std::string(name); }

  // Makes a file and returns its path.
  std::string Write(std::string_view name, std::string_view content) const {
    std::string path = *this / name;
    std::ofstream(path, std::ios::binary) << content;
    return path;
  }
  // A file of `bytes`, all of it one hole.
  std::string WriteSparse(std::string_view name, uint64_t bytes) const {
    std::string path = Write(name, "");
    REQUIRE(truncate(path.c_str(), static_cast<off_t>(bytes)) == 0);
    return path;
  }

 private:
  std::string path_;
};

inline std::string ReadWholeFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

inline uint64_t AllocatedBytes(const std::string& path) {
  struct stat info;
  REQUIRE(stat(path.c_str(), &info) == 0);
  return static_cast<uint64_t>(info.st_blocks) * 512;
}

}  // namespace blk
