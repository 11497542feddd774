#include "src/tools/copy_journal.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

#include <bit>
#include <cerrno>
#include <cstring>

#include "src/core/loop.h"

namespace blk {
namespace {

static_assert(std::endian::native == std::endian::little, "numbers are stored as they are");

constexpr std::string_view kMagic = "blk copy log 1.\n";
constexpr size_t kRecordBytes = 24, kChecksumBytes = 8;
// A record for each 256 KiB of 10 TiB.
constexpr uint64_t kJournalBytesMax = uint64_t{1} << 30;

uint64_t Checksum(std::string_view bytes, uint64_t seed) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

template <typename Number>
void Put(std::string* out, Number number) {
  out->append(reinterpret_cast<const char*>(&number), sizeof number);
}

// Takes a number from the front; false when there are too few bytes.
template <typename Number>
bool Take(std::string_view* bytes, Number* number) {
  if (bytes->size() < sizeof *number) return false;
  std::memcpy(number, bytes->data(), sizeof *number);
  bytes->remove_prefix(sizeof *number);
  return true;
}

bool TakeString(std::string_view* bytes, std::string* text) {
  uint32_t length = 0;
  if (!Take(bytes, &length) || length > bytes->size()) return false;
  *text = bytes->substr(0, length);
  bytes->remove_prefix(length);
  return true;
}

std::string EncodeHeader(const CopyIdentity& identity) {
  std::string out(kMagic);
  for (const std::string* text :
       {&identity.source, &identity.source_state, &identity.target, &identity.target_state}) {
    Put(&out, static_cast<uint32_t>(text->size()));
    out += *text;
  }
  Put(&out, Checksum(out, 0));
  return out;
}

bool ParseHeader(std::string_view* bytes, ParsedJournal* journal) {
  const std::string_view all = *bytes;
  bytes->remove_prefix(kMagic.size());
  CopyIdentity& identity = journal->identity;
  for (std::string* text :
       {&identity.source, &identity.source_state, &identity.target, &identity.target_state})
    if (!TakeString(bytes, text)) return false;
  const uint64_t expected = Checksum(all.substr(0, all.size() - bytes->size()), 0);
  return Take(bytes, &journal->checksum) && journal->checksum == expected;
}

absl::Status Stale(const std::string& path, std::string_view what, std::string_view before,
                   std::string_view now) {
  return ErrnoErrorAsIs(
      ESTALE, absl::StrCat("the journal ", path, " belongs to a copy with another ", what, " (",
                           before, ", and now ", now, "); to begin anew, delete the journal"));
}

absl::Status CompareIdentity(const std::string& path, const CopyIdentity& before,
                             const CopyIdentity& now) {
  if (before.source != now.source) return Stale(path, "source", before.source, now.source);
  if (before.target != now.target) return Stale(path, "target", before.target, now.target);
  if (before.source_state != now.source_state)
    return Stale(path, "state of the source", before.source_state, now.source_state);
  if (before.target_state != now.target_state)
    return Stale(path, "state of the target", before.target_state, now.target_state);
  return absl::OkStatus();
}

absl::Status WriteAt(int fd, uint64_t offset, std::string_view bytes) {
  while (!bytes.empty()) {
    ssize_t n = pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoError(errno, "cannot write");
    offset += n;
    bytes.remove_prefix(n);
  }
  if (fdatasync(fd) < 0) return ErrnoError(errno, "cannot flush");
  return absl::OkStatus();
}

absl::StatusOr<std::string> ReadAll(int fd) {
  const off_t end = lseek(fd, 0, SEEK_END);
  if (end < 0) return ErrnoError(errno, "cannot find its size");
  if (static_cast<uint64_t>(end) > kJournalBytesMax)
    return ErrnoErrorAsIs(EFBIG, "it is larger than any journal");
  std::string bytes(end, '\0');
  for (size_t at = 0; at < bytes.size();) {
    ssize_t n = pread(fd, bytes.data() + at, bytes.size() - at, static_cast<off_t>(at));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoError(errno, "cannot read");
    if (n == 0) bytes.resize(at);
    at += n;
  }
  return bytes;
}

// The file that `path` names, locked. A copy that has just ended may have removed the file between
// our opening and our locking it: then another copy could lock the next one.
absl::StatusOr<int> OpenLocked(const std::string& path) {
  for (int tries = 0; tries < 10; ++tries) {
    int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0666);
    if (fd < 0) return ErrnoError(errno, absl::StrCat("cannot open the journal ", path));
    struct stat locked, named;
    if (flock(fd, LOCK_EX | LOCK_NB) < 0) {
      close(fd);
      break;
    }
    if (fstat(fd, &locked) == 0 && stat(path.c_str(), &named) == 0 &&
        locked.st_ino == named.st_ino && locked.st_dev == named.st_dev)
      return fd;
    close(fd);
  }
  return ErrnoErrorAsIs(EBUSY, absl::StrCat("another copy uses the journal ", path));
}

// The name of a new file, or that it is gone, lives in its directory.
void SyncDirectoryOf(const std::string& path) {
  size_t slash = path.rfind('/');
  std::string directory = slash == path.npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  int fd = open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return;  // not readable: then it cannot be made sure, and is no reason to fail
  (void)fsync(fd);
  close(fd);
}

}  // namespace

ParsedJournal ParseCopyJournal(std::string_view bytes, uint64_t disk_bytes) {
  using Kind = ParsedJournal::Kind;
  ParsedJournal journal;
  if (bytes.empty()) return journal;
  const size_t looked_at = std::min(bytes.size(), kMagic.size());
  journal.kind =
      bytes.substr(0, looked_at) == kMagic.substr(0, looked_at) ? Kind::kDamaged : Kind::kForeign;
  if (journal.kind == Kind::kForeign || bytes.size() < kMagic.size()) return journal;
  const size_t all = bytes.size();
  if (!ParseHeader(&bytes, &journal)) return journal;
  while (bytes.size() >= kRecordBytes) {
    const std::string_view record = bytes.substr(0, kRecordBytes);
    uint64_t offset = 0, length = 0, checksum = 0;
    (void)(Take(&bytes, &offset) && Take(&bytes, &length) && Take(&bytes, &checksum));
    const uint64_t expected =
        Checksum(record.substr(0, kRecordBytes - kChecksumBytes), journal.checksum);
    if (checksum != expected || length == 0 || offset > disk_bytes ||
        length > disk_bytes - offset) {
      journal.finished.Clear();
      return journal;
    }
    journal.checksum = checksum;
    journal.finished.Add(offset, offset + length);
  }
  journal.good_bytes = all - bytes.size();
  journal.kind = Kind::kGood;
  return journal;
}

absl::StatusOr<std::unique_ptr<CopyJournal>> CopyJournal::Open(const std::string& path,
                                                               const CopyIdentity& identity,
                                                               uint64_t disk_bytes) {
  BLK_ASSIGN_OR_RETURN(int fd, OpenLocked(path));
  std::unique_ptr<CopyJournal> journal(new CopyJournal(path, fd));
  BLK_RETURN_IF_ERROR(journal->Load(identity, disk_bytes));
  return journal;
}

CopyJournal::~CopyJournal() { close(fd_); }

absl::Status CopyJournal::Load(const CopyIdentity& identity, uint64_t disk_bytes) {
  auto bytes = ReadAll(fd_);
  if (!bytes.ok()) return Annotate(bytes.status(), absl::StrCat("the journal ", path_));
  ParsedJournal parsed = ParseCopyJournal(*bytes, disk_bytes);
  switch (parsed.kind) {
    case ParsedJournal::Kind::kForeign:
      return ErrnoErrorAsIs(EINVAL, absl::StrCat(path_,
                                                 " is not the journal of a copy, and is left "
                                                 "alone; give another name to --resume"));
    case ParsedJournal::Kind::kDamaged:
      was_damaged_ = true;
      return Begin(identity);
    case ParsedJournal::Kind::kFresh:
      return Begin(identity);
    case ParsedJournal::Kind::kGood:
      break;
  }
  BLK_RETURN_IF_ERROR(CompareIdentity(path_, parsed.identity, identity));
  finished_ = std::move(parsed.finished);
  bytes_ = parsed.good_bytes;
  checksum_ = parsed.checksum;
  if (ftruncate(fd_, static_cast<off_t>(bytes_)) < 0)
    return ErrnoError(errno, absl::StrCat("cannot shorten the journal ", path_));
  return absl::OkStatus();
}

absl::Status CopyJournal::Begin(const CopyIdentity& identity) {
  if (ftruncate(fd_, 0) < 0)
    return ErrnoError(errno, absl::StrCat("cannot empty the journal ", path_));
  const std::string header = EncodeHeader(identity);
  BLK_RETURN_IF_ERROR(Append(header));
  std::memcpy(&checksum_, header.data() + header.size() - kChecksumBytes, kChecksumBytes);
  SyncDirectoryOf(path_);
  return absl::OkStatus();
}

absl::Status CopyJournal::Append(std::string_view bytes) {
  BLK_RETURN_IF_ERROR(Annotate(WriteAt(fd_, bytes_, bytes), absl::StrCat("the journal ", path_)));
  bytes_ += bytes.size();
  return absl::OkStatus();
}

void CopyJournal::Done(uint64_t offset, uint64_t length) {
  std::lock_guard lock(mutex_);
  done_.Add(offset, offset + length);
}

uint64_t CopyJournal::pending_bytes() {
  std::lock_guard lock(mutex_);
  return done_.bytes();
}

Task<absl::Status> CopyJournal::Checkpoint(Device* target) {
  BLK_CO_RETURN_IF_ERROR(failure_);
  RangeSet done;
  {
    std::lock_guard lock(mutex_);
    std::swap(done, done_);
  }
  if (!done.empty()) failure_ = co_await WriteDown(target, std::move(done));
  co_return failure_;
}

Task<absl::Status> CopyJournal::WriteDown(Device* target, RangeSet done) {
  Call call;
  if (target->facts().flush)
    BLK_CO_RETURN_IF_ERROR(Annotate(co_await target->Flush(call), "flush of the target"));
  std::string records;
  uint64_t checksum = checksum_;
  for (const auto& [from, to] : done.ranges()) {
    const size_t begin = records.size();
    Put(&records, from);
    Put(&records, to - from);
    checksum = Checksum(std::string_view(records).substr(begin), checksum);
    Put(&records, checksum);
  }
  absl::Status status;
  co_await Loop::Current()->Offload([&] { status = Append(records); });
  if (status.ok()) checksum_ = checksum;
  co_return status;
}

Task<absl::Status> CopyJournal::Remove() {
  absl::Status status;
  co_await Loop::Current()->Offload([&] {
    if (unlink(path_.c_str()) < 0 && errno != ENOENT)
      status = ErrnoError(errno, absl::StrCat("cannot remove the journal ", path_));
    SyncDirectoryOf(path_);
  });
  co_return status;
}

}  // namespace blk
