// example2: a file, read-only, as nbdkit's second example has it. Parallel-safe: the device of the
// file is.
#include <fcntl.h>

#include <utility>

#include "src/backends/file/disk_file.h"
#include "src/backends/one_device_layer.h"
#include "src/core/spec.h"
#include "src/core/trace.h"

namespace blk {
namespace {

struct Config {
  std::string file;
};

class ExampleLayer final : public Layer {
 public:
  explicit ExampleLayer(std::string path) : path_(std::move(path)) {}

  absl::Status Ready() override {
    BLK_ASSIGN_OR_RETURN(DiskFilePtr file,
                         OpenDiskFile(AT_FDCWD, path_, /*read_only=*/true, FileOptions()));
    BLK_ASSIGN_OR_RETURN(device_, MakeFileDevice(std::move(file), /*read_only=*/true));
    return absl::OkStatus();
  }
  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs) override {
    if (DebugFlag("example2.extra")) LogDebug("extra debugging: ", device_->size(), " bytes");
    return absl::StatusOr<DevicePtr>(device_);
  }

 private:
  const std::string path_;
  DevicePtr device_;
};

}  // namespace

const Spec& Example2Spec() {
  static const Spec& spec =
      *new Spec(BackendSpec<Config>("example2", "a small backend: a file, read-only")
                    .Param("file", &Config::file,
                           {.help = "the file",
                            .required = true,
                            .magic = true,
                            .word = "PATH",
                            .path = PathUse::kRead})
                    .PrintedExample("example2:./disk.img", "a file that clients cannot change")
                    .Make([](Config config) -> absl::StatusOr<LayerPtr> {
                      return std::make_shared<ExampleLayer>(std::move(config.file));
                    }));
  return spec;
}

}  // namespace blk
