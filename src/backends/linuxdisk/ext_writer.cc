#include "src/backends/linuxdisk/ext_writer.h"

#include <ext2fs/ext2fs.h>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <map>
#include <vector>

#include "src/core/descriptor.h"
#include "src/core/error.h"

namespace blk {
namespace {

constexpr uint32_t kBlockLog = 2, kBlockBytes = 1024 << kBlockLog;
constexpr uint32_t kInodeBytes = 256;
constexpr uint32_t kJournalBlocks = 1024;  // the least that there may be
constexpr size_t kCopyBytes = 256 << 10;
constexpr int kDepthMax = 256;
constexpr int kLostAndFoundBytes = 16 << 10;

// libext2fs has errors of its own beside those of the system.
absl::Status ExtError(errcode_t error, std::string_view what) {
  if (error == 0) return absl::OkStatus();
  const bool full = error == EXT2_ET_BLOCK_ALLOC_FAIL || error == EXT2_ET_INODE_ALLOC_FAIL ||
                    error == EXT2_ET_TOOSMALL || error == EXT2_ET_FILE_TOO_BIG || error == ENOSPC;
  if (full) return ErrnoErrorAsIs(ENOSPC, absl::StrCat(what, ": it does not fit"));
  if (error > 0 && error < 4096) return ErrnoError(static_cast<int>(error), what);
  return ErrnoErrorAsIs(EIO, absl::StrCat(what, ": ", error_message(error)));
}

#define BLK_EXT(call, what) BLK_RETURN_IF_ERROR(ExtError((call), (what)))

class ExtWriter {
 public:
  ~ExtWriter() {
    if (fs_) ext2fs_free(fs_);
  }

  absl::Status Make(const std::string& image, const ExtOptions& options) {
    ext2_super_block parameters{};
    parameters.s_rev_level = EXT2_DYNAMIC_REV;
    parameters.s_log_block_size = kBlockLog;
    parameters.s_inode_size = kInodeBytes;
    parameters.s_inodes_count = static_cast<uint32_t>(std::min<uint64_t>(options.inodes, 1u << 31));
    ext2fs_blocks_count_set(&parameters, options.bytes / kBlockBytes);
    SetFeatures(&parameters, options.type);
    BLK_EXT(ext2fs_initialize(image.c_str(), EXT2_FLAG_64BITS, &parameters, unix_io_manager, &fs_),
            "making the file system");
    ext2_super_block* super = fs_->super;
    BLK_CHECK(getrandom(super->s_uuid, sizeof super->s_uuid, 0) == sizeof super->s_uuid);
    BLK_CHECK(getrandom(super->s_hash_seed, sizeof super->s_hash_seed, 0) ==
              sizeof super->s_hash_seed);
    super->s_def_hash_version = EXT2_HASH_HALF_MD4;
    super->s_max_mnt_count = static_cast<__u16>(-1);
    super->s_creator_os = EXT2_OS_LINUX;
    super->s_mkfs_time = super->s_wtime;
    super->s_errors = EXT2_ERRORS_DEFAULT;
    super->s_min_extra_isize = super->s_want_extra_isize =
        sizeof(ext2_inode_large) - EXT2_GOOD_OLD_INODE_SIZE;
    std::memcpy(super->s_volume_name, options.label.data(),
                std::min(options.label.size(), sizeof super->s_volume_name));
    BLK_EXT(ext2fs_allocate_tables(fs_), "making the file system");
    BLK_RETURN_IF_ERROR(MakeFirstInodes());
    if (options.type != ExtOptions::Type::kExt2)
      BLK_EXT(ext2fs_add_journal_inode2(fs_, kJournalBlocks, ~blk64_t{0}, 0), "the journal");
    return absl::OkStatus();
  }

  absl::Status Fill(const std::string& folder) {
    struct stat facts;
    if (lstat(folder.c_str(), &facts) < 0) return ErrnoError(errno, folder);
    BLK_RETURN_IF_ERROR(CopyFolder(folder, EXT2_ROOT_INO, 0));
    return SetFacts(EXT2_ROOT_INO, folder, facts);
  }

  absl::Status Close() {
    ext2_filsys closing = fs_;
    fs_ = nullptr;
    return ExtError(ext2fs_close_free(&closing), "writing the file system");
  }

 private:
  static void SetFeatures(ext2_super_block* super, ExtOptions::Type type) {
    ext2fs_set_feature_filetype(super);
    ext2fs_set_feature_sparse_super(super);
    ext2fs_set_feature_large_file(super);
    ext2fs_set_feature_xattr(super);
    ext2fs_set_feature_dir_index(super);
    ext2fs_set_feature_extra_isize(super);
    if (type != ExtOptions::Type::kExt4) return;
    ext2fs_set_feature_extents(super);
    ext2fs_set_feature_huge_file(super);
    ext2fs_set_feature_dir_nlink(super);
    ext2fs_set_feature_64bit(super);
  }

  // The root, lost+found, and the inodes that are kept for special uses.
  absl::Status MakeFirstInodes() {
    BLK_EXT(ext2fs_mkdir(fs_, EXT2_ROOT_INO, EXT2_ROOT_INO, nullptr), "the root");
    ext2fs_inode_alloc_stats2(fs_, EXT2_BAD_INO, +1, 0);
    for (ext2_ino_t i = EXT2_ROOT_INO + 1; i < EXT2_FIRST_INODE(fs_->super); ++i)
      ext2fs_inode_alloc_stats2(fs_, i, +1, 0);
    BLK_EXT(ext2fs_update_bb_inode(fs_, nullptr), "the inode of bad blocks");
    fs_->umask = 077;
    BLK_EXT(ext2fs_mkdir(fs_, EXT2_ROOT_INO, 0, "lost+found"), "lost+found");
    ext2_ino_t lost = 0;
    BLK_EXT(ext2fs_lookup(fs_, EXT2_ROOT_INO, "lost+found", 10, nullptr, &lost), "lost+found");
    for (int bytes = kBlockBytes; bytes < kLostAndFoundBytes; bytes += kBlockBytes)
      BLK_EXT(ext2fs_expand_dir(fs_, lost), "lost+found");
    return absl::OkStatus();
  }

  absl::Status CopyFolder(const std::string& folder, ext2_ino_t parent, int depth) {
    if (depth > kDepthMax)
      return ErrnoErrorAsIs(ELOOP,
                            absl::StrCat(folder, ": more than ", kDepthMax, " folders deep"));
    std::error_code error;
    std::vector<std::string> names;
    for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end;
         entry.increment(error))
      names.push_back(entry->path().filename().string());
    if (error) return ErrnoError(error.value(), folder);
    std::ranges::sort(names);
    for (const std::string& name : names) {
      if (depth == 0 && name == "lost+found") continue;
      BLK_RETURN_IF_ERROR(CopyEntry(absl::StrCat(folder, "/", name), name, parent, depth));
    }
    return absl::OkStatus();
  }

  absl::Status CopyEntry(const std::string& path, const std::string& name, ext2_ino_t parent,
                         int depth) {
    struct stat facts;
    if (lstat(path.c_str(), &facts) < 0) return ErrnoError(errno, path);
    const auto key = std::pair(facts.st_dev, facts.st_ino);
    const bool shared = facts.st_nlink > 1 && !S_ISDIR(facts.st_mode);
    if (auto known = linked_.find(key); shared && known != linked_.end())
      return LinkAgain(known->second, path, name, parent, facts.st_mode);
    ext2_ino_t inode = 0;
    if (S_ISDIR(facts.st_mode)) {
      BLK_RETURN_IF_ERROR(MakeFolder(path, name, parent, &inode));
      BLK_RETURN_IF_ERROR(CopyFolder(path, inode, depth + 1));
    } else {
      BLK_RETURN_IF_ERROR(MakeFile(path, name, parent, facts, &inode));
    }
    if (shared) linked_.emplace(key, inode);
    return SetFacts(inode, path, facts);
  }

  absl::Status MakeFolder(const std::string& path, const std::string& name, ext2_ino_t parent,
                          ext2_ino_t* inode) {
    errcode_t error = ext2fs_mkdir(fs_, parent, 0, name.c_str());
    if (error == EXT2_ET_DIR_NO_SPACE) {
      BLK_EXT(ext2fs_expand_dir(fs_, parent), path);
      error = ext2fs_mkdir(fs_, parent, 0, name.c_str());
    }
    BLK_EXT(error, path);
    return ExtError(
        ext2fs_lookup(fs_, parent, name.c_str(), static_cast<int>(name.size()), nullptr, inode),
        path);
  }

  static int DirectoryType(mode_t mode) {
    if (S_ISREG(mode)) return EXT2_FT_REG_FILE;
    if (S_ISLNK(mode)) return EXT2_FT_SYMLINK;
    if (S_ISCHR(mode)) return EXT2_FT_CHRDEV;
    if (S_ISBLK(mode)) return EXT2_FT_BLKDEV;
    if (S_ISFIFO(mode)) return EXT2_FT_FIFO;
    return EXT2_FT_SOCK;
  }

  absl::Status Link(ext2_ino_t inode, const std::string& path, const std::string& name,
                    ext2_ino_t parent, mode_t mode) {
    errcode_t error = ext2fs_link(fs_, parent, name.c_str(), inode, DirectoryType(mode));
    if (error == EXT2_ET_DIR_NO_SPACE) {
      BLK_EXT(ext2fs_expand_dir(fs_, parent), path);
      error = ext2fs_link(fs_, parent, name.c_str(), inode, DirectoryType(mode));
    }
    return ExtError(error, path);
  }

  absl::Status LinkAgain(ext2_ino_t inode, const std::string& path, const std::string& name,
                         ext2_ino_t parent, mode_t mode) {
    BLK_RETURN_IF_ERROR(Link(inode, path, name, parent, mode));
    ext2_inode facts{};
    BLK_EXT(ext2fs_read_inode(fs_, inode, &facts), path);
    ++facts.i_links_count;
    return ExtError(ext2fs_write_inode(fs_, inode, &facts), path);
  }

  absl::Status MakeFile(const std::string& path, const std::string& name, ext2_ino_t parent,
                        const struct stat& facts, ext2_ino_t* inode) {
    if (S_ISLNK(facts.st_mode)) return MakeSymbolicLink(path, name, parent, inode);
    BLK_EXT(ext2fs_new_inode(fs_, parent, LINUX_S_IFREG | 0755, nullptr, inode), path);
    BLK_RETURN_IF_ERROR(Link(*inode, path, name, parent, facts.st_mode));
    ext2fs_inode_alloc_stats2(fs_, *inode, +1, 0);
    ext2_inode made{};
    made.i_mode = static_cast<__u16>(facts.st_mode);
    made.i_links_count = 1;
    if (S_ISCHR(facts.st_mode) || S_ISBLK(facts.st_mode)) {
      const unsigned major_number = major(facts.st_rdev), minor_number = minor(facts.st_rdev);
      if (major_number < 256 && minor_number < 256) {
        made.i_block[0] = major_number << 8 | minor_number;
      } else {  // the kernel's new numbers of devices
        made.i_block[1] = (minor_number & 0xff) | major_number << 8 | (minor_number & ~0xffu) << 12;
      }
    }
    if (S_ISREG(facts.st_mode)) {
      BLK_EXT(ext2fs_inode_size_set(fs_, &made, facts.st_size), path);
      if (ext2fs_has_feature_extents(fs_->super)) {
        ext2_extent_handle_t handle = nullptr;
        made.i_flags |= EXT4_EXTENTS_FL;
        BLK_EXT(ext2fs_extent_open2(fs_, *inode, &made, &handle), path);
        ext2fs_extent_free(handle);
      }
    }
    BLK_EXT(ext2fs_write_new_inode(fs_, *inode, &made), path);
    return S_ISREG(facts.st_mode) ? CopyContent(path, *inode) : absl::OkStatus();
  }

  absl::Status MakeSymbolicLink(const std::string& path, const std::string& name, ext2_ino_t parent,
                                ext2_ino_t* inode) {
    char target[4096];
    const ssize_t bytes = readlink(path.c_str(), target, sizeof target - 1);
    if (bytes < 0) return ErrnoError(errno, path);
    target[bytes] = '\0';
    errcode_t error = ext2fs_symlink(fs_, parent, 0, name.c_str(), target);
    if (error == EXT2_ET_DIR_NO_SPACE) {
      BLK_EXT(ext2fs_expand_dir(fs_, parent), path);
      error = ext2fs_symlink(fs_, parent, 0, name.c_str(), target);
    }
    BLK_EXT(error, path);
    return ExtError(
        ext2fs_lookup(fs_, parent, name.c_str(), static_cast<int>(name.size()), nullptr, inode),
        path);
  }

  // What is data of the file; its holes stay holes.
  absl::Status CopyContent(const std::string& path, ext2_ino_t inode) {
    Descriptor from(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (!from.valid()) return ErrnoError(errno, path);
    ext2_file_t to = nullptr;
    BLK_EXT(ext2fs_file_open(fs_, inode, EXT2_FILE_WRITE, &to), path);
    absl::Status status;
    for (off_t at = lseek(from.get(), 0, SEEK_DATA); at >= 0 && status.ok();
         at = lseek(from.get(), at, SEEK_DATA)) {
      off_t end = lseek(from.get(), at, SEEK_HOLE);
      if (end < 0) status = ErrnoError(errno, path);
      while (status.ok() && at < end) status = CopyPart(path, from.get(), to, end, &at);
    }
    errcode_t closed = ext2fs_file_close(to);
    return status.ok() ? ExtError(closed, path) : status;
  }

  absl::Status CopyPart(const std::string& path, int from, ext2_file_t to, off_t end, off_t* at) {
    const size_t wanted = std::min<uint64_t>(kCopyBytes, static_cast<uint64_t>(end - *at));
    const ssize_t got = pread(from, buffer_.data(), wanted, *at);
    if (got < 0) return ErrnoError(errno, path);
    if (got == 0) return ErrnoErrorAsIs(EIO, absl::StrCat(path, " became shorter meanwhile"));
    BLK_EXT(ext2fs_file_llseek(to, *at, EXT2_SEEK_SET, nullptr), path);
    for (ssize_t done = 0; done < got;) {
      unsigned written = 0;
      BLK_EXT(
          ext2fs_file_write(to, buffer_.data() + done, static_cast<unsigned>(got - done), &written),
          path);
      done += written;
    }
    *at += got;
    return absl::OkStatus();
  }

  absl::Status SetFacts(ext2_ino_t inode, const std::string& path, const struct stat& facts) {
    BLK_RETURN_IF_ERROR(CopyAttributes(inode, path));
    ext2_inode_large made{};
    auto* plain = reinterpret_cast<ext2_inode*>(&made);
    BLK_EXT(ext2fs_read_inode_full(fs_, inode, plain, sizeof made), path);
    made.i_mode = static_cast<__u16>(facts.st_mode);
    made.i_uid = static_cast<__u16>(facts.st_uid);
    made.i_uid_high = static_cast<__u16>(facts.st_uid >> 16);
    made.i_gid = static_cast<__u16>(facts.st_gid);
    made.i_gid_high = static_cast<__u16>(facts.st_gid >> 16);
    made.i_extra_isize = sizeof(ext2_inode_large) - EXT2_GOOD_OLD_INODE_SIZE;
    SetTime(facts.st_atim, &made.i_atime, &made.i_atime_extra);
    SetTime(facts.st_mtim, &made.i_mtime, &made.i_mtime_extra);
    SetTime(facts.st_ctim, &made.i_ctime, &made.i_ctime_extra);
    SetTime(facts.st_mtim, &made.i_crtime, &made.i_crtime_extra);
    return ExtError(ext2fs_write_inode_full(fs_, inode, plain, sizeof made), path);
  }

  // Seconds beyond 32 bits and nanoseconds share the second number.
  static void SetTime(const timespec& time, __u32* seconds, __u32* extra) {
    *seconds = static_cast<__u32>(time.tv_sec);
    *extra = static_cast<__u32>(((time.tv_sec - static_cast<int32_t>(*seconds)) >> 32) & 3) |
             static_cast<__u32>(time.tv_nsec) << 2;
  }

  absl::Status CopyAttributes(ext2_ino_t inode, const std::string& path) {
    ssize_t bytes = llistxattr(path.c_str(), nullptr, 0);
    if (bytes <= 0) return absl::OkStatus();  // none, or the file system has no such thing
    std::string names(bytes, '\0');
    bytes = llistxattr(path.c_str(), names.data(), names.size());
    if (bytes < 0) return ErrnoError(errno, path);
    ext2_xattr_handle* handle = nullptr;
    BLK_EXT(ext2fs_xattrs_open(fs_, inode, &handle), path);
    errcode_t error = ext2fs_xattrs_read(handle);
    for (const char* name = names.c_str(); error == 0 && name < names.data() + bytes;
         name += std::strlen(name) + 1) {
      std::string value(64 << 10, '\0');
      const ssize_t length = lgetxattr(path.c_str(), name, value.data(), value.size());
      if (length >= 0) error = ext2fs_xattr_set(handle, name, value.data(), length);
    }
    errcode_t closed = ext2fs_xattrs_close(&handle);
    return ExtError(error ? error : closed, absl::StrCat(path, ": its extended attributes"));
  }

  ext2_filsys fs_ = nullptr;
  std::map<std::pair<dev_t, ino_t>, ext2_ino_t> linked_;
  std::vector<char> buffer_ = std::vector<char>(kCopyBytes);
};

}  // namespace

absl::Status WriteExt(const std::string& folder, const std::string& image,
                      const ExtOptions& options) {
  Descriptor file(open(image.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
  if (!file.valid()) return ErrnoError(errno, image);
  if (ftruncate(file.get(), static_cast<off_t>(options.bytes)) < 0) return ErrnoError(errno, image);
  initialize_ext2_error_table();
  ExtWriter writer;
  BLK_RETURN_IF_ERROR(writer.Make(image, options));
  BLK_RETURN_IF_ERROR(writer.Fill(folder));
  return writer.Close();
}

}  // namespace blk
