#include "src/tools/tls.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "src/core/descriptor.h"
#include "src/core/tls_make.h"
#include "src/core/users.h"

namespace blk {
namespace {

struct TlsToolConfig : CommonOptions {
  bool psk = false;
  std::vector<std::string> hosts;
  std::string user;
  int days = NewCertificates().days;
};

constexpr char kKeyFile[] = "keys.psk";

const ParamTable<TlsToolConfig>& TlsRows() {
  static const auto& table = *[] {
    auto* rows = new ParamTable<TlsToolConfig>;
    using C = TlsToolConfig;
    rows->Param("psk", &C::psk, {.help = "a pre-shared key instead of certificates"})
        .Param(
            "host", &C::hosts,
            {.help = "name or address of the server, besides this machine's own", .word = "HOST"})
        .Param("user", &C::user,
               {.help = "the client's name (default: who runs this)", .letter = 'u'})
        .Param("days", &C::days,
               {.help = "how long certificates are valid", .min = "1", .max = "36500"});
    return &AddCommonOptions(*rows);
  }();
  return table;
}

std::vector<std::string> HostsOf(const TlsToolConfig& config) {
  std::vector<std::string> hosts = config.hosts;
  char name[256] = "";
  if (gethostname(name, sizeof name - 1) == 0 && *name != '\0') hosts.push_back(name);
  hosts.insert(hosts.end(), {"localhost", "127.0.0.1", "::1"});
  return hosts;
}

// Never over an existing file: it may be the only copy of a key.
absl::Status WriteNew(const std::string& folder, const NewFile& file) {
  const std::string path = absl::StrCat(folder, "/", file.name);
  const mode_t mode = file.secret ? 0600 : 0644;
  const Descriptor out(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode));
  if (!out.valid()) return ErrnoError(errno, absl::StrCat("cannot make ", path));
  const ssize_t written = write(out.get(), file.text.data(), file.text.size());
  if (written == static_cast<ssize_t>(file.text.size()) && fsync(out.get()) == 0)
    return absl::OkStatus();
  return ErrnoError(written < 0 ? errno : EIO, absl::StrCat("cannot write ", path));
}

absl::Status WriteAll(const std::string& folder, const std::vector<NewFile>& files) {
  if (mkdir(folder.c_str(), 0700) != 0 && errno != EEXIST)
    return ErrnoError(errno, absl::StrCat("cannot make ", folder));
  for (const NewFile& file : files) {
    const std::string path = absl::StrCat(folder, "/", file.name);
    if (access(path.c_str(), F_OK) == 0)
      return absl::AlreadyExistsError(
          absl::StrCat(path, " exists; nothing was changed. Name another folder"));
  }
  for (const NewFile& file : files) BLK_RETURN_IF_ERROR(WriteNew(folder, file));
  return absl::OkStatus();
}

absl::Status Init(const TlsToolConfig& config, const std::string& folder) {
  std::string user = config.user;
  if (user.empty()) user = UserName(geteuid()).value_or("client");
  std::vector<NewFile> files;
  if (config.psk) {
    BLK_ASSIGN_OR_RETURN(std::string line, MakePskLine(user));
    files.push_back({kKeyFile, std::move(line), true});
  } else {
    BLK_ASSIGN_OR_RETURN(
        files, MakeCertificates({.hosts = HostsOf(config), .client = user, .days = config.days}));
  }
  BLK_RETURN_IF_ERROR(WriteAll(folder, files));
  if (config.psk) {
    std::printf(
        "%s/%s has a key for user %s; server and client need a copy of it.\n"
        "server: blk serve --tls=require --tls-psk=%s/%s DISK\n"
        "client: blk info 'nbds://%s@HOST?tls-psk-file=%s/%s'\n",
        folder.c_str(), kKeyFile, user.c_str(), folder.c_str(), kKeyFile, user.c_str(),
        folder.c_str(), kKeyFile);
  } else {
    std::printf(
        "%s has an authority and certificates for a server and a client.\n"
        "the server needs ca-cert.pem, server-cert.pem, server-key.pem; clients need\n"
        "ca-cert.pem, and where the server verifies them client-cert.pem, client-key.pem;\n"
        "ca-key.pem makes further certificates: keep it from both.\n"
        "server: blk serve --tls=require --tls-verify-peer --tls-certificates=%s DISK\n"
        "client: blk info 'nbds://HOST?tls-certificates=%s'\n",
        folder.c_str(), folder.c_str(), folder.c_str());
  }
  return absl::OkStatus();
}

int TlsMain(std::span<const std::string> arguments) {
  TlsToolConfig config;
  int exit_status = 0;
  auto words = ParseTool("tls", TlsRows(), &config, arguments, &exit_status);
  if (!words) return exit_status;
  if (words->size() != 2 || (*words)[0] != "init")
    return ExitStatusOf("tls", absl::InvalidArgumentError(
                                   "say `blk tls init DIR`: DIR is a folder for the new files"));
  if (config.psk && !config.hosts.empty())
    return ExitStatusOf("tls",
                        absl::InvalidArgumentError("a pre-shared key is for any host; leave out "
                                                   "--host"));
  return ExitStatusOf("tls", Init(config, (*words)[1]));
}

}  // namespace

Tool TlsTool() {
  return {
      .name = "tls",
      .summary = "make certificates or keys for TLS",
      .synopsis = "init DIR",
      .examples = {{"blk tls init certs", "an authority, a server's and a client's certificate"},
                   {"blk tls init --psk -u alice keys", "a key for alice, in keys/keys.psk"}},
      .rows = []() -> const ParamRows& { return TlsRows(); },
      .run = TlsMain};
}

}  // namespace blk
