#include "src/backends/script/method.h"

#include <cerrno>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace blk::script {

int ErrnoByName(std::string_view name) {
  // Those of the NBD protocol, and what system calls say often; the session maps them to the wire.
  static constexpr std::pair<std::string_view, int> kNames[] = {
      {"EPERM", EPERM},
      {"EIO", EIO},
      {"ENOMEM", ENOMEM},
      {"EINVAL", EINVAL},
      {"ENOSPC", ENOSPC},
      {"EOVERFLOW", EOVERFLOW},
      {"ESHUTDOWN", ESHUTDOWN},
      {"ENOTSUP", ENOTSUP},
      {"EOPNOTSUPP", EOPNOTSUPP},
      {"EROFS", EROFS},
      {"EDQUOT", EDQUOT},
      {"EFBIG", EFBIG},
      {"ENOENT", ENOENT},
      {"EACCES", EACCES},
      {"EBUSY", EBUSY},
      {"EEXIST", EEXIST},
      {"EAGAIN", EAGAIN},
      {"ENODEV", ENODEV},
      {"ENXIO", ENXIO},
      {"EPIPE", EPIPE},
      {"ERANGE", ERANGE},
      {"ETIMEDOUT", ETIMEDOUT},
      {"ESTALE", ESTALE},
      {"ENOSYS", ENOSYS},
      {"ECANCELED", ECANCELED},
      {"EISDIR", EISDIR},
      {"ENOTDIR", ENOTDIR},
      {"ECONNRESET", ECONNRESET},
      {"EHOSTUNREACH", EHOSTUNREACH},
      {"ECONNREFUSED", ECONNREFUSED},
  };
  for (const auto& [known, value] : kNames) {
    if (absl::EqualsIgnoreCase(name, known)) return value;
  }
  return 0;
}

absl::Status ReportedError(std::string_view name, std::string_view method, std::string_view text) {
  text = absl::StripAsciiWhitespace(text);
  const size_t end = std::min(text.find_first_of(" \t\r\n"), text.size());
  const int error = ErrnoByName(text.substr(0, end));
  if (error != 0) text = absl::StripLeadingAsciiWhitespace(text.substr(end));
  if (text.empty())
    return ErrnoError(error ? error : EIO, absl::StrCat(name, ": ", method, " failed"));
  return ErrnoErrorAsIs(error ? error : EIO, absl::StrCat(name, ": ", method, ": ", text));
}

}  // namespace blk::script
