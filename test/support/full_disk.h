#pragma once
// FullDisk: while one lives, no file of this process grows beyond a size. The limit on file sizes
// stands for a full disk: EFBIG there, ENOSPC here. One at a time.
#include <doctest/doctest.h>
#include <sys/resource.h>

#include <csignal>

namespace blk::test {

class FullDisk {
 public:
  explicit FullDisk(rlim_t file_bytes_max) {
    std::signal(SIGXFSZ, SIG_IGN);
    REQUIRE(getrlimit(RLIMIT_FSIZE, &before_) == 0);
    const rlimit small{file_bytes_max, before_.rlim_max};
    REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
  }
  FullDisk(const FullDisk&) = delete;
  ~FullDisk() { setrlimit(RLIMIT_FSIZE, &before_); }

 private:
  rlimit before_;
};

}  // namespace blk::test
