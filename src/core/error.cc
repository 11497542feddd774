#include "src/core/error.h"

#include <cerrno>
#include <cstring>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"

namespace blk {
namespace {
constexpr std::string_view kErrnoUrl = "blk/errno";
}  // namespace

absl::Status ErrnoErrorAsIs(int errno_value, std::string_view message) {
  BLK_CHECK(errno_value > 0);
  absl::Status status(absl::ErrnoToStatusCode(errno_value), message);
  status.SetPayload(kErrnoUrl, absl::Cord(absl::StrCat(errno_value)));
  return status;
}

absl::Status ErrnoError(int errno_value, std::string_view message) {
  char text[128];
  return ErrnoErrorAsIs(errno_value,
                        absl::StrCat(message, ": ", strerror_r(errno_value, text, sizeof text)));
}

int ErrnoOf(const absl::Status& status) {
  if (status.ok()) return 0;
  int value = 0;
  if (auto payload = status.GetPayload(kErrnoUrl);
      payload && absl::SimpleAtoi(std::string(*payload), &value))
    return value;
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kOutOfRange:
      return EINVAL;
    case absl::StatusCode::kNotFound:
      return ENOENT;
    case absl::StatusCode::kPermissionDenied:
      return EPERM;
    case absl::StatusCode::kUnimplemented:
      return EOPNOTSUPP;
    case absl::StatusCode::kCancelled:
      return ECANCELED;
    case absl::StatusCode::kDeadlineExceeded:
      return ETIMEDOUT;
    case absl::StatusCode::kResourceExhausted:
      return ENOMEM;
    default:
      return EIO;
  }
}

absl::Status Annotate(const absl::Status& status, std::string_view context) {
  if (status.ok()) return status;
  absl::Status result(status.code(), absl::StrCat(context, ": ", status.message()));
  status.ForEachPayload(
      [&](std::string_view url, const absl::Cord& payload) { result.SetPayload(url, payload); });
  return result;
}

void CheckFailed(const char* condition, const char* file, int line) {
  std::fprintf(stderr, "blk: internal error: %s is false (%s:%d); please report this\n", condition,
               file, line);
  std::abort();
}

}  // namespace blk
