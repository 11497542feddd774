#pragma once
// The log: errors, warnings and notes always, debug messages with -v. One line a call, to standard
// error (or where a sink takes it); control characters in debug messages are escaped. Any thread.
#include <functional>
#include <string_view>

#include "absl/strings/str_cat.h"

namespace blk {

void SetVerbose(bool verbose);
bool Verbose();
// Every line, with its end of line, goes to `sink` instead. Before threads start.
void SetLogSink(std::function<void(std::string_view line)> sink);
// Errors, warnings and notes, without prefix and end of line, go to `sink` (syslog has its own).
// Debug messages stay where they are. Before threads start.
void SetErrorSink(std::function<void(std::string_view message)> sink);
// "blk: " by default; "nbdkit: " under that name.
void SetLogPrefix(std::string_view prefix);

// What a developer wants to know more about, such as `example2.extra`: nbdkit's -D. Before threads.
void SetDebugFlag(std::string_view name);
bool DebugFlag(std::string_view name);

void LogError(std::string_view message);
// `who` stands before the message: the part of the program, the connection.
void LogErrorFrom(std::string_view who, std::string_view message);
void LogDebugFrom(std::string_view who, std::string_view message);
void LogWarning(std::string_view message);
// What somebody asked to be told.
void LogNote(std::string_view message);
void LogDebugLine(std::string_view message);

template <typename... Args>
void LogDebug(const Args&... args) {
  if (Verbose()) LogDebugLine(absl::StrCat(args...));
}

}  // namespace blk
