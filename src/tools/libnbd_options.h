#pragma once
// The command lines of libnbd's programs: getopt_long(3) as they use it (options and words mix,
// long names may be shortened, letters run together), and what they have in common.
//
// Threads: before any; getopt keeps global state.
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace blk {

// What scripts compare with: the version whose command lines these are.
inline constexpr std::string_view kLibnbdVersion = "1.14.2";

struct LibnbdRow {
  enum class Value { kNone, kRequired, kOptional };
  const char* name;
  Value value = Value::kNone;
  char letter = 0;
  // Takes the value, null where there is none. The message of an error is printed after the
  // program's name. The rows help, long-options, short-options and version need none.
  std::function<absl::Status(const char* value)> take = {};
  bool newer = false;  // than kLibnbdVersion: works, but is not in the lists
};

struct LibnbdProgram {
  const char* name;
  const char* usage;          // what --help prints
  const char* short_options;  // as getopt(3) wants them, in the order of --short-options
  std::vector<LibnbdRow> rows;
};

// The words that are no options; nothing when everything is done or was refused, and said, with
// *exit_status set. `shown_name`: before messages.
std::optional<std::vector<std::string>> ParseLibnbdOptions(const LibnbdProgram& program,
                                                           std::string_view shown_name,
                                                           std::span<const std::string> arguments,
                                                           int* exit_status);

// Prints the usage to standard error; the exit status.
int WrongLibnbdUsage(const LibnbdProgram& program);

// Prints "NAME: message" to standard error and returns 1, or returns 0 for OK.
int LibnbdExitStatus(std::string_view shown_name, const absl::Status& status);

// A number as scanf reads it (what follows the digits is ignored), or, as newer versions take it, a
// size such as 64K. Nothing when there is no number.
std::optional<uint32_t> ScanUnsigned(const char* text);
std::optional<uint64_t> ScanUnsigned64(const char* text);

// Rows that several programs have.
LibnbdRow LibnbdSwitch(const char* name, bool* flag, bool value = true, char letter = 0);
void AddLibnbdColourRows(std::vector<LibnbdRow>* rows, bool* colour);

}  // namespace blk
