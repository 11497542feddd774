#include "src/backends/data/inputs.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <limits>
#include <string_view>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "src/core/descriptor.h"
#include "src/core/error.h"
#include "src/core/process.h"

namespace blk {
namespace {

// As much of a script's messages as is looked at and passed on.
constexpr size_t kMessageBytesMax = 64 << 10;

absl::StatusOr<size_t> ReadSome(int fd, std::span<char> into, std::string_view name) {
  for (;;) {
    const ssize_t count = read(fd, into.data(), into.size());
    if (count >= 0) return static_cast<size_t>(count);
    if (errno != EINTR) return ErrnoError(errno, absl::StrCat(name, ": cannot be read"));
  }
}

class FileInput final : public DataInput {
 public:
  FileInput(Descriptor file, std::string name, bool can_seek)
      : file_(std::move(file)), name_(std::move(name)), can_seek_(can_seek) {}

  absl::StatusOr<size_t> Read(std::span<char> buffer) override {
    return ReadSome(file_.get(), buffer, name_);
  }
  absl::Status Finish() override { return absl::OkStatus(); }
  bool Skip(uint64_t bytes) override {
    return can_seek_ && bytes <= std::numeric_limits<int64_t>::max() &&
           lseek(file_.get(), static_cast<off_t>(bytes), SEEK_CUR) >= 0;
  }

 private:
  const Descriptor file_;
  const std::string name_;
  const bool can_seek_;
};

// The script's stderr is a file in memory: a pipe would have to be emptied while its output is
// read.
class ScriptInput final : public DataInput {
 public:
  ScriptInput(std::unique_ptr<ScriptSource> source, Descriptor messages)
      : source_(std::move(source)), messages_(std::move(messages)) {}
  ~ScriptInput() override {
    source_.reset();
    Forward();
  }

  absl::StatusOr<size_t> Read(std::span<char> buffer) override { return source_->Read(buffer); }

  absl::Status Finish() override {
    absl::Status status = source_->Finish();
    if (status.ok()) return status;
    const std::string messages = Messages();
    std::string_view last = absl::StripAsciiWhitespace(messages);
    last = last.substr(last.rfind('\n') + 1);  // npos + 1 is 0: the only line.
    absl::Status failure =
        absl::Status(status.code(),
                     absl::StrCat("<(SCRIPT): ", status.message(), last.empty() ? "" : ": ", last));
    status.ForEachPayload(
        [&](std::string_view type, const absl::Cord& value) { failure.SetPayload(type, value); });
    return failure;
  }

 private:
  // The end of what was written to stderr.
  std::string Messages() const {
    struct stat status;
    if (fstat(messages_.get(), &status) != 0) return "";
    std::string text(std::min<size_t>(status.st_size, kMessageBytesMax), '\0');
    const ssize_t count =
        pread(messages_.get(), text.data(), text.size(), status.st_size - text.size());
    text.resize(std::max<ssize_t>(count, 0));
    return text;
  }
  void Forward() const {
    const std::string text = Messages();
    std::string_view left = text;
    while (!left.empty()) {
      const ssize_t count = write(STDERR_FILENO, left.data(), left.size());
      if (count <= 0) return;
      left.remove_prefix(count);
    }
  }

  std::unique_ptr<ScriptSource> source_;
  const Descriptor messages_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<DataInput>> OpenDataFile(std::string name) {
  Descriptor file(open(name.c_str(), O_RDONLY | O_CLOEXEC));
  if (!file.valid()) return ErrnoError(errno, absl::StrCat(name, ": cannot be opened"));
  struct stat status;
  if (fstat(file.get(), &status) != 0) return ErrnoError(errno, name);
  if (S_ISDIR(status.st_mode)) return ErrnoError(EISDIR, absl::StrCat(name, ": cannot be read"));
  const bool can_seek = S_ISREG(status.st_mode) || S_ISBLK(status.st_mode);
  return std::make_unique<FileInput>(std::move(file), std::move(name), can_seek);
}

absl::StatusOr<std::unique_ptr<DataInput>> OpenDataScript(std::string script) {
  Descriptor messages(memfd_create("blk-script-messages", MFD_CLOEXEC));
  if (!messages.valid()) return ErrnoError(errno, "<(SCRIPT): no file in memory for its messages");
  // Appending, so that the programs of the script do not write over each other's messages.
  fcntl(messages.get(), F_SETFL, O_APPEND);
  Command command = BashCommand(std::move(script));
  command.input = Redirect::Null();
  command.errors = Redirect::To(messages.get());
  PutOurselvesOnPath(&command);
  BLK_ASSIGN_OR_RETURN(auto source, ScriptSource::Start(std::move(command)));
  return std::make_unique<ScriptInput>(std::move(source), std::move(messages));
}

}  // namespace blk
