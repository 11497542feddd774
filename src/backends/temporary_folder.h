#pragma once
// A folder of our own that goes, with everything in it, when this object does. One thread at a
// time.
#include <string>
#include <utility>

#include "absl/status/status.h"

namespace blk {

class TemporaryFolder {
 public:
  TemporaryFolder() = default;
  TemporaryFolder(TemporaryFolder&& other) noexcept : path_(std::exchange(other.path_, "")) {}
  TemporaryFolder& operator=(TemporaryFolder&&) = delete;
  ~TemporaryFolder();

  // Makes it, once, in `parent`; errors say where. Small things belong into /tmp, disks into
  // LargeParent().
  absl::Status Make(const std::string& parent = "/tmp");
  const std::string& path() const { return path_; }  // empty before Make()

  // $TMPDIR, or /var/tmp.
  static std::string LargeParent();

 private:
  std::string path_;
};

}  // namespace blk
