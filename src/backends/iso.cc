// iso: directories as a CD image, made once by xorriso, genisoimage or mkisofs.
// Parallel-safe: the image is a file that nobody changes.
#include <fcntl.h>

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "src/backends/file/disk_file.h"
#include "src/backends/made_disk.h"
#include "src/backends/temporary_folder.h"
#include "src/core/loop.h"
#include "src/core/process.h"
#include "src/core/spec.h"

namespace blk {
namespace {

struct Config {
  std::vector<std::string> dir;
  std::string params;
  std::string prog;
};

// `text` as one word of a shell.
std::string Quoted(std::string_view text) {
  return absl::StrCat("'", absl::StrReplaceAll(text, {{"'", "'\\''"}}), "'");
}

absl::StatusOr<std::string> FindMaker() {
  const char* path = std::getenv("PATH");
  for (const char* name : {"xorriso", "genisoimage", "mkisofs"}) {
    if (FindProgram(name, path ? path : "/usr/bin:/bin").ok()) return name;
  }
  return absl::NotFoundError(
      "there is no program that makes such images: install xorriso, genisoimage or mkisofs, or "
      "name one with prog=");
}

class IsoLayer final : public Layer {
 public:
  explicit IsoLayer(Config config) : config_(std::move(config)) {}

  absl::Status Ready() override {
    std::string program = config_.prog;
    if (program.empty()) {
      BLK_ASSIGN_OR_RETURN(program, FindMaker());
    }
    TemporaryFolder folder;
    BLK_RETURN_IF_ERROR(folder.Make(TemporaryFolder::LargeParent()));
    const std::string path = folder.path() + "/iso";
    // xorriso is three programs in one, and wants to be told which.
    const bool xorriso = program.substr(program.rfind('/') + 1) == "xorriso";
    std::string script = absl::StrCat(Quoted(program), xorriso ? " -as mkisofs" : "", " -quiet ",
                                      config_.params, " -o ", Quoted(path));
    for (const std::string& directory : config_.dir)
      absl::StrAppend(&script, " ", Quoted(directory));
    BLK_RETURN_IF_ERROR(RunApart(RunRecipe(std::move(script), program, {})));
    // The name goes with the folder now, the file itself with the device.
    BLK_ASSIGN_OR_RETURN(DiskFilePtr file,
                         OpenDiskFile(AT_FDCWD, path, /*read_only=*/true, FileOptions()));
    BLK_ASSIGN_OR_RETURN(device_, MakeFileDevice(std::move(file), /*read_only=*/true));
    return absl::OkStatus();
  }

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs) override {
    return absl::StatusOr<DevicePtr>(device_);
  }

 private:
  const Config config_;
  DevicePtr device_;
};

}  // namespace

const Spec& IsoSpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<Config>("iso", "folders as a CD image")
          .Description(
              "The content of the folders, merged, as an ISO 9660 image, read-only. It is made "
              "when blk starts, in $TMPDIR (else /var/tmp), by xorriso, genisoimage or mkisofs. "
              "`params` are words for that program, read by a shell: '-JrT' keeps long names, "
              "owners and links; without such a word names are cut.")
          .Param("dir", &Config::dir,
                 {.help = "a folder whose content is in the image",
                  .required = true,
                  .magic = true,
                  .word = "DIR",
                  .path = PathUse::kRead})
          .Param("params", &Config::params, {.help = "more words for the program", .word = "WORDS"})
          .Param("prog", &Config::prog, {.help = "the program", .word = "PROGRAM"})
          .PrintedExample("iso(dir=./files,params=-JrT)", "a folder with all its names")
          .Needs(Need::Kind::kProgram, "xorriso")
          .Make([](Config config) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<IsoLayer>(std::move(config));
          }));
  return spec;
}

}  // namespace blk
