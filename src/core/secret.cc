#include "src/core/secret.h"

#include <errno.h>
#include <fcntl.h>
#include <termios.h>
#include <unistd.h>

#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "src/core/error.h"
#include "src/core/limits.h"
#include "src/core/units.h"

namespace blk {
namespace {

// The first line, without its end. Read to the end of the line only, so that a pipe or terminal may
// stay open behind it.
absl::StatusOr<std::string> ReadLine(int fd, std::string_view what) {
  std::string line;
  for (;;) {
    char c = 0;
    ssize_t got = read(fd, &c, 1);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoError(errno, absl::StrCat("cannot read the secret from ", what));
    if (got == 0 || c == '\n') return line;
    if (line.size() == limits::kSecretBytesMax) {
      return absl::InvalidArgumentError(absl::StrCat("the secret in ", what, " is longer than ",
                                                     limits::kSecretBytesMax, " bytes"));
    }
    line += c;
  }
}

// Echo is off while the line is typed. Ctrl-C must not end the process meanwhile, or the terminal
// would stay without echo: it ends the line instead, and counts as a refusal.
absl::StatusOr<std::string> AskOnTerminal() {
  constexpr char kControlC = 3;
  int fd = open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY);
  if (fd < 0)
    return ErrnoError(errno, "cannot ask for the secret: no terminal; give it as +FILE or -FD");
  absl::Cleanup close_terminal = [fd] { close(fd); };
  termios usual;
  if (tcgetattr(fd, &usual) != 0) return ErrnoError(errno, "cannot turn the terminal's echo off");
  termios silent = usual;
  silent.c_lflag &= ~static_cast<tcflag_t>(ECHO | ISIG);
  silent.c_cc[VEOL] = kControlC;
  if (tcsetattr(fd, TCSAFLUSH, &silent) != 0)
    return ErrnoError(errno, "cannot turn the terminal's echo off");
  absl::Cleanup restore = [fd, &usual] { tcsetattr(fd, TCSAFLUSH, &usual); };
  constexpr std::string_view kPrompt = "password: ";
  if (write(fd, kPrompt.data(), kPrompt.size()) < 0)
    return ErrnoError(errno, "cannot write to the terminal");
  std::string line;
  for (;;) {
    char buffer[512];
    ssize_t got = read(fd, buffer, sizeof buffer);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoError(errno, "cannot read the secret from the terminal");
    line.append(buffer, static_cast<size_t>(got));
    if (got == 0 || line.back() == '\n' || line.back() == kControlC) break;
    if (line.size() > limits::kSecretBytesMax)
      return absl::InvalidArgumentError("the secret is too long");
  }
  (void)!write(fd, "\n", 1);  // the one that was typed was not echoed; only looks depend on it
  if (absl::EndsWith(line, std::string_view(&kControlC, 1)))
    return absl::CancelledError("no secret was given");
  if (absl::EndsWith(line, "\n")) line.pop_back();
  return line;
}

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoError(errno, absl::StrCat("cannot open ", path, " for the secret"));
  absl::Cleanup close_file = [fd] { close(fd); };
  return ReadLine(fd, path);
}

absl::StatusOr<std::string> ReadDescriptor(std::string_view digits) {
  absl::StatusOr<int> fd = ParseInteger<int>(digits);
  if (!fd.ok()) {
    return absl::InvalidArgumentError(
        "a secret that begins with `-` is `-` alone or `-FD`; give any other as +FILE");
  }
  if (*fd <= 2)
    return absl::InvalidArgumentError(
        "a secret cannot be read from descriptors 0, 1 and 2; give it as +FILE");
  absl::Cleanup close_descriptor = [fd = *fd] { close(fd); };
  return ReadLine(*fd, absl::StrCat("descriptor ", *fd));
}

}  // namespace

absl::StatusOr<Secret> ReadSecret(std::string_view value) {
  absl::StatusOr<std::string> text = std::string(value);
  if (value == "-") {
    text = AskOnTerminal();
  } else if (absl::StartsWith(value, "-")) {
    text = ReadDescriptor(value.substr(1));
  } else if (absl::StartsWith(value, "+")) {
    text = ReadFile(std::string(value.substr(1)));
  }
  if (!text.ok()) return text.status();
  return Secret{*std::move(text)};
}

}  // namespace blk
