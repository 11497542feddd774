#include "src/backends/script/program_device.h"

#include <algorithm>
#include <cerrno>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "src/backends/script/parse.h"
#include "src/core/buffer.h"
#include "src/core/trace.h"

namespace blk::script {
namespace {

using Known = MethodCaller::Known;

constexpr size_t kCacheStepBytes = 256 << 10;  // when memory is short

const char* TrueOrFalse(bool value) { return value ? "true" : "false"; }

// A client waits for this long, at most, for its disk to be opened.
constexpr int64_t kOpenTimeoutNs = int64_t{limits::kHandshakeSecondsMax} * 1'000'000'000;

class ProgramDevice final : public Device {
 public:
  ProgramDevice(Asker asker, std::string handle, Facts facts)
      : Device(std::move(facts)), asker_(std::move(asker)), handle_(std::move(handle)) {}

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    MethodCall method = Make(call, "pread", offset, into.size());
    method.into = into;
    co_return co_await asker_.Demand(std::move(method));
  }

  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override {
    MethodCall method = Make(call, "pwrite", offset, from.size());
    method.arguments.push_back(call.flags & kFua ? "fua" : "");
    method.input = from;
    co_return co_await asker_.Demand(std::move(method));
  }

  Task<absl::Status> DoFlush(const Call& call) override {
    if (!facts().flush) co_return absl::OkStatus();
    MethodCall method{.method = "flush", .arguments = {handle_}, .stop = call.stop};
    co_return co_await asker_.Demand(std::move(method));
  }

  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override {
    if (!facts().trim) co_return absl::OkStatus();
    MethodCall method = Make(call, "trim", offset, length);
    method.arguments.push_back(call.flags & kFua ? "fua" : "");
    co_return co_await asker_.Demand(std::move(method));
  }

  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override {
    if (facts().zero) {
      MethodCall method = Make(call, "zero", offset, length);
      std::vector<std::string_view> flags;
      if (call.flags & kFua) flags.push_back("fua");
      if (!(call.flags & kNoHole)) flags.push_back("may_trim");
      if (call.flags & kFastZero) flags.push_back("fast");
      method.arguments.push_back(absl::StrJoin(flags, ","));
      absl::Status status = co_await asker_.Demand(std::move(method));
      const int error = ErrnoOf(status);
      if (error != EOPNOTSUPP && error != ENOTSUP) co_return status;
    }
    co_return co_await Device::DoZero(call, offset, length);
  }

  Task<absl::Status> DoCache(const Call& call, uint64_t offset, uint64_t length) override {
    if (facts().cache == Support::kNative)
      co_return co_await asker_.Demand(Make(call, "cache", offset, length));
    if (facts().cache == Support::kNone) co_return absl::OkStatus();
    // As few reads as can be, as nbdkit does it: each may be a process.
    size_t most = std::min<uint64_t>(length, limits::kRequestBytesMax);
    MemoryBudget& budget = call.budget ? *call.budget : MemoryBudget::Process();
    const bool taken = budget.TryTake(most);
    absl::Cleanup give = [&] {
      if (taken) budget.Give(most);
    };
    if (!taken) most = std::min(most, kCacheStepBytes);
    Buffer buffer(most);
    while (length > 0) {
      const size_t step = std::min<uint64_t>(length, buffer.size());
      BLK_CO_RETURN_IF_ERROR(co_await DoRead(call, offset, buffer.span().first(step)));
      offset += step;
      length -= step;
    }
    co_return absl::OkStatus();
  }

  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override {
    if (!facts().extents) co_return co_await Device::DoExtents(call, context, list);
    MethodCall method = Make(call, "extents", list->next(), list->end() - list->next());
    method.arguments.push_back(call.flags & kRequestOne ? "req_one" : "");
    BLK_CO_ASSIGN_OR_RETURN(Answer answer, co_await asker_.Ask(std::move(method)));
    if (!answer.done()) co_return co_await Device::DoExtents(call, context, list);
    absl::Status status = ReadExtents(answer.output, list);
    if (status.ok()) co_return status;
    status = Annotate(status, absl::StrCat(asker_.caller->name(), ": extents"));
    LogError(status.message());
    co_return ErrnoErrorAsIs(EIO, status.message());
  }

  Task<absl::Status> DoClose() override {
    asker_.session = nullptr;
    MethodCall method{.method = "close", .arguments = {handle_}, .timeout_ns_max = kOpenTimeoutNs};
    (void)co_await asker_.Ask(std::move(method));  // a failure was logged
    co_return absl::OkStatus();
  }

 private:
  MethodCall Make(const Call& call, std::string method, uint64_t offset, uint64_t length) const {
    return {.method = std::move(method),
            .arguments = {handle_, absl::StrCat(length), absl::StrCat(offset)},
            .stop = call.stop};
  }

  Asker asker_;
  const std::string handle_;
};

// Asks for the facts of one handle, one after the other, in the order in which nbdkit does.
class FactFinder {
 public:
  FactFinder(const Asker& asker, const std::string& handle) : asker_(asker), handle_(handle) {}

  Task<absl::StatusOr<Facts>> Find(bool read_only) {
    Facts facts;
    facts.block_is_advice = true;
    BLK_CO_RETURN_IF_ERROR(co_await FindShape(&facts));
    absl::StatusOr<bool> writes = false;
    if (!read_only) writes = co_await AskWhether("can_write", "pwrite");
    if (!writes.ok()) co_return writes.status();
    facts.read_only = !*writes;
    absl::StatusOr<bool> flush = co_await AskWhether("can_flush", "flush");
    if (!flush.ok()) co_return flush.status();
    facts.flush = *flush;
    facts.fua = Support::kNone;
    if (!facts.read_only) BLK_CO_RETURN_IF_ERROR(co_await FindWrites(&facts));
    BLK_CO_RETURN_IF_ERROR(co_await Set("is_rotational", "", &facts.rotational));
    BLK_CO_RETURN_IF_ERROR(co_await Set("can_multi_conn", "", &facts.multi_conn));
    BLK_CO_RETURN_IF_ERROR(co_await Set("can_extents", "extents", &facts.extents));
    const Support cache =
        asker_.caller->Has("cache") == Known::kYes ? Support::kNative : Support::kNone;
    BLK_CO_RETURN_IF_ERROR(co_await FindSupport("can_cache", cache, &facts.cache));
    co_return facts;
  }

 private:
  Task<absl::StatusOr<Answer>> Ask(std::string method) {
    co_return co_await asker_.Ask(
        {.method = std::move(method), .arguments = {handle_}, .timeout_ns_max = kOpenTimeoutNs});
  }

  // What `method` answers, or else whether the program has `implied`.
  Task<absl::StatusOr<bool>> AskWhether(std::string method, std::string_view implied) {
    if (!implied.empty() && asker_.caller->Has(method) != Known::kYes &&
        asker_.caller->Has(implied) == Known::kYes)
      co_return true;
    BLK_CO_ASSIGN_OR_RETURN(Answer answer, co_await Ask(std::move(method)));
    co_return answer.done();
  }
  Task<absl::Status> Set(std::string method, std::string_view implied, bool* fact) {
    BLK_CO_ASSIGN_OR_RETURN(*fact, co_await AskWhether(std::move(method), implied));
    co_return absl::OkStatus();
  }

  template <typename T>
  absl::Status Read(std::string_view method, absl::StatusOr<T> value, T* into) const {
    if (!value.ok())
      return Annotate(value.status(), absl::StrCat(asker_.caller->name(), ": ", method));
    *into = *std::move(value);
    return absl::OkStatus();
  }

  Task<absl::Status> FindSupport(std::string method, Support otherwise, Support* fact) {
    BLK_CO_ASSIGN_OR_RETURN(Answer answer, co_await Ask(method));
    *fact = otherwise;
    if (!answer.done()) co_return absl::OkStatus();
    co_return Read(method, ReadSupport(answer.output), fact);
  }

  Task<absl::Status> FindShape(Facts* facts) {
    BLK_CO_ASSIGN_OR_RETURN(Answer size, co_await Ask("get_size"));
    if (!size.done())
      co_return ErrnoErrorAsIs(
          EIO, absl::StrCat(asker_.caller->name(), ": it needs the method get_size"));
    BLK_CO_RETURN_IF_ERROR(Read("get_size", ReadSize(size.output), &facts->size));
    BLK_CO_ASSIGN_OR_RETURN(Answer text, co_await Ask("export_description"));
    if (text.done()) facts->description = WithoutNewline(text.output);
    BLK_CO_ASSIGN_OR_RETURN(Answer block, co_await Ask("block_size"));
    if (!block.done()) co_return absl::OkStatus();
    std::optional<BlockSizes> sizes;
    BLK_CO_RETURN_IF_ERROR(Read("block_size", ReadBlockSizes(block.output), &sizes));
    if (sizes) facts->block = *sizes;
    co_return absl::OkStatus();
  }

  // Without a way of its own to zero, writing zeroes is what happens, and a fast one fails fast.
  Task<absl::Status> FindWrites(Facts* facts) {
    BLK_CO_RETURN_IF_ERROR(co_await Set("can_zero", "zero", &facts->zero));
    BLK_CO_ASSIGN_OR_RETURN(Answer fast, co_await Ask("can_fast_zero"));
    facts->fast_zero = fast.missing() ? !facts->zero : fast.done();
    BLK_CO_RETURN_IF_ERROR(co_await Set("can_trim", "trim", &facts->trim));
    co_return co_await FindSupport("can_fua", facts->flush ? Support::kEmulate : Support::kNone,
                                   &facts->fua);
  }

  const Asker& asker_;
  const std::string& handle_;
};

}  // namespace

std::string PeerWord(const Peer* peer) {
  if (peer == nullptr || peer->address_bytes == 0) return "";
  if (peer->address.ss_family != AF_UNIX) return peer->text;
  return absl::StrCat("unix ", peer->pid, " ", peer->uid, " ", peer->gid);
}

Task<absl::StatusOr<Answer>> Asker::Ask(MethodCall call) const {
  if (caller->Has(call.method) == Known::kNo) co_return Answer::Missing();
  const bool zero = call.method == "zero";
  LogDebug(caller->name(), ": ", call.method, " ", absl::StrJoin(call.arguments, " "));
  Answer answer = co_await caller->Call(std::move(call));
  if (session != nullptr && answer.demand != Answer::Demand::kNone) {
    if (answer.demand == Answer::Demand::kShutdown) {
      session->ShutdownServer();
    } else {
      session->RequestDisconnect(answer.demand == Answer::Demand::kDisconnectNow
                                     ? Session::Disconnect::kHard
                                     : Session::Disconnect::kSoft);
    }
  }
  if (answer.kind != Answer::Kind::kFailed) co_return answer;
  const int error = ErrnoOf(answer.error);
  const bool expected = error == ECANCELED || (zero && (error == EOPNOTSUPP || error == ENOTSUP));
  if (!expected) LogError(answer.error.message());
  co_return answer.error;
}

Task<absl::Status> Asker::Demand(MethodCall call) const {
  std::string method = call.method;
  BLK_CO_ASSIGN_OR_RETURN(Answer answer, co_await Ask(std::move(call)));
  if (answer.done()) co_return absl::OkStatus();
  // As nbdkit has it: zero may be missing where can_zero says otherwise, others may not.
  absl::Status status = ErrnoErrorAsIs(
      method == "zero" ? EOPNOTSUPP : EIO,
      absl::StrCat(caller->name(), ": ", method,
                   answer.missing() ? " is not there, though it was announced"
                                    : " ended with exit code 3, which only says no to questions"));
  if (method != "zero") LogError(status.message());
  co_return status;
}

Task<absl::StatusOr<std::string>> DefaultExport(const Asker& asker, const OpenArgs& args) {
  MethodCall call{.method = "default_export",
                  .arguments = {TrueOrFalse(args.read_only), TrueOrFalse(args.tls)},
                  .timeout_ns_max = kOpenTimeoutNs};
  BLK_CO_ASSIGN_OR_RETURN(Answer answer, co_await asker.Ask(std::move(call)));
  if (!answer.done()) co_return std::string();
  BLK_CO_ASSIGN_OR_RETURN(std::vector<ExportEntry> exports, ReadExports(answer.output));
  co_return exports.empty() ? "" : exports[0].name;
}

Task<absl::StatusOr<DevicePtr>> OpenProgramDevice(Asker asker, OpenArgs args,
                                                  std::string default_name) {
  const std::string name = args.export_name.empty() ? default_name : args.export_name;
  MethodCall open{.method = "open",
                  .arguments = {TrueOrFalse(args.read_only), name, TrueOrFalse(args.tls)},
                  .timeout_ns_max = kOpenTimeoutNs};
  if (asker.caller->wants_peer()) open.arguments.push_back(PeerWord(args.peer));
  BLK_CO_ASSIGN_OR_RETURN(Answer answer, co_await asker.Ask(std::move(open)));
  if (answer.kind == Answer::Kind::kFalse)
    co_return ErrnoErrorAsIs(EIO, absl::StrCat(asker.caller->name(), ": open answers no"));
  std::string handle(WithoutNewline(answer.output));
  auto facts = co_await FactFinder(asker, handle).Find(args.read_only);
  if (!facts.ok()) {
    (void)co_await asker.Ask(
        {.method = "close", .arguments = {handle}, .timeout_ns_max = kOpenTimeoutNs});
    co_return facts.status();
  }
  if (name != args.export_name) facts->export_name = name;
  co_return std::make_shared<ProgramDevice>(std::move(asker), std::move(handle), *std::move(facts));
}

}  // namespace blk::script
