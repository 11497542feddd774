// tmpdisk: a fresh disk for each client, made by mkfs or a command, gone when the client leaves.
// Parallel-safe: each connection has a file of its own.
#include <fcntl.h>
#include <unistd.h>

#include <utility>

#include "src/backends/file/disk_file.h"
#include "src/backends/made_disk.h"
#include "src/backends/temporary_folder.h"
#include "src/core/loop.h"
#include "src/core/spec.h"
#include "src/core/trace.h"

namespace blk {
namespace {

absl::StatusOr<DevicePtr> OpenNow(const std::string& path, bool read_only) {
  BLK_ASSIGN_OR_RETURN(DiskFilePtr file, OpenDiskFile(AT_FDCWD, path, read_only, FileOptions()));
  return MakeFileDevice(std::move(file), read_only);
}

class TmpdiskLayer final : public Layer {
 public:
  explicit TmpdiskLayer(DiskRecipe recipe) : recipe_(std::move(recipe)) {}

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    TemporaryFolder folder;
    BLK_CO_RETURN_IF_ERROR(folder.Make(TemporaryFolder::LargeParent()));
    const std::string path = folder.path() + "/disk";
    BLK_CO_RETURN_IF_ERROR(co_await MakeDisk(recipe_, path));
    // The name goes with the folder now, the file itself when nobody has it open any more.
    absl::StatusOr<DevicePtr> device = DevicePtr();
    co_await Loop::Current()->Offload([&] { device = OpenNow(path, args.read_only); });
    if (!device.ok()) co_return device.status();
    co_return ForOneConnection(*std::move(device));
  }

 private:
  const DiskRecipe recipe_;
};

}  // namespace

const Spec& TmpdiskSpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<DiskRecipe>("tmpdisk", "a fresh file system for each client, gone with it")
          .Description(
              "When a client connects, a sparse file in $TMPDIR (else /var/tmp) is formatted with "
              "mkfs, or made by `command`, a shell script, and served to this client alone; it is "
              "gone when the client leaves. The command finds size (in bytes), type, label and "
              "every other parameter as shell variables, and makes the file $disk; the size of "
              "that file is what is served.")
          .Param("size", &DiskRecipe::size,
                 {.help = "size of the disk", .required = true, .magic = true})
          .Param("type", &DiskRecipe::type, {.help = "file system", .word = "FS"})
          .Param("label", &DiskRecipe::label, {.help = "label of the file system"})
          .Param("command", &DiskRecipe::command,
                 {.help = "shell script that makes $disk", .word = "SCRIPT"})
          .AnyKey(&DiskRecipe::variables, "a shell variable of the command")
          .PrintedExample("tmpdisk(size=1M,command=truncate -s $size \"$disk\")",
                          "an empty disk of its own")
          .PrintedExample("tmpdisk(size=16G,type=xfs,label=scratch)", "an XFS for each client")
          .NeedsOf([](const DiskRecipe&) {
            return std::vector<Need>{{Need::Kind::kTemporaryFile, TemporaryFolder::LargeParent()}};
          })
          .Needs(Need::Kind::kProgram, "mkfs")
          .Make([](DiskRecipe recipe) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<TmpdiskLayer>(std::move(recipe));
          }));
  return spec;
}

}  // namespace blk
