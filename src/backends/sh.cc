// sh: a disk that a script or any other program is, run once for each method.
// The script sees no thread model but its own: serialize_all_requests unless it says otherwise.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/backends/script/program_layer.h"
#include "src/backends/script/program_per_call.h"
#include "src/core/descriptor.h"
#include "src/core/spec.h"

namespace blk {
namespace {

constexpr size_t kInlineScriptBytesMax = 64 << 20;

struct Config {
  std::string script;
  std::vector<std::pair<std::string, std::string>> config;
  std::optional<Nanoseconds> timeout;
};

absl::StatusOr<std::string> ReadStandardInput() {
  std::string text;
  char buffer[64 << 10];
  for (;;) {
    ssize_t got = read(STDIN_FILENO, buffer, sizeof buffer);
    if (got == 0) return text;
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoError(errno, "sh: cannot read the script from standard input");
    text.append(buffer, got);
    if (text.size() > kInlineScriptBytesMax)
      return ErrnoErrorAsIs(EFBIG, "sh: the script on standard input has more than 64M");
  }
}

absl::Status WriteScript(const std::string& path, std::string_view text) {
  Descriptor file(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0500));
  if (!file.valid()) return ErrnoError(errno, absl::StrCat("sh: cannot make ", path));
  while (!text.empty()) {
    ssize_t done = write(file.get(), text.data(), text.size());
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return ErrnoError(errno, absl::StrCat("sh: cannot write ", path));
    text.remove_prefix(done);
  }
  return absl::OkStatus();
}

class ScriptCaller final : public script::ProgramPerCall {
 public:
  ScriptCaller(std::string path, int64_t timeout_ns)
      : ProgramPerCall(path, timeout_ns), path_(std::move(path)) {}

  Known Has(std::string_view) override { return Known::kMaybe; }

 protected:
  // The server may go to the background, where paths begin at the root.
  absl::Status Prepare() override {
    if (path_ == "-") {
      BLK_ASSIGN_OR_RETURN(std::string text, ReadStandardInput());
      path_ = absl::StrCat(folder(), "/inline-script.sh");
      return WriteScript(path_, text);
    }
    char* absolute = realpath(path_.c_str(), nullptr);
    if (absolute == nullptr) return ErrnoError(errno, absl::StrCat("sh: ", path_));
    path_ = absolute;
    std::free(absolute);
    if (access(path_.c_str(), X_OK) != 0)
      return ErrnoError(errno, absl::StrCat("sh: ", path_, " cannot be run; chmod +x makes it so"));
    return absl::OkStatus();
  }

  std::vector<std::string> CommandFor(std::string_view) override { return {path_}; }

 private:
  std::string path_;
};

absl::StatusOr<LayerPtr> MakeLayer(Config config) {
  const int64_t timeout_ns = config.timeout ? config.timeout->count() : INT64_MAX;
  return script::MakeProgramLayer(
      std::make_unique<ScriptCaller>(std::move(config.script), timeout_ns),
      {.config = std::move(config.config)});
}

}  // namespace

const Spec& ShSpec() {
  static const Spec& spec = *new Spec(
      BackendSpec<Config>("sh", "a script of yours, run for each request")
          .Description(
              "The program, in any language, is run once for each method: `SCRIPT pread HANDLE "
              "COUNT OFFSET` prints the bytes read, `SCRIPT pwrite HANDLE COUNT OFFSET FLAGS` "
              "takes them from its input, `SCRIPT get_size HANDLE` prints the size, `SCRIPT "
              "config KEY VALUE` gets the parameters, and so on. The protocol is that of nbdkit's "
              "sh plugin, whose manual page nbdkit-sh-plugin(3) has every method.\n\n"
              "Exit codes: 0 done; 1 and from 16 on an error, whose name (ENOSPC ...) and text "
              "the script prints on stderr; 2 no such method; 3 no, for questions such as "
              "can_write; 4 and 5 the server shall end after this answer, done or error; 6 this "
              "client is cut off; 7 and 8 it is let go after this answer, done or error.\n\n"
              "$tmpdir names a folder that lives as long as the server. A script that hangs is "
              "killed when its client leaves, or after blk-timeout. `-` is a script on standard "
              "input.")
          .Param("script", &Config::script,
                 {.help = "the program; `-`: a shell script on standard input",
                  .required = true,
                  .magic = true,
                  .word = "PATH",
                  .path = PathUse::kRead})
          .Param("blk-timeout", &Config::timeout, {.help = "longest time that a method may take"})
          .AnyKey(&Config::config, "given to the script's config method", /*takes_words=*/true)
          .PrintedExample("sh:./disk.sh", "a script as a disk")
          .PrintedExample("sh:./disk.sh(file=/tmp/disk.img)", "one that takes a parameter")
          .Needs(Need::Kind::kProgram)
          .Needs(Need::Kind::kTemporaryFile, "/tmp")
          .Make(MakeLayer));
  return spec;
}

}  // namespace blk
