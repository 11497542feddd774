#include "src/backends/nbd_connect.h"

#include <algorithm>
#include <utility>

#include "src/core/loop.h"

namespace blk {
namespace {

// Cancels the stream when the handshake takes too long.
class HandshakeTimer {
 public:
  HandshakeTimer(Stream* stream, int seconds)
      : id_(Loop::Current()->StartTimer(Loop::Current()->NowNs() + int64_t{seconds} * 1'000'000'000,
                                        [this, stream] {
                                          expired_ = true;
                                          stream->Cancel();
                                        })) {}
  ~HandshakeTimer() { Loop::Current()->CancelTimer(id_); }
  absl::Status Explain(absl::Status status, const nbd::Uri& uri) const {
    if (status.ok()) return status;
    if (expired_)
      return ErrnoErrorAsIs(ETIMEDOUT,
                            absl::StrCat("the NBD server at ", uri.ToString(), " does not answer"));
    return Annotate(status, absl::StrCat("NBD server ", uri.ToString()));
  }

 private:
  bool expired_ = false;
  Loop::TimerId id_;
};

// Replaces the stream that somebody else owns by a secure one.
class Upgrade final : public nbd::TlsUpgrade {
 public:
  Upgrade(std::shared_ptr<const TlsContext> context, StreamPtr* stream)
      : context_(std::move(context)), stream_(stream) {}
  Task<absl::StatusOr<Stream*>> StartTls(Stream*) override {
    BLK_CO_RETURN_IF_ERROR(co_await TlsContext::Upgrade(context_, stream_));
    co_return stream_->get();
  }

 private:
  const std::shared_ptr<const TlsContext> context_;
  StreamPtr* const stream_;
};

nbd::ClientHandshakeOptions HandshakeOptions(const NbdConnectOptions& options,
                                             nbd::TlsUpgrade* upgrade) {
  nbd::ClientHandshakeOptions result;
  result.tls = options.uri.tls ? nbd::ClientTls::kRequire : options.tls;
  result.tls_upgrade = upgrade;
  result.structured_replies = options.structured_replies;
  result.extended_headers = options.extended_headers;
  result.go = options.go;
  result.contexts = options.contexts;
  return result;
}

}  // namespace

absl::Status PrepareTls(NbdConnectOptions* options) {
  const nbd::Uri& uri = options->uri;
  if (options->tls_context || (!uri.tls && options->tls == nbd::ClientTls::kOff))
    return absl::OkStatus();
  TlsClientOptions tls{.certificates = uri.tls_certificates,
                       .psk_file = uri.tls_psk_file,
                       .username = uri.tls_username,
                       .hostname = uri.tls_hostname,
                       .verify_peer = uri.tls_verify_peer.value_or(true)};
  // A socket's path or a virtual machine's number is no name that a certificate could have.
  if (tls.hostname.empty() && uri.transport == nbd::Uri::Transport::kTcp) tls.hostname = uri.host;
  BLK_ASSIGN_OR_RETURN(options->tls_context, TlsContext::ForClient(tls));
  return absl::OkStatus();
}

Task<absl::StatusOr<StreamPtr>> OpenNbdStream(nbd::Uri uri) {
  switch (uri.transport) {
    case nbd::Uri::Transport::kUnix:
      return ConnectUnix(uri.socket);
    case nbd::Uri::Transport::kVsock:
      return ConnectVsock(uri.vsock_cid, uri.port);
    case nbd::Uri::Transport::kTcp:
      break;
  }
  return ConnectTcp(uri.host, absl::StrCat(uri.port));
}

Facts FactsOfExport(const nbd::ServerExport& e) {
  Facts facts;
  facts.size = e.size_bytes;
  facts.block.minimum = std::max<uint32_t>(1, e.block_sizes.minimum);
  facts.block.preferred = e.block_sizes.preferred;
  facts.block.maximum = std::min(e.block_sizes.maximum, limits::kRequestBytesMax);
  facts.block.maximum -= facts.block.maximum % facts.block.minimum;
  facts.block_is_assumed = !e.block_sizes_told;
  facts.read_only = e.flags & nbd::kFlagReadOnly;
  facts.rotational = e.flags & nbd::kFlagRotational;
  facts.flush = e.flags & nbd::kFlagSendFlush;
  facts.trim = e.flags & nbd::kFlagSendTrim;
  facts.zero = e.flags & nbd::kFlagSendWriteZeroes;
  facts.fast_zero = e.flags & nbd::kFlagSendFastZero;
  facts.fua = e.flags & nbd::kFlagSendFua ? Support::kNative
              : facts.flush               ? Support::kEmulate
                                          : Support::kNone;
  facts.cache = e.flags & nbd::kFlagSendCache ? Support::kNative : Support::kNone;
  facts.multi_conn = e.flags & nbd::kFlagCanMultiConn;
  facts.description = e.description;
  facts.export_name = e.canonical_name;
  facts.contexts.clear();
  for (const nbd::MetaContext& context : e.contexts) facts.contexts.push_back(context.name);
  facts.extents = std::find(facts.contexts.begin(), facts.contexts.end(), kBaseAllocation) !=
                  facts.contexts.end();
  if (!facts.extents) facts.contexts.push_back(std::string(kBaseAllocation));  // all data
  facts.shared_buffers_ok = true;
  return facts;
}

bool IsHangUp(const absl::Status& failure) {
  const int error = ErrnoOf(failure);
  return error == ECONNRESET || error == EPIPE;
}

bool AskForLess(NbdConnectOptions* options) {
  if (options->extended_headers || options->arena) {
    options->extended_headers = false;
    options->arena = nullptr;
    return true;
  }
  if (options->structured_replies || !options->contexts.empty()) {
    options->structured_replies = false;
    options->contexts.clear();
    return true;
  }
  return std::exchange(options->go, false);
}

namespace {

Task<absl::StatusOr<NbdConnection>> ConnectOnce(NbdConnectOptions options) {
  BLK_CO_ASSIGN_OR_RETURN(StreamPtr stream, co_await OpenNbdStream(options.uri));
  co_return co_await ConnectNbdOver(std::move(stream), std::move(options));
}

}  // namespace

Task<absl::StatusOr<NbdConnection>> ConnectNbd(NbdConnectOptions options) {
  auto connection = co_await ConnectOnce(options);
  const absl::Status failure = connection.status();
  // If it hangs up for another reason, the first failure is the one to tell of.
  while (!connection.ok() && IsHangUp(connection.status()) && AskForLess(&options))
    connection = co_await ConnectOnce(options);
  if (!connection.ok()) co_return failure;
  co_return connection;
}

Task<absl::StatusOr<NbdConnection>> ConnectNbdOver(StreamPtr stream, NbdConnectOptions options) {
  std::string export_name = options.uri.export_name;
  BLK_CO_ASSIGN_OR_RETURN(auto conversation,
                          co_await NbdHandshake::OpenOver(std::move(stream), std::move(options)));
  auto connection = co_await conversation->Enter(std::move(export_name));
  if (!connection.ok()) co_await conversation->Close();
  co_return connection;
}

Task<absl::StatusOr<std::unique_ptr<NbdHandshake>>> NbdHandshake::Open(NbdConnectOptions options) {
  BLK_CO_ASSIGN_OR_RETURN(StreamPtr stream, co_await OpenNbdStream(options.uri));
  co_return co_await OpenOver(std::move(stream), std::move(options));
}

Task<absl::StatusOr<std::unique_ptr<NbdHandshake>>> NbdHandshake::OpenOver(
    StreamPtr stream, NbdConnectOptions options) {
  BLK_CO_RETURN_IF_ERROR(PrepareTls(&options));
  auto result = std::make_unique<NbdHandshake>();
  result->options_ = std::move(options);
  result->stream_ = std::move(stream);
  result->reader_ = std::make_unique<BufferedReader>(result->stream_.get());
  result->upgrade_ = std::make_unique<Upgrade>(result->options_.tls_context, &result->stream_);
  result->handshake_ = std::make_unique<nbd::ClientHandshake>(
      *result->reader_, HandshakeOptions(result->options_, result->upgrade_.get()));
  HandshakeTimer timer(result->stream_.get(), result->options_.connect_seconds_max);
  absl::Status started = co_await result->handshake_->Start();
  if (!started.ok()) co_return timer.Explain(started, result->options_.uri);
  co_return result;
}

Task<absl::StatusOr<NbdConnection>> NbdHandshake::Enter(std::string export_name) {
  HandshakeTimer timer(stream_.get(), options_.connect_seconds_max);
  bool shares = false;
  if (options_.arena && options_.uri.transport == nbd::Uri::Transport::kUnix) {
    auto offered = co_await handshake_->OfferArena(options_.arena->fd(), options_.arena->size());
    if (!offered.ok()) co_return timer.Explain(offered.status(), options_.uri);
    shares = *offered;
  }
  auto server_export = co_await handshake_->Go(std::move(export_name));
  if (!server_export.ok()) co_return timer.Explain(server_export.status(), options_.uri);
  NbdConnection connection;
  connection.facts = FactsOfExport(*server_export);
  nbd::ClientSessionOptions session;
  session.style = server_export->style;
  session.transmission_flags = server_export->flags;
  session.contexts = server_export->contexts;
  if (shares) session.arena = options_.arena;
  connection.session =
      std::make_unique<nbd::ClientSession>(std::move(stream_), reader_->buffered(), session);
  connection.session->Start();
  connection.told = *std::move(server_export);
  co_return connection;
}

// After Enter() succeeded the handshake has ended, and this touches no stream.
Task<void> NbdHandshake::Close() { return handshake_->Abort(); }

}  // namespace blk
