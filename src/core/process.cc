#include "src/core/process.h"

#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>

#include "absl/cleanup/cleanup.h"
#include "absl/functional/any_invocable.h"
#include "absl/strings/str_split.h"
#include "src/core/loop.h"
#include "src/core/scope.h"
#include "src/core/spawner.h"
#include "src/core/stream.h"

namespace blk {
namespace {

using internal::SpawnBody;

constexpr std::string_view kDefaultPath = "/usr/local/bin:/usr/bin:/bin";
constexpr size_t kPidDigitsMax = 20;

// The program's environment: ours without what is unset or replaced, then what is added.
std::vector<std::string> BuildEnvironment(const Command& command) {
  auto replaced = [&](std::string_view name) {
    return std::ranges::count(command.unset, name) > 0 ||
           (command.listen_pid && name == "LISTEN_PID") ||
           std::ranges::count(command.environment, name,
                              &std::pair<std::string, std::string>::first) > 0;
  };
  std::vector<std::string> result;
  for (char** entry = environ; entry && *entry; ++entry) {
    std::string_view text = *entry;
    if (!replaced(text.substr(0, text.find('=')))) result.emplace_back(text);
  }
  const auto& added = command.environment;
  for (size_t i = 0; i < added.size(); ++i) {
    bool last = std::ranges::none_of(added.begin() + i + 1, added.end(), [&](const auto& later) {
      return later.first == added[i].first;
    });
    if (last) result.push_back(absl::StrCat(added[i].first, "=", added[i].second));
  }
  return result;
}

std::string PathOf(const Command& command) {
  for (auto it = command.environment.rbegin(); it != command.environment.rend(); ++it)
    if (it->first == "PATH") return it->second;
  if (std::ranges::count(command.unset, "PATH") > 0) return std::string(kDefaultPath);
  const char* path = getenv("PATH");
  return path ? path : std::string(kDefaultPath);
}

// Lays a request out as spawner.h says.
class BodyBuilder {
 public:
  BodyBuilder() : bytes_(sizeof(SpawnBody), '\0') {}

  uint64_t AddString(std::string_view text, size_t zeroes = 1) {
    uint64_t offset = bytes_.size();
    bytes_.append(text);
    bytes_.append(zeroes, '\0');
    return offset;
  }
  uint64_t AddTable(const std::vector<uint64_t>& entries) {
    bytes_.resize((bytes_.size() + 7) / 8 * 8);
    uint64_t offset = bytes_.size();
    bytes_.append(reinterpret_cast<const char*>(entries.data()), entries.size() * 8);
    return offset;
  }
  std::string Finish(const SpawnBody& body) && {
    std::memcpy(bytes_.data(), &body, sizeof body);
    return std::move(bytes_);
  }

 private:
  std::string bytes_;
};

std::string BuildBody(const Command& command, const std::string& path,
                      const std::vector<uint64_t>& targets) {
  BodyBuilder builder;
  SpawnBody body{};
  body.own_group = command.own_group;
  body.target_count = static_cast<uint32_t>(targets.size());
  body.path = builder.AddString(path);
  body.shell = builder.AddString("/bin/sh");
  std::vector<uint64_t> arguments{0}, environment;
  for (const std::string& argument : command.argv) arguments.push_back(builder.AddString(argument));
  arguments.push_back(0);
  for (const std::string& entry : BuildEnvironment(command))
    environment.push_back(builder.AddString(entry));
  if (command.listen_pid) {
    constexpr std::string_view kName = "LISTEN_PID=";
    environment.push_back(builder.AddString(kName, kPidDigitsMax));
    body.listen_pid = environment.back() + kName.size();
  }
  environment.push_back(0);
  body.arguments = builder.AddTable(arguments);
  body.environment = builder.AddTable(environment);
  body.targets = builder.AddTable(targets);
  return std::move(builder).Finish(body);
}

absl::StatusOr<Descriptor> MemoryFile(std::string_view bytes) {
  Descriptor file(memfd_create("blk-command", MFD_CLOEXEC));
  if (!file.valid()) return ErrnoError(errno, "cannot make a memory file");
  while (!bytes.empty()) {
    ssize_t done = write(file.get(), bytes.data(), bytes.size());
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return ErrnoError(errno, "cannot write to a memory file");
    bytes.remove_prefix(done);
  }
  return file;
}

// The descriptors that a program gets, and our ends of its pipes.
struct Plumbing {
  std::vector<uint64_t> targets;
  std::vector<int> sources;
  std::vector<Descriptor> owned;  // closed once the program has them
  Descriptor ours[3];
};

absl::Status Plumb(const Redirect& redirect, int target, Plumbing* plumbing) {
  Redirect::Kind kind = redirect.kind;
  int source = redirect.fd;
  if (kind == Redirect::Kind::kInherit) {
    source = target;
    // A program without a standard descriptor would get the next file that it opens as one.
    if (fcntl(target, F_GETFD) < 0) kind = Redirect::Kind::kNull;
  }
  if (kind == Redirect::Kind::kNull) {
    source = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (source < 0) return ErrnoError(errno, "cannot open /dev/null");
    plumbing->owned.emplace_back(source);
  } else if (kind == Redirect::Kind::kPipe) {
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0) return ErrnoError(errno, "cannot make a pipe");
    source = ends[target == 0 ? 0 : 1];
    plumbing->owned.emplace_back(source);
    plumbing->ours[target].Reset(ends[target == 0 ? 1 : 0]);
  }
  plumbing->targets.push_back(target);
  plumbing->sources.push_back(source);
  return absl::OkStatus();
}

absl::StatusOr<Plumbing> PlumbAll(const Command& command) {
  Plumbing plumbing;
  BLK_RETURN_IF_ERROR(Plumb(command.input, 0, &plumbing));
  BLK_RETURN_IF_ERROR(Plumb(command.output, 1, &plumbing));
  BLK_RETURN_IF_ERROR(Plumb(command.errors, 2, &plumbing));
  for (auto [target, source] : command.descriptors) {
    BLK_CHECK(target > 2 && target <= static_cast<int>(internal::kSpawnTargetMax));
    plumbing.targets.push_back(target);
    plumbing.sources.push_back(source);
  }
  if (plumbing.sources.size() + internal::kSpawnFixedDescriptors > internal::kSpawnDescriptorsMax)
    return ErrnoErrorAsIs(EMFILE, "a program cannot be given so many descriptors");
  return plumbing;
}

absl::Status SendRequest(int socket, const std::vector<int>& descriptors) {
  internal::SpawnPacket packet;
  packet.descriptors = static_cast<uint32_t>(descriptors.size());
  iovec part{&packet, sizeof packet};
  alignas(cmsghdr) char control[CMSG_SPACE(internal::kSpawnDescriptorsMax * sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = CMSG_SPACE(descriptors.size() * sizeof(int));
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(descriptors.size() * sizeof(int));
  std::memcpy(CMSG_DATA(header), descriptors.data(), descriptors.size() * sizeof(int));
  for (;;) {
    if (sendmsg(socket, &message, MSG_NOSIGNAL) >= 0) return absl::OkStatus();
    if (errno == EINTR) continue;
    return ErrnoError(errno, "cannot reach the process that starts programs");
  }
}

// Waits until the program runs, or says why not.
absl::Status ReadReport(int fd) {
  internal::SpawnFailure failure{};
  ssize_t got;
  do {
    got = read(fd, &failure, sizeof failure);
  } while (got < 0 && errno == EINTR);
  if (got != sizeof failure) return absl::OkStatus();
  switch (failure.stage) {
    case internal::kSpawnExec:
      return ErrnoError(failure.error, "cannot run it");
    case internal::kSpawnDirectory:
      return ErrnoError(failure.error, "cannot enter its directory");
    case internal::kSpawnDescriptors:
      return ErrnoError(failure.error, "cannot pass descriptors to it");
    case internal::kSpawnIdentity:
      return ErrnoError(failure.error, "cannot change its user or group");
    default:
      if (failure.error == EPERM)  // Spawner::Close()
        return ErrnoErrorAsIs(EPERM,
                              "the sandbox lets no more programs be started, since no layer "
                              "declares that it needs some; --sandbox=off allows them");
      return ErrnoError(failure.error, "cannot start another process");
  }
}

// One reply; EAGAIN when there is none yet and `flags` say not to wait; EIO at the end.
absl::StatusOr<internal::SpawnReply> ReceiveReply(int channel, int flags) {
  internal::SpawnReply reply{};
  // ECONNRESET tells that the spawner closed before it read a signal of ours; its last reply is
  // still there to be read.
  for (int resets = 0; resets < 2;) {
    ssize_t got = recv(channel, &reply, sizeof reply, flags);
    if (got == sizeof reply) return reply;
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN) return ErrnoErrorAsIs(EAGAIN, "nothing yet");
    if (got == 0 || errno != ECONNRESET) break;
    ++resets;
  }
  return ErrnoErrorAsIs(EIO, "the process that starts programs was killed");
}

}  // namespace

Command ShellCommand(std::string script) {
  Command command;
  command.argv = {"sh", "-c", std::move(script)};
  return command;
}

Command BashCommand(std::string script) {
  Command command = ShellCommand(std::move(script));
  if (FindProgram("bash", PathOf(command)).ok()) command.argv[0] = "bash";
  return command;
}

void PutOurselvesOnPath(Command* command) {
  char self[4096];
  ssize_t bytes = readlink("/proc/self/exe", self, sizeof self);
  if (bytes <= 0 || bytes == sizeof self) return;
  std::string_view path(self, bytes);
  path = path.substr(0, std::max<size_t>(path.rfind('/'), 1));
  command->environment.emplace_back("PATH", absl::StrCat(path, ":", PathOf(*command)));
}

absl::StatusOr<std::string> FindProgram(const std::string& name, const std::string& path) {
  if (name.find('/') != std::string::npos) return name;
  int error = ENOENT;
  for (std::string_view directory : absl::StrSplit(path, ':')) {
    if (name.empty()) break;
    std::string file = absl::StrCat(directory.empty() ? "." : directory, "/", name);
    struct stat facts;
    if (stat(file.c_str(), &facts) < 0 || !S_ISREG(facts.st_mode)) continue;
    if (access(file.c_str(), X_OK) == 0) return file;
    error = errno;
  }
  if (error == ENOENT)
    return ErrnoErrorAsIs(error, absl::StrCat("there is no such program on the PATH (", path, ")"));
  return ErrnoError(error, "cannot run it");
}

std::string ExitStatus::ToString() const {
  if (signal == 0) return absl::StrCat("exit status ", code);
  const char* name = sigabbrev_np(signal);
  return name ? absl::StrCat("killed by SIG", name) : absl::StrCat("killed by signal ", signal);
}

absl::StatusOr<std::unique_ptr<Process>> StartProcess(const Command& command) {
  BLK_CHECK(!command.argv.empty());
  const std::string& name = command.argv[0];
  auto failed = [&](const absl::Status& why) { return Annotate(why, name); };
  auto path = FindProgram(name, PathOf(command));
  if (!path.ok()) return failed(path.status());
  auto socket = internal::SpawnerSocket();
  if (!socket.ok()) return failed(socket.status());
  auto plumbing = PlumbAll(command);
  if (!plumbing.ok()) return failed(plumbing.status());
  auto body = MemoryFile(BuildBody(command, *path, plumbing->targets));
  if (!body.ok()) return failed(body.status());
  const char* where = command.directory.empty() ? "." : command.directory.c_str();
  Descriptor directory(open(where, O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (!directory.valid())
    return failed(ErrnoError(errno, absl::StrCat("cannot enter the directory ", where)));
  int channel[2], report[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, channel) < 0)
    return failed(ErrnoError(errno, "cannot make a socket"));
  Descriptor channel_ours(channel[0]), channel_theirs(channel[1]);
  if (pipe2(report, O_CLOEXEC) < 0) return failed(ErrnoError(errno, "cannot make a pipe"));
  Descriptor report_ours(report[0]), report_theirs(report[1]);

  std::vector<int> descriptors{body->get(), channel[1], report[1], directory.get()};
  descriptors.insert(descriptors.end(), plumbing->sources.begin(), plumbing->sources.end());
  if (absl::Status sent = SendRequest(*socket, descriptors); !sent.ok()) return failed(sent);
  plumbing->owned.clear();
  channel_theirs.Reset();
  report_theirs.Reset();
  if (absl::Status started = ReadReport(report_ours.get()); !started.ok()) return failed(started);
  auto reply = ReceiveReply(channel_ours.get(), 0);
  if (!reply.ok()) return failed(reply.status());

  std::unique_ptr<Process> process(new Process);
  process->pid_ = reply->value;
  process->name_ = name;
  process->channel_ = std::move(channel_ours);
  process->input = std::move(plumbing->ours[0]);
  process->output = std::move(plumbing->ours[1]);
  process->errors = std::move(plumbing->ours[2]);
  return process;
}

Process::~Process() {
  BLK_CHECK(waiting_ == nullptr);
  if (!ended_) (void)Kill(SIGKILL);
}

bool Process::Poll() {
  if (ended_) return true;
  auto reply = ReceiveReply(channel_.get(), MSG_DONTWAIT);
  if (!reply.ok() && ErrnoOf(reply.status()) == EAGAIN) return false;
  ended_ = true;
  if (!reply.ok()) {
    result_ = Annotate(reply.status(), name_);
  } else if (WIFSIGNALED(reply->value)) {
    result_ = ExitStatus{0, WTERMSIG(reply->value)};
  } else {
    result_ = ExitStatus{WEXITSTATUS(reply->value), 0};
  }
  return true;
}

Task<absl::StatusOr<ExitStatus>> Process::Wait(int64_t timeout_ns) {
  BLK_CHECK(waiting_ == nullptr);
  if (Poll()) co_return result_;
  Loop* loop = Loop::Current();
  auto watch = loop->WatchDescriptor(channel_.get());
  waiting_ = watch.get();
  bool late = false;
  Loop::TimerId timer{};
  if (timeout_ns != INT64_MAX)
    timer = loop->StartTimer(loop->NowNs() + timeout_ns, [&late, &watch] {
      late = true;
      watch->Cancel();
    });
  absl::Status ready;
  while (!Poll() && ready.ok()) ready = co_await watch->Readable();
  loop->CancelTimer(timer);
  waiting_ = nullptr;
  if (ended_) co_return result_;
  if (late) co_return ErrnoErrorAsIs(ETIMEDOUT, absl::StrCat(name_, " has not ended in time"));
  co_return ready;
}

void Process::CancelWait() {
  if (waiting_) waiting_->Cancel();
}

absl::StatusOr<ExitStatus> Process::WaitBlocking(int timeout_ms) {
  pollfd channel{channel_.get(), POLLIN, 0};
  while (!Poll()) {
    int ready = poll(&channel, 1, timeout_ms);
    if (ready == 0) return ErrnoErrorAsIs(ETIMEDOUT, absl::StrCat(name_, " has not ended in time"));
    if (ready < 0 && errno != EINTR) return ErrnoError(errno, "cannot wait for a program");
  }
  return result_;
}

absl::Status Process::Kill(int signal) {
  int32_t request = signal;
  // The exit status arrives a moment before the channel is closed.
  bool ended = ended_;
  while (!ended) {
    if (send(channel_.get(), &request, sizeof request, MSG_NOSIGNAL | MSG_DONTWAIT) >= 0)
      return absl::OkStatus();
    ended = errno == EPIPE || errno == ECONNRESET;
    if (!ended && errno != EAGAIN && errno != EINTR)
      return ErrnoError(errno, absl::StrCat("cannot send a signal to ", name_));
    // The kernel queues about ten; the spawner is about to take them.
    pollfd channel{channel_.get(), POLLOUT, 0};
    if (!ended) poll(&channel, 1, -1);
  }
  return ErrnoErrorAsIs(ESRCH, absl::StrCat(name_, " has ended"));
}

namespace {

Task<void> FeedInput(StreamPtr* stream, std::string_view input) {
  iovec part{const_cast<char*>(input.data()), input.size()};
  // A program need not read all that it is given.
  (void)co_await (*stream)->WriteAll({&part, 1});
  stream->reset();  // closed: the end of its input
}

// Keeps the first `bytes_max` bytes and reads on to the end, so that the program does not stall.
// With `overflow`, more than that is the end.
Task<void> Collect(Stream* stream, size_t bytes_max, std::string* into, Process* overflow) {
  std::vector<char> buffer(64 << 10);
  for (;;) {
    auto got = co_await stream->ReadSome(buffer);
    if (!got.ok() || *got == 0) co_return;
    size_t room = bytes_max - std::min(bytes_max, into->size());
    into->append(buffer.data(), std::min(*got, room));
    if (*got <= room || overflow == nullptr) continue;
    into->push_back('\0');  // one more than allowed: how RunCommand sees it
    (void)overflow->Kill(SIGKILL);
    co_return;
  }
}

// Ends the wait for `process` once `stop` is requested, on whichever thread that happens.
class WaitStopper {
 public:
  WaitStopper(const std::stop_token* stop, Process* process) {
    if (stop == nullptr) return;
    callback_.emplace(*stop, [loop = Loop::Current(), cell = cell_] { loop->Spawn(End(cell)); });
    *cell_ = process;
  }
  ~WaitStopper() { *cell_ = nullptr; }

 private:
  static Task<void> End(std::shared_ptr<Process*> cell) {
    if (*cell) (*cell)->CancelWait();
    co_return;
  }
  // Null when there is nobody to tell. Used on the loop only.
  std::shared_ptr<Process*> cell_ = std::make_shared<Process*>(nullptr);
  std::optional<std::stop_callback<absl::AnyInvocable<void()>>> callback_;
};

}  // namespace

Task<absl::StatusOr<CommandOutput>> RunCommand(Command command, std::string_view input,
                                               RunLimits limits) {
  command.own_group = true;
  command.input = input.empty() ? Redirect::Null() : Redirect::Pipe();
  command.output = command.errors = Redirect::Pipe();
  absl::StatusOr<std::unique_ptr<Process>> started = absl::UnknownError("not started");
  co_await Loop::Current()->Offload([&] { started = StartProcess(command); });
  BLK_CO_RETURN_IF_ERROR(started.status());
  if (limits.stop && limits.stop->stop_requested())
    co_return ErrnoErrorAsIs(ECANCELED, absl::StrCat(command.argv[0], " was not waited for"));
  Process& process = **started;
  CommandOutput result;
  StreamPtr feed, output = MakeSocketStream(process.output.Release()),
                  errors = MakeSocketStream(process.errors.Release());
  TaskScope scope;
  if (process.input.valid()) {
    feed = MakeSocketStream(process.input.Release());
    scope.Spawn(FeedInput(&feed, input));
  }
  scope.Spawn(Collect(output.get(), limits.output_bytes_max, &result.output, &process));
  scope.Spawn(Collect(errors.get(), limits.error_bytes_max, &result.errors, nullptr));
  absl::StatusOr<ExitStatus> status = ExitStatus{};
  {
    WaitStopper stopper(limits.stop, &process);
    status = co_await process.Wait(limits.timeout_ns);
  }
  if (!status.ok()) {
    (void)process.Kill(SIGKILL);
    (void)co_await process.Wait();
  }
  // Everything that it wrote is in the pipes now; others that hold them open are not waited for.
  if (feed) feed->Cancel();
  output->ShutdownRead();
  errors->ShutdownRead();
  co_await scope.Join();
  if (!status.ok()) co_return status.status();
  result.status = *status;
  if (result.output.size() > limits.output_bytes_max)
    co_return ErrnoErrorAsIs(EFBIG, absl::StrCat(process.name(), " writes more than ",
                                                 limits.output_bytes_max, " bytes of output"));
  co_return result;
}

absl::StatusOr<std::unique_ptr<ScriptSource>> ScriptSource::Start(Command command) {
  command.output = Redirect::Pipe();
  command.own_group = true;
  auto source = std::make_unique<ScriptSource>();
  BLK_ASSIGN_OR_RETURN(source->process_, StartProcess(command));
  return source;
}

absl::StatusOr<size_t> ScriptSource::Read(std::span<char> into) {
  for (;;) {
    ssize_t got = read(process_->output.get(), into.data(), into.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoError(errno, absl::StrCat("cannot read from ", process_->name()));
    at_end_ = got == 0;
    return static_cast<size_t>(got);
  }
}

absl::Status ScriptSource::Finish() {
  process_->output.Reset();
  if (!at_end_) {
    (void)process_->Kill(SIGKILL);
    (void)process_->WaitBlocking();
    return absl::OkStatus();
  }
  BLK_ASSIGN_OR_RETURN(ExitStatus status, process_->WaitBlocking());
  if (status.ok()) return absl::OkStatus();
  return ErrnoErrorAsIs(EIO, absl::StrCat(process_->name(), " failed: ", status.ToString()));
}

}  // namespace blk
