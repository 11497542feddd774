#include "src/tools/server.h"

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>

#include "src/core/sync.h"
#include "src/core/trace.h"
#include "src/proto/session_server.h"

namespace blk {
namespace {

// What one connection may hold in buffers; a single larger request is let through.
constexpr uint64_t kConnectionBytesMax = 64 << 20;

nbd::ExportInfo DescribeExport(const Device& device, const std::string& asked_name) {
  const Facts& facts = device.facts();
  nbd::ExportInfo info;
  info.size_bytes = device.size();
  info.flags = nbd::TransmissionFlagsFor(facts, nbd::ReplyStyle::kExtended);
  info.block_sizes = {facts.block.minimum, facts.block.preferred, facts.block.maximum};
  info.canonical_name = facts.export_name.empty() ? asked_name : facts.export_name;
  info.description = facts.description;
  info.contexts = facts.contexts;
  return info;
}

}  // namespace

// One client. Lives on its loop, except that Shutdown() is asked for from others.
class Server::Connection final : public nbd::ServerHandshakeHost, public Session {
 public:
  Connection(Server* server, uint64_t number, Loop* loop)
      : server_(*server), number_(number), loop_(loop) {}

  Loop* loop() const { return loop_; }

  Task<void> Run(StreamPtr stream) {
    stream_ = std::move(stream);
    if (!Who().empty()) LogDebug("accepted connection");
    LogDebug("connection ", number_, ": from ", stream_->peer().text);
    absl::Status status = co_await Serve();
    if (device_ && server_.stopping() && !cut_off_) co_await FlushAtEnd();
    co_await CloseExport();
    co_await RunAtEnd();
    if (greeted_) co_await SayGoodbye();
    if (!status.ok() && !server_.stopping() && !cut_off_) {
      if (!server_.options_.name.empty()) Complain(status.message());
      LogDebug("connection ", number_, ": ended: ", status.message());
    } else {
      LogDebug("connection ", number_, ": ended");
    }
  }

  // From this loop: stop after what is in flight; `hard`: now.
  void Shutdown(bool hard) {
    cut_off_ |= hard;
    if (session_ && hard) {
      session_->Abort();
    } else if (session_) {
      session_->StopReading();
    } else if (stream_) {
      stream_->Cancel();
    }
  }

  // ---- Session, for the layers
  void RequestDisconnect(Disconnect how) override {
    const bool ours = Loop::Current() == loop_;
    if (how == Disconnect::kSoft && ours && session_)
      return session_->Refuse();  // before the next request is looked at
    if (how == Disconnect::kHard && ours) {
      cut_off_ = true;
      stream_->ShutdownRead();
      stream_->ShutdownWrite();  // before the request that led to this is answered
    }
    loop_->Spawn(DisconnectSoon(how == Disconnect::kHard));
  }
  void ShutdownServer() override { server_.Stop(); }

  // ---- ServerHandshakeHost
  Task<absl::StatusOr<nbd::ExportCatalog>> ListExports() override {
    OpenArgs args = MakeArgs("");
    BLK_CO_ASSIGN_OR_RETURN(ExportList list, co_await server_.exports_->List(args));
    nbd::ExportCatalog catalog;
    for (ExportEntry& entry : list.exports)
      catalog.exports.push_back({std::move(entry.name), std::move(entry.description)});
    co_return catalog;
  }

  Task<absl::StatusOr<nbd::ExportInfo>> OpenExport(std::string name) override {
    co_await CloseExport();
    auto device = co_await server_.exports_->Open(MakeArgs(name));
    if (!device.ok()) {
      Complain(absl::StrCat("cannot open export \"", name, "\": ", device.status().message()));
      co_return device.status();
    }
    device_ = *std::move(device);
    nbd::ExportInfo info = DescribeExport(*device_, name);
    // nbdkit says nothing of sizes that no layer has asked for.
    const Facts& facts = device_->facts();
    const bool assumed = facts.block_is_assumed && facts.block == kAssumedBlockSizes;
    if (!server_.options_.name.empty() && (assumed || facts.block == BlockSizes{}))
      info.announce_block_sizes = false;
    if (server_.options_.read_only) {
      info.flags = static_cast<uint16_t>((info.flags | nbd::kFlagReadOnly) &
                                         ~(nbd::kFlagSendTrim | nbd::kFlagSendWriteZeroes |
                                           nbd::kFlagSendFua | nbd::kFlagSendFastZero));
    }
    co_return info;
  }

  Task<void> CloseExport() override {
    if (!device_) co_return;
    DevicePtr device = std::exchange(device_, nullptr);
    absl::Status status = co_await device->Close();
    if (!status.ok()) Complain(absl::StrCat("close: ", status.message()));
  }

  Task<absl::StatusOr<Stream*>> StartTls(Stream*) override {
    stream_->KeepDescriptors(false);  // no shared memory beside what is secret
    BLK_CO_RETURN_IF_ERROR(co_await TlsContext::Upgrade(server_.options_.tls, &stream_));
    tls_ = true;
    co_return stream_.get();
  }

  // docs/shared-memory.md: the client's arena, if it came along and is fit.
  Task<absl::StatusOr<bool>> PrivateOption(uint32_t option, std::string data,
                                           nbd::OptionReplier& replier) override {
    if (option != nbd::kOptArena || !server_.options_.shm) co_return false;
    absl::Status taken = TakeArena(data);
    replier.Reply(taken.ok() ? nbd::kRepAck : nbd::kRepErrPolicy, taken.message());
    co_return true;
  }

  bool ShuttingDown() override { return server_.stopping(); }

 private:
  // nbdkit's name for a connection; "" where we do not stand for it.
  std::string Who() const {
    const std::string& name = server_.options_.name;
    return name.empty() ? "" : absl::StrCat(name, "[", number_, "]");
  }
  void Complain(std::string_view message) {
    const std::string who = Who();
    if (who.empty()) return LogError(absl::StrCat("connection ", number_, ": ", message));
    LogErrorFrom(who, message);
  }

  absl::Status TakeArena(std::string_view data) {
    int fd = stream_->TakeDescriptor();
    if (fd < 0) return absl::InvalidArgumentError("no descriptor came with the option");
    const bool right = data.size() == nbd::kArenaOptionBytes &&
                       nbd::LoadU32(data.data()) == nbd::kArenaVersion && !arena_;
    const uint64_t bytes = right ? nbd::LoadU64(data.data() + 8) : 0;
    if (bytes == 0 || bytes > limits::kArenaBytesMax) {
      close(fd);
      return absl::InvalidArgumentError(absl::StrCat("one arena of version ", nbd::kArenaVersion,
                                                     " and at most ", limits::kArenaBytesMax,
                                                     " bytes is taken"));
    }
    BLK_ASSIGN_OR_RETURN(arena_, Arena::Adopt(fd, bytes));
    return absl::OkStatus();
  }

  Task<absl::Status> Serve() {
    BLK_CO_RETURN_IF_ERROR(co_await server_.exports_->Preconnect(stream_->peer()));
    greeted_ = true;
    BufferedReader reader(stream_.get());
    stream_->KeepDescriptors(server_.options_.shm);
    Loop::TimerId timer = loop_->StartTimer(
        loop_->NowNs() + int64_t{server_.options_.handshake_seconds_max} * 1'000'000'000, [this] {
          Complain("the handshake took too long");
          stream_->Cancel();
        });
    nbd::ServerHandshakeOptions handshake_options = server_.options_.handshake;
    handshake_options.log_name = Who();
    auto handshake = co_await nbd::RunServerHandshake(reader, *this, std::move(handshake_options));
    loop_->CancelTimer(timer);
    stream_->KeepDescriptors(false);
    if (!handshake.ok()) co_return handshake.status();
    if (!handshake->transmission || server_.stopping()) co_return absl::OkStatus();
    if (!Who().empty()) LogDebugFrom(Who(), "handshake complete, processing requests");
    BLK_CHECK(device_ != nullptr);

    MemoryBudget budget(kConnectionBytesMax, &MemoryBudget::Process());
    nbd::ServerSessionOptions options;
    options.style = handshake->style;
    options.transmission_flags = handshake->export_info.flags;
    options.contexts = std::move(handshake->contexts);
    options.connection = number_;
    options.requests_in_flight_max = server_.options_.requests_in_flight_max;
    if (!server_.options_.name.empty())
      options.request_failed = [this](const absl::Status& failure) {
        if (ErrnoOf(failure) != ECANCELED) Complain(failure.message());
      };
    options.budget = &budget;
    options.arena = arena_;
    nbd::ServerSession session(&reader, device_.get(), std::move(options));
    session_ = &session;
    absl::Status status = co_await session.Run();
    session_ = nullptr;
    co_return status;
  }

  // When all is closed, so that a client that waits for it knows. Over TLS the client's own goodbye
  // is waited for: were it left unread, closing would reset the connection, and the client could
  // lose our last words.
  Task<void> SayGoodbye() {
    stream_->ShutdownWrite();
    if (server_.options_.tls && !server_.stopping()) co_await Drain(stream_.get());
  }

  // A server that is told to end leaves nothing of its clients' in a cache that ends with it. What
  // does not answer cannot keep it.
  Task<void> FlushAtEnd() {
    const Facts& facts = device_->facts();
    if (!facts.flush || facts.read_only || server_.options_.read_only) co_return;
    Call call{.connection = number_,
              .deadline_ns = loop_->NowNs() + server_.options_.stop_grace_ns};
    absl::Status status = co_await device_->Flush(call);
    if (!status.ok())
      LogError(absl::StrCat("connection ", number_, ": last flush: ", status.message()));
  }

  Task<void> DisconnectSoon(bool hard) {
    co_await Yield();
    if (!hard && session_) {
      session_->Refuse();
    } else {
      Shutdown(hard);
    }
  }

  OpenArgs MakeArgs(std::string name) {
    return {.export_name = std::move(name),
            .read_only = server_.options_.read_only,
            .tls = tls_,
            .peer = &stream_->peer(),
            .session = this};
  }

  Server& server_;
  const uint64_t number_;
  Loop* const loop_;
  StreamPtr stream_;
  bool tls_ = false;  // stream_ is a TLS one
  DevicePtr device_;
  std::shared_ptr<Arena> arena_;
  nbd::ServerSession* session_ = nullptr;
  bool greeted_ = false;
  bool cut_off_ = false;
};

Server::Server(LoopPool* loops, Exports* exports, ServerOptions options)
    : loops_(loops), exports_(exports), options_(options) {
  for (size_t i = 0; i < loops->size(); ++i) load_.push_back(std::make_unique<std::atomic<int>>(0));
}

Server::~Server() { BLK_CHECK(connections_.empty()); }

void Server::Listen(int fd) {
  listen_fds_.push_back(fd);
  listen_watches_.push_back(Loop::Current()->WatchDescriptor(fd));
  scope_.Spawn(AcceptLoop(fd));
}

void Server::ServeOne(int read_fd, int write_fd) {
  struct Once {
    static Task<void> Run(Server* server, int read_fd, int write_fd) {
      co_await server->RunConnection(read_fd, write_fd);
      server->Stop();
    }
  };
  scope_.Spawn(Once::Run(this, read_fd, write_fd));
}

size_t Server::LeastLoadedLoop() {
  auto least = std::min_element(load_.begin(), load_.end(),
                                [](const auto& a, const auto& b) { return *a < *b; });
  return static_cast<size_t>(least - load_.begin());
}

Task<void> Server::AcceptLoop(int fd) {
  Watch* watch = listen_watches_.back().get();
  while (!stopping()) {
    auto connection = co_await Accept(fd, watch);
    if (stopping()) {
      if (connection.ok()) close(*connection);
      break;
    }
    if (!connection.ok()) {
      // Out of descriptors or memory: say so, and try again when some may have come back.
      LogError(absl::StrCat("accept: ", connection.status().message()));
      if (!(co_await Loop::Current()->Sleep(100'000'000)).ok()) break;
      continue;
    }
    int total = 0;
    for (const auto& load : load_) total += *load;
    if (total >= options_.connections_max) {
      LogError(absl::StrCat("refused a connection: there are ", total, " already"));
      close(*connection);
      continue;
    }
    if (int on = 1; options_.keepalive)
      (void)setsockopt(*connection, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
    scope_.Spawn(RunConnection(*connection, *connection));
  }
}

Task<void> Server::RunConnection(int read_fd, int write_fd) {
  Loop* home = Loop::Current();
  size_t index = LeastLoadedLoop();
  Loop* loop = loops_->loop(index);
  ++*load_[index];
  Connection connection(this, ++last_connection_, loop);
  co_await ResumeOn{loop};
  {
    std::lock_guard lock(mutex_);
    connections_.insert(&connection);
  }
  // Stop() sees the connection from here on, or was called before and is seen in Run().
  if (!stopping()) {
    StreamPtr stream =
        read_fd == write_fd ? MakeSocketStream(read_fd) : MakePairStream(read_fd, write_fd);
    co_await connection.Run(std::move(stream));
  } else {
    close(read_fd);
    if (write_fd != read_fd) close(write_fd);
  }
  {
    std::lock_guard lock(mutex_);
    connections_.erase(&connection);
  }
  --*load_[index];
  // A disconnect that a layer asked for at the very end runs before the connection goes.
  co_await PostTo{loop};
  co_await ResumeOn{home};
}

void Server::Stop() {
  if (stopping_.exchange(true)) return;
  loops_->loop(0)->Spawn(StopConnections());
}

bool Server::AllEnded() {
  std::lock_guard lock(mutex_);
  return connections_.empty();
}

// Each on its own loop, where none can end while we look.
Task<void> Server::ShutdownAll(bool hard) {
  for (size_t i = 0; i < loops_->size(); ++i) {
    co_await ResumeOn{loops_->loop(i)};
    std::lock_guard lock(mutex_);
    for (Connection* connection : connections_)
      if (connection->loop() == loops_->loop(i)) connection->Shutdown(hard);
  }
  co_await ResumeOn{loops_->loop(0)};
}

Task<void> Server::StopConnections() {
  constexpr int64_t kLookAgainNs = 2'000'000;
  for (auto& watch : listen_watches_) watch->Cancel();
  co_await ShutdownAll(/*hard=*/false);
  const int64_t until_ns = Loop::Current()->NowNs() + options_.stop_grace_ns;
  while (!AllEnded() && Loop::Current()->NowNs() < until_ns)
    (void)co_await Loop::Current()->Sleep(kLookAgainNs);
  if (!AllEnded()) {
    LogError("some requests take too long; cutting their clients off");
    co_await ShutdownAll(/*hard=*/true);
    while (!AllEnded()) (void)co_await Loop::Current()->Sleep(kLookAgainNs);
  }
  stop_finished_ = true;
  stopped_.Set();
}

Task<absl::Status> Server::Run() {
  while (!stop_finished_) co_await stopped_.Wait();
  co_await scope_.Join();
  for (int fd : listen_fds_) close(fd);
  listen_watches_.clear();
  co_return absl::OkStatus();
}

}  // namespace blk
