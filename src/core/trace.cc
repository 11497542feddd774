#include "src/core/trace.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <string>
#include <vector>

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

std::vector<std::string>& DebugFlags() {
  static auto& flags = *new std::vector<std::string>;
  return flags;
}

// What clients and programs say must not look like lines of ours.
std::string Escaped(std::string_view text) {
  constexpr std::string_view kControls = "\a\b\t\n\v\f\r\\", kLetters = "abtnvfr\\";
  std::string result;
  for (char c : text) {
    const size_t control = kControls.find(c);
    if (control != std::string_view::npos) {
      result += {'\\', kLetters[control]};
    } else if (static_cast<unsigned char>(c) < ' ' || c == 0x7f) {
      absl::StrAppend(&result, "\\x", absl::Hex(static_cast<unsigned char>(c), absl::kZeroPad2));
    } else {
      result += c;
    }
  }
  return result;
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
  if (Verbose()) Emit(absl::StrCat(Prefix(), who, ": debug: ", Escaped(message)));
}
void LogWarning(std::string_view message) {
  if (ErrorSink()) return ErrorSink()(absl::StrCat("warning: ", message));
  Emit(absl::StrCat(Prefix(), "warning: ", message));
}
void LogNote(std::string_view message) {
  if (ErrorSink()) return ErrorSink()(message);
  Emit(absl::StrCat(Prefix(), message));
}
void LogDebugLine(std::string_view message) {
  Emit(absl::StrCat(Prefix(), "debug: ", Escaped(message)));
}

void SetDebugFlag(std::string_view name) { DebugFlags().emplace_back(name); }
bool DebugFlag(std::string_view name) {
  return std::find(DebugFlags().begin(), DebugFlags().end(), name) != DebugFlags().end();
}

}  // namespace blk
