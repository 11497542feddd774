#include "src/core/trace.h"

#include <unistd.h>

#include <atomic>
#include <string>

namespace blk {
namespace {
std::atomic<bool> verbose{false};
std::function<void(std::string_view)>& Sink() {
  static auto& sink = *new std::function<void(std::string_view)>;
  return sink;
}
std::function<void(std::string_view)>& ErrorSink() {
  static auto& sink = *new std::function<void(std::string_view)>;
  return sink;
}
std::string& Prefix() {
  static std::string& prefix = *new std::string("blk: ");
  return prefix;
}

// One write(2), so that lines of several threads and processes do not mix.
void Emit(std::string line) {
  line += '\n';
  if (Sink()) return Sink()(line);
  [[maybe_unused]] ssize_t ignored = write(STDERR_FILENO, line.data(), line.size());
}
}  // namespace

void SetVerbose(bool on) { verbose = on; }
bool Verbose() { return verbose.load(std::memory_order_relaxed); }
void SetLogSink(std::function<void(std::string_view)> sink) { Sink() = std::move(sink); }
void SetLogPrefix(std::string_view prefix) { Prefix() = prefix; }

void SetErrorSink(std::function<void(std::string_view)> sink) { ErrorSink() = std::move(sink); }

void LogError(std::string_view message) {
  if (ErrorSink()) return ErrorSink()(message);
  Emit(absl::StrCat(Prefix(), "error: ", message));
}
void LogErrorFrom(std::string_view who, std::string_view message) {
  if (ErrorSink()) return ErrorSink()(absl::StrCat(who, ": ", message));
  Emit(absl::StrCat(Prefix(), who, ": error: ", message));
}
void LogDebugFrom(std::string_view who, std::string_view message) {
  if (Verbose()) Emit(absl::StrCat(Prefix(), who, ": debug: ", message));
}
void LogWarning(std::string_view message) {
  if (ErrorSink()) return ErrorSink()(absl::StrCat("warning: ", message));
  Emit(absl::StrCat(Prefix(), "warning: ", message));
}
void LogNote(std::string_view message) {
  if (ErrorSink()) return ErrorSink()(message);
  Emit(absl::StrCat(Prefix(), message));
}
void LogDebugLine(std::string_view message) { Emit(absl::StrCat(Prefix(), "debug: ", message)); }

}  // namespace blk
