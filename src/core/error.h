#pragma once
// Errors as values: an absl::Status that remembers its errno, so that the wire, the exit status and
// the text on the terminal agree. Any thread. Nothing of blk's throws.
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"

namespace blk {

// A failure with this errno (one of <cerrno>, not 0). `message` says what, where and what to do;
// the errno's own text is appended.
absl::Status ErrnoError(int errno_value, std::string_view message);

// The same without the errno's text, for messages that already say everything.
absl::Status ErrnoErrorAsIs(int errno_value, std::string_view message);

// The errno that rides along; for a status without one, the nearest to its code (EIO if unsure).
// 0 for OK.
int ErrnoOf(const absl::Status& status);

// `context: message`, with code and errno kept. OK stays OK.
absl::Status Annotate(const absl::Status& status, std::string_view context);

[[noreturn]] void CheckFailed(const char* condition, const char* file, int line);

}  // namespace blk

// A promise of our own code, kept in release builds too. Never for what a peer, a file, a flag or
// the kernel can cause.
#define BLK_CHECK(condition) \
  (static_cast<bool>(condition) ? void(0) : ::blk::CheckFailed(#condition, __FILE__, __LINE__))

#define BLK_CONCAT_INNER(a, b) a##b
#define BLK_CONCAT(a, b) BLK_CONCAT_INNER(a, b)

// `return`s (or in coroutines `co_return`s) a status that is not OK.
#define BLK_RETURN_IF_ERROR(expression) \
  if (absl::Status blk_status = (expression); !blk_status.ok()) return blk_status
#define BLK_CO_RETURN_IF_ERROR(expression) \
  if (absl::Status blk_status = (expression); !blk_status.ok()) co_return blk_status

// BLK_ASSIGN_OR_RETURN(auto x, F()): x is F's value, or F's status is returned.
#define BLK_ASSIGN_OR_RETURN(left, expression) \
  BLK_ASSIGN_OR(return, BLK_CONCAT(blk_or_, __LINE__), left, expression)
#define BLK_CO_ASSIGN_OR_RETURN(left, expression) \
  BLK_ASSIGN_OR(co_return, BLK_CONCAT(blk_or_, __LINE__), left, expression)
#define BLK_ASSIGN_OR(leave, temporary, left, expression)   \
  auto temporary = (expression);                            \
  if (!temporary.ok()) leave std::move(temporary).status(); \
  left = *std::move(temporary)
