// file: serves a regular file or a block device, or those in a directory by export name.
//
// Parallel-safe: devices share one open file, which has no state but hints (file/disk_file.h). A
// single file is opened once, before anything starts, so that a change of directory or a sandbox
// cannot break it; its size is taken anew for each connection.
#include "src/backends/file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>

#include "src/backends/file/disk_file.h"
#include "src/core/loop.h"
#include "src/core/spec.h"

namespace blk {
namespace {

struct Config {
  std::optional<std::string> file;
  std::optional<int> fd;
  std::optional<std::string> dir;
  std::optional<int> dirfd;
  bool keep_in_page_cache = true;
  int fadvise = POSIX_FADV_NORMAL;

  FileOptions options() const { return {fadvise, keep_in_page_cache}; }
};

// A descriptor of our own for one that was handed to the process, which programs that we start do
// not get any more.
absl::StatusOr<int> TakeDescriptor(int fd, std::string_view key) {
  if (fd <= STDERR_FILENO)
    return absl::InvalidArgumentError(absl::StrCat(
        key, "=", fd, ": 0, 1 and 2 are the standard streams; hand over a higher descriptor"));
  int own = fcntl(fd, F_DUPFD_CLOEXEC, 0);
  if (own == -1)
    return ErrnoError(errno, absl::StrCat(key, "=", fd,
                                          ": cannot use this descriptor (whoever starts blk must "
                                          "leave it open)"));
  (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
  return own;
}

class FileLayer final : public Layer {
 public:
  explicit FileLayer(Config config) : config_(std::move(config)) {}

  absl::Status Ready() override {
    if (config_.file) {
      BLK_ASSIGN_OR_RETURN(
          file_, OpenDiskFile(AT_FDCWD, *config_.file, /*read_only=*/false, config_.options()));
      return absl::OkStatus();
    }
    BLK_ASSIGN_OR_RETURN(int fd, TakeDescriptor(*config_.fd, "fd"));
    BLK_ASSIGN_OR_RETURN(
        file_, AdoptDiskFile(fd, absl::StrCat("descriptor ", *config_.fd), config_.options()));
    return absl::OkStatus();
  }
  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    return MakeFileDevice(file_, args.read_only, args.writes_behind);
  }

 private:
  Config config_;
  DiskFilePtr file_;
};

// The exports are the files directly inside, also through symbolic links, as whoever fills the
// directory wants it.
class DirectoryLayer final : public Layer {
 public:
  explicit DirectoryLayer(Config config) : config_(std::move(config)) {}
  ~DirectoryLayer() override {
    if (fd_ != -1) close(fd_);
  }

  absl::Status Ready() override {
    if (config_.dir) {
      fd_ = open(config_.dir->c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
      if (fd_ != -1) return absl::OkStatus();
      int error = errno;
      return ErrnoError(error, absl::StrCat("cannot open the directory ", *config_.dir,
                                            error == ENOTDIR ? " (for one file use file=)" : ""));
    }
    BLK_ASSIGN_OR_RETURN(fd_, TakeDescriptor(*config_.dirfd, "dirfd"));
    struct stat info;
    if (fstat(fd_, &info) != 0 || !S_ISDIR(info.st_mode))
      return ErrnoErrorAsIs(ENOTDIR, absl::StrCat("dirfd=", *config_.dirfd,
                                                  " is not a directory: for a file use fd="));
    return absl::OkStatus();
  }

  Task<absl::StatusOr<ExportList>> ListExports(const OpenArgs&) override {
    absl::StatusOr<ExportList> list{ExportList{}};
    co_await Loop::Current()->Offload([&] { list = List(); });
    co_return list;
  }

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    BLK_CO_RETURN_IF_ERROR(CheckName(args.export_name));
    absl::StatusOr<DevicePtr> device = nullptr;
    co_await Loop::Current()->Offload([&] { device = OpenFile(args.export_name, args.read_only); });
    co_return device;
  }

 private:
  static absl::Status CheckName(const std::string& name) {
    if (name.empty())
      return ErrnoErrorAsIs(ENOENT,
                            "this server has a directory of exports and no default one: ask for a "
                            "file by its name as the export name");
    if (name == "." || name == ".." || name.find('/') != name.npos || name.find('\0') != name.npos)
      return ErrnoErrorAsIs(ENOENT,
                            "an export here is the name of a file in the directory, "
                            "without \"/\"");
    return absl::OkStatus();
  }

  absl::StatusOr<DevicePtr> OpenFile(const std::string& name, bool read_only) {
    BLK_ASSIGN_OR_RETURN(DiskFilePtr file, OpenDiskFile(fd_, name, read_only, config_.options()));
    return MakeFileDevice(std::move(file), read_only);
  }

  absl::StatusOr<ExportList> List() {
    // Opened again, for a position of its own.
    int fd = openat(fd_, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR* directory = fd == -1 ? nullptr : fdopendir(fd);
    if (directory == nullptr) {
      int error = errno;
      if (fd != -1) close(fd);
      return ErrnoError(error, "cannot list the directory of exports");
    }
    ExportList list;
    errno = 0;
    while (dirent* entry = readdir(directory)) {
      struct stat info;
      if (fstatat(fd_, entry->d_name, &info, 0) == 0 && IsDiskMode(info.st_mode))
        list.exports.push_back({entry->d_name, ""});
      errno = 0;
    }
    int error = errno;
    closedir(directory);
    if (error) return ErrnoError(error, "cannot list the directory of exports");
    return list;  // in the order of the directory, as nbdkit has it
  }

  Config config_;
  int fd_ = -1;
};

absl::StatusOr<LayerPtr> MakeLayer(Config config) {
  int given = config.file.has_value() + config.fd.has_value() + config.dir.has_value() +
              config.dirfd.has_value();
  if (given != 1)
    return absl::InvalidArgumentError(
        given == 0 ? "file: which file? Give file=PATH, or dir=PATH for a directory of files"
                   : "file: give one of file=, fd=, dir= and dirfd=, not several");
  if (config.file || config.fd) return std::make_shared<FileLayer>(std::move(config));
  return std::make_shared<DirectoryLayer>(std::move(config));
}

// Whether nothing but holes lies in the first `size_bytes`; false when it cannot be known.
bool IsAllHole(int fd, uint64_t size_bytes) {
  off_t data = lseek(fd, 0, SEEK_DATA);
  return data == -1 ? errno == ENXIO : static_cast<uint64_t>(data) >= size_bytes;
}

absl::Status Resize(int fd, const std::string& path, uint64_t size_bytes, bool* reads_as_zeroes) {
  struct stat info;
  if (fstat(fd, &info) != 0) return ErrnoError(errno, absl::StrCat("cannot examine ", path));
  if (S_ISBLK(info.st_mode)) {
    off_t end = lseek(fd, 0, SEEK_END);
    if (end >= 0 && static_cast<uint64_t>(end) >= size_bytes) return absl::OkStatus();
    return ErrnoErrorAsIs(ENOSPC, absl::StrCat(path, " is too small: it has ", end,
                                               " bytes of the ", size_bytes, " that are needed"));
  }
  if (!S_ISREG(info.st_mode))
    return ErrnoErrorAsIs(EINVAL, absl::StrCat(path,
                                               " is neither a regular file nor a block device "
                                               "and cannot hold a disk"));
  if (static_cast<uint64_t>(info.st_size) != size_bytes &&
      ftruncate(fd, static_cast<off_t>(size_bytes)) != 0)
    return ErrnoError(errno,
                      absl::StrCat("cannot give ", path, " a size of ", size_bytes, " bytes"));
  *reads_as_zeroes = IsAllHole(fd, size_bytes);
  return absl::OkStatus();
}

}  // namespace

absl::Status PrepareTargetFile(const std::string& path, uint64_t size_bytes,
                               bool* reads_as_zeroes) {
  bool ignored;
  if (reads_as_zeroes == nullptr) reads_as_zeroes = &ignored;
  *reads_as_zeroes = false;
  // Not O_TRUNC: the path may be the source, under this name or another.
  int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0666);
  if (fd == -1) return ErrnoError(errno, absl::StrCat("cannot open ", path, " for writing"));
  absl::Status status = Resize(fd, path, size_bytes, reads_as_zeroes);
  close(fd);
  return status;
}

const Spec& FileSpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<Config>("file", "a file or block device, or a directory of them")
          .Param("file", &Config::file,
                 {.help = "regular file or block device to serve",
                  .magic = true,
                  .path = PathUse::kReadWrite})
          .Param("fd", &Config::fd, {.help = "the same, as an open descriptor of this number"})
          .Param("dir", &Config::dir,
                 {.help = "serve the files in this directory, by export name",
                  .aliases = {"directory"},
                  .path = PathUse::kReadWrite})
          .Param("dirfd", &Config::dirfd, {.help = "the same, as an open descriptor"})
          .Param("cache", &Config::keep_in_page_cache, {{"default", true}, {"none", false}},
                 {.help = "none: leave nothing in the system's page cache"})
          .Param("fadvise", &Config::fadvise,
                 {{"normal", POSIX_FADV_NORMAL},
                  {"random", POSIX_FADV_RANDOM},
                  {"sequential", POSIX_FADV_SEQUENTIAL}},
                 {.help = "how it will be read, which sets the kernel's read-ahead"})
          .Description(
              "Holes are told to clients, and trims and zeroes make holes where the file system "
              "can. A file that may not be written is served read-only. A flush that failed once "
              "fails from then on, because what was lost stays lost.\n\n"
              "With dir=, clients choose a regular file or block device by its name; symbolic "
              "links in the directory are followed, names with \"/\" are refused, and there is no "
              "default export.")
          .PrintedExample("file:disk.img", "a disk image")
          .PrintedExample("file:/dev/sdb(fadvise=sequential,cache=none)",
                          "a whole disk, read once from start to end")
          .PrintedExample("file(dir=/var/images)", "each image as an export")
          .Make(MakeLayer));
  return spec;
}

}  // namespace blk
