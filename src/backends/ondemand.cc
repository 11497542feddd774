// ondemand: disks in a folder, one for each export name, made when they are first asked for.
// Parallel-safe: a disk has one client at a time, who holds a lock on its file.
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <string>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/escaping.h"
#include "src/backends/file/disk_file.h"
#include "src/backends/made_disk.h"
#include "src/core/loop.h"
#include "src/core/spec.h"
#include "src/core/sync.h"

namespace blk {
namespace {

constexpr int64_t kLockLookNs = 50'000'000;

struct Config : DiskRecipe {
  std::string dir;
  bool wait = false;
  bool share = false;
};

// The file of an export name, which a client chose.
absl::StatusOr<std::string> FileNameOf(const std::string& export_name) {
  if (export_name.empty()) return "default";
  const bool bad_byte = std::ranges::any_of(export_name, [](unsigned char byte) {
    return byte < ' ' || byte == '.' || byte == '/' || byte == ':';
  });
  if (!bad_byte && export_name.size() <= NAME_MAX) return export_name;
  return ErrnoErrorAsIs(EINVAL,
                        absl::StrCat("ondemand: the export name \"", absl::CHexEscape(export_name),
                                     "\" is no fit name of a file: at most ", NAME_MAX,
                                     " bytes, without `.`, `/`, `:` and control characters"));
}

class OndemandLayer final : public Layer {
 public:
  explicit OndemandLayer(Config config) : config_(std::move(config)) {}

  // The server may go to the background, where paths begin at the root.
  absl::Status Ready() override {
    char* absolute = realpath(config_.dir.c_str(), nullptr);
    if (absolute == nullptr) return ErrnoError(errno, config_.dir);
    config_.dir = absolute;
    std::free(absolute);
    struct stat facts;
    if (stat(config_.dir.c_str(), &facts) < 0) return ErrnoError(errno, config_.dir);
    return S_ISDIR(facts.st_mode) ? absl::OkStatus() : ErrnoError(ENOTDIR, config_.dir);
  }

  Task<absl::StatusOr<ExportList>> ListExports(const OpenArgs&) override {
    ExportList list;
    DIR* folder = opendir(config_.dir.c_str());
    if (folder == nullptr) co_return ErrnoError(errno, config_.dir);
    absl::Cleanup close = [folder] { closedir(folder); };
    while (dirent* entry = readdir(folder)) {
      if (entry->d_name[0] != '.') list.exports.push_back({entry->d_name, ""});
    }
    std::ranges::sort(list.exports, {}, &ExportEntry::name);
    co_return list;
  }

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    BLK_CO_ASSIGN_OR_RETURN(std::string name, FileNameOf(args.export_name));
    const std::string path = absl::StrCat(config_.dir, "/", name);
    BLK_CO_RETURN_IF_ERROR(co_await MakeUnlessThere(path));
    absl::StatusOr<DiskFilePtr> file = DiskFilePtr();
    co_await Loop::Current()->Offload(
        [&] { file = OpenDiskFile(AT_FDCWD, path, args.read_only, FileOptions()); });
    if (!file.ok()) co_return file.status();
    if (!config_.share) BLK_CO_RETURN_IF_ERROR(co_await Lock(**file, name));
    BLK_CO_ASSIGN_OR_RETURN(DevicePtr device, MakeFileDevice(*std::move(file), args.read_only));
    if (config_.share) co_return device;
    co_return ForOneConnection(std::move(device));
  }

 private:
  Task<absl::Status> MakeUnlessThere(const std::string& path) {
    // One at a time, so that nobody gets a disk that is half made.
    MutexGuard guard = co_await making_.Lock();
    if (access(path.c_str(), F_OK) == 0) co_return absl::OkStatus();
    absl::Status made = co_await MakeDisk(config_, path);
    if (!made.ok()) unlink(path.c_str());
    co_return made;
  }

  // The lock goes with the descriptor.
  Task<absl::Status> Lock(const DiskFile& file, const std::string& name) const {
    Loop* loop = Loop::Current();
    const int64_t until_ns =
        config_.wait ? loop->NowNs() + int64_t{limits::kHandshakeSecondsMax} * 1'000'000'000 : 0;
    for (;;) {
      if (flock(file.io.fd(), LOCK_EX | LOCK_NB) == 0) co_return absl::OkStatus();
      if (errno != EWOULDBLOCK && errno != EINTR)
        co_return ErrnoError(errno, absl::StrCat("ondemand: ", name, ": cannot lock it"));
      if (loop->NowNs() >= until_ns) break;
      BLK_CO_RETURN_IF_ERROR(co_await loop->Sleep(kLockLookNs));
    }
    co_return ErrnoErrorAsIs(
        EBUSY, absl::StrCat("ondemand: ", name, ": filesystem is locked by another client"));
  }

  Config config_;
  Mutex making_;
};

}  // namespace

const Spec& OndemandSpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<Config>("ondemand", "disks made when they are first asked for, and kept")
          .Description(
              "Each export name is a file in `dir`. The first client that asks for a name gets a "
              "new disk, formatted with mkfs or made by `command` as the tmpdisk backend has it; "
              "later ones find it as it was left. A disk has one client at a time: another is "
              "refused, or with wait=true waits up to a minute. The empty name is the file "
              "`default`.")
          .Param("size", &Config::size,
                 {.help = "size of new disks", .required = true, .magic = true})
          .Param("dir", &Config::dir,
                 {.help = "folder of the disks",
                  .required = true,
                  .word = "DIR",
                  .path = PathUse::kReadWrite})
          .Param("wait", &Config::wait, {.help = "wait for a disk that another client has"})
          .Param("share", &Config::share, {.help = "a disk may have several clients at a time"})
          .Param("type", &Config::type, {.help = "file system", .word = "FS"})
          .Param("label", &Config::label, {.help = "label of the file system"})
          .Param("command", &Config::command,
                 {.help = "shell script that makes $disk", .word = "SCRIPT"})
          .AnyKey(&Config::variables, "a shell variable of the command")
          .PrintedExample("ondemand(size=1G,dir=/var/lib/disks)", "an ext4 for each export name")
          .NeedsOf([](const Config& config) {
            return std::vector<Need>{{Need::Kind::kTemporaryFile, config.dir}};
          })
          .Needs(Need::Kind::kProgram, "mkfs")
          .Make([](Config config) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<OndemandLayer>(std::move(config));
          }));
  return spec;
}

}  // namespace blk
