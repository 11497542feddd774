#include "src/backends/script/program_per_call.h"

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace blk::script {
namespace {

// nbdkit-sh-plugin(3), "Exit codes".
enum ExitCode {
  kExitDone = 0,
  kExitMissing = 2,
  kExitFalse = 3,
  kExitShutdownDone = 4,
  kExitShutdownFailed = 5,
  kExitDisconnectNow = 6,
  kExitDisconnectDone = 7,
  kExitDisconnectFailed = 8,
};

Answer::Demand DemandOf(int code) {
  switch (code) {
    case kExitShutdownDone:
    case kExitShutdownFailed:
      return Answer::Demand::kShutdown;
    case kExitDisconnectNow:
      return Answer::Demand::kDisconnectNow;
    case kExitDisconnectDone:
    case kExitDisconnectFailed:
      return Answer::Demand::kDisconnect;
    default:
      return Answer::Demand::kNone;
  }
}

bool IsDone(int code) {
  return code == kExitDone || code == kExitShutdownDone || code == kExitDisconnectDone;
}

}  // namespace

Task<absl::Status> ProgramPerCall::Start() {
  BLK_CO_RETURN_IF_ERROR(folder_.Make());
  co_return Prepare();
}

Task<Answer> ProgramPerCall::Call(MethodCall call) {
  if (Has(call.method) == Known::kNo) co_return Answer::Missing();
  Command command;
  command.argv = CommandFor(call.method);
  command.argv.push_back(call.method);
  command.argv.insert(command.argv.end(), call.arguments.begin(), call.arguments.end());
  command.environment = {{"tmpdir", folder_.path()}};
  RunLimits limits;
  limits.timeout_ns = std::min(timeout_ns_, call.timeout_ns_max);
  limits.stop = call.stop;
  if (!call.into.empty()) limits.output_bytes_max = call.into.size();
  auto output =
      co_await RunCommand(std::move(command), {call.input.data(), call.input.size()}, limits);
  if (ErrnoOf(output.status()) == EFBIG) {
    co_return Answer::Failed(
        ErrnoErrorAsIs(EIO, absl::StrCat(name_, ": ", call.method, " printed more than ",
                                         limits.output_bytes_max, " bytes")));
  }
  if (!output.ok())
    co_return Answer::Failed(Annotate(output.status(), absl::StrCat(name_, ": ", call.method)));
  co_return Judge(call, *std::move(output));
}

Answer ProgramPerCall::Judge(const MethodCall& call, CommandOutput output) const {
  const int code = output.status.code;
  if (output.status.signal != 0) {
    return Answer::Failed(ErrnoErrorAsIs(
        EIO, absl::StrCat(name_, ": ", call.method, " was ", output.status.ToString())));
  }
  if (code == kExitMissing) return Answer::Missing();
  if (code == kExitFalse) return {.kind = Answer::Kind::kFalse};
  Answer answer{.demand = DemandOf(code), .output = std::move(output.output)};
  // Who says nothing but that it ends means that.
  if (answer.demand != Answer::Demand::kNone && output.errors.empty()) output.errors = "ESHUTDOWN";
  absl::Status status =
      IsDone(code) ? Take(call, &answer) : ReportedError(name_, call.method, output.errors);
  if (!status.ok()) {
    answer.kind = Answer::Kind::kFailed;
    answer.error = std::move(status);
  }
  return answer;
}

// Output that has a place to go must fill it exactly.
absl::Status ProgramPerCall::Take(const MethodCall& call, Answer* answer) const {
  if (call.into.empty()) return absl::OkStatus();
  if (answer->output.size() != call.into.size()) {
    return ErrnoErrorAsIs(EIO,
                          absl::StrCat(name_, ": ", call.method, " printed ", answer->output.size(),
                                       " bytes instead of ", call.into.size()));
  }
  std::memcpy(call.into.data(), answer->output.data(), call.into.size());
  answer->output.clear();
  return absl::OkStatus();
}

}  // namespace blk::script
