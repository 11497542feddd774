#include <arpa/inet.h>

#include <algorithm>
#include <cstring>
#include <optional>

#include "src/core/buffer.h"
#include "src/core/limits.h"
#include "src/core/tls.h"
#include "src/core/tls_openssl.h"
#include "src/core/trace.h"

namespace blk {
namespace {

constexpr size_t kRecordBytes = 16 << 10;  // of plain text; the most that TLS allows
// What encryption adds to them: header, padding and tag, 32 times, since a client may ask for
// records of 512 bytes (RFC 6066, section 4).
constexpr size_t kRecordExtraBytes = 32 * 128;
constexpr int64_t kDrainNs = 1'000'000'000;     // how long a goodbye may take
constexpr uint64_t kDrainBytesMax = 256 << 10;  // what else may come before it

// The alert that a peer sent, or what is wrong with what it sent.
absl::Status SslFailure(SSL* ssl, bool handshaking) {
  const unsigned long code = ERR_peek_last_error();
  const long verified = SSL_get_verify_result(ssl);
  const int reason = ERR_GET_REASON(code);
  const bool is_alert = ERR_GET_LIB(code) == ERR_LIB_SSL && reason >= SSL_AD_REASON_OFFSET;
  std::string text = tls::TakeReason();
  if (verified != X509_V_OK && reason == SSL_R_CERTIFICATE_VERIFY_FAILED)
    text = absl::StrCat("the peer's certificate: ", X509_verify_cert_error_string(verified));
  if (is_alert) text = absl::StrCat("the peer refused: ", text);
  return ErrnoErrorAsIs(is_alert || handshaking ? EPERM : EPROTO, absl::StrCat("TLS: ", text));
}

// RFC 4514: the innermost part first, as in `CN=host,O=Example,C=US`.
std::string NameText(const X509_NAME* name) {
  const tls::Handle<BIO, BIO_free_all> memory(BIO_new(BIO_s_mem()));
  char* text = nullptr;
  if (!memory ||
      X509_NAME_print_ex(memory.get(), name, 0, XN_FLAG_RFC2253 & ~ASN1_STRFLGS_ESC_MSB) < 0)
    return "";
  const long size = BIO_get_mem_data(memory.get(), &text);
  return std::string(text, static_cast<size_t>(size));
}

bool IsAddress(const std::string& host) {
  unsigned char unused[16];
  return inet_pton(AF_INET, host.c_str(), unused) == 1 ||
         inet_pton(AF_INET6, host.c_str(), unused) == 1;
}

}  // namespace

// OpenSSL reads from and writes to memory here; only this stream moves bytes over the one below.
class TlsStream final : public Stream {
 public:
  TlsStream(std::shared_ptr<const TlsContext> context, StreamPtr below);

  Task<absl::Status> Handshake();

  Task<absl::StatusOr<size_t>> ReadSome(std::span<char> into) override;
  Task<absl::Status> WriteAll(std::span<const iovec> parts) override;
  void ShutdownWrite() override;
  void ShutdownRead() override { below_->ShutdownRead(); }
  void Cancel() override { below_->Cancel(); }
  const Peer& peer() const override { return peer_ ? *peer_ : below_->peer(); }

 private:
  void NamePeer();
  static const BIO_METHOD* Method();
  static int TakeInput(BIO* bio, char* into, size_t size, size_t* got);
  static int PutOutput(BIO* bio, const char* from, size_t size, size_t* put);
  static long Control(BIO* bio, int command, long number, void* pointer);

  // More cipher text, or the end of it.
  Task<absl::Status> Receive();
  // As much plain text as the cipher text at hand gives. Sets ended_ or failure_ at the end of it.
  size_t Decrypt(std::span<char> into);
  // One record of at most kRecordBytes, to output_, where there is room for it.
  void Encrypt(const char* data, size_t size);
  bool RoomForRecord() const {
    return output_bytes_ + kRecordBytes + kRecordExtraBytes <= limits::kTlsSendBytes;
  }
  // Sends all of output_.
  Task<absl::Status> Flush();

  const std::shared_ptr<const TlsContext> context_;
  const StreamPtr below_;
  const tls::SslHandle ssl_;
  Buffer input_{limits::kTlsReceiveBytes};
  size_t input_begin_ = 0, input_end_ = 0;
  Buffer output_;  // made when needed, so that an idle connection has none
  size_t output_bytes_ = 0;
  std::optional<Peer> peer_;  // with its names, after the handshake
  bool sending_ = false;
  bool input_ended_ = false;  // the stream below
  bool ended_ = false;        // the TLS one
  absl::Status failure_;      // nothing works after it
};

const BIO_METHOD* TlsStream::Method() {
  static const BIO_METHOD* const method = [] {
    BIO_METHOD* made = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, "stream");
    BLK_CHECK(made != nullptr);
    BIO_meth_set_read_ex(made, TakeInput);
    BIO_meth_set_write_ex(made, PutOutput);
    BIO_meth_set_ctrl(made, Control);
    return made;
  }();
  return method;
}

int TlsStream::TakeInput(BIO* bio, char* into, size_t size, size_t* got) {
  TlsStream& self = *static_cast<TlsStream*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  *got = std::min(size, self.input_end_ - self.input_begin_);
  if (*got == 0) {
    if (!self.input_ended_) BIO_set_retry_read(bio);
    return 0;
  }
  std::memcpy(into, self.input_.data() + self.input_begin_, *got);
  self.input_begin_ += *got;
  return 1;
}

// Fails, and with it the connection, when a peer makes us answer (with alerts) without end.
int TlsStream::PutOutput(BIO* bio, const char* from, size_t size, size_t* put) {
  TlsStream& self = *static_cast<TlsStream*>(BIO_get_data(bio));
  BIO_clear_retry_flags(bio);
  if (!self.output_) self.output_ = Buffer(limits::kTlsSendBytes);
  if (size > limits::kTlsSendBytes - self.output_bytes_) return 0;
  std::memcpy(self.output_.data() + self.output_bytes_, from, size);
  self.output_bytes_ += size;
  *put = size;
  return 1;
}

long TlsStream::Control(BIO* bio, int command, long, void*) {
  if (command == BIO_CTRL_FLUSH) return 1;
  if (command == BIO_CTRL_EOF) return static_cast<TlsStream*>(BIO_get_data(bio))->input_ended_;
  return 0;
}

TlsStream::TlsStream(std::shared_ptr<const TlsContext> context, StreamPtr below)
    : context_(std::move(context)), below_(std::move(below)), ssl_(SSL_new(context_->context_)) {
  BIO* bio = BIO_new(Method());
  BLK_CHECK(ssl_ != nullptr && bio != nullptr);
  BIO_set_data(bio, this);
  BIO_set_init(bio, 1);
  SSL_set_bio(ssl_.get(), bio, bio);
  if (context_->server_) {
    SSL_set_accept_state(ssl_.get());
    return;
  }
  SSL_set_connect_state(ssl_.get());
  const std::string& host = context_->hostname_;
  if (host.empty()) return;
  X509_VERIFY_PARAM* verification = SSL_get0_param(ssl_.get());
  if (IsAddress(host)) {
    BLK_CHECK(X509_VERIFY_PARAM_set1_ip_asc(verification, host.c_str()) == 1);
  } else {
    X509_VERIFY_PARAM_set_hostflags(verification, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
    // These two refuse names that no certificate can have; then none will match either.
    if (X509_VERIFY_PARAM_set1_host(verification, host.c_str(), host.size()) != 1 ||
        SSL_set_tlsext_host_name(ssl_.get(), host.c_str()) != 1)
      failure_ = ErrnoErrorAsIs(EPERM, absl::StrCat("TLS: \"", host, "\" is no host name"));
    ERR_clear_error();
  }
}

Task<absl::Status> TlsStream::Receive() {
  if (input_begin_ == input_end_) input_begin_ = input_end_ = 0;
  // OpenSSL takes all it is offered before it asks for more.
  BLK_CHECK(input_end_ < input_.size());
  auto got = co_await below_->ReadSome(input_.span().subspan(input_end_));
  if (!got.ok()) co_return std::move(got).status();
  input_ended_ = *got == 0;
  input_end_ += *got;
  co_return absl::OkStatus();
}

// A failed handshake's alert is sent too, so that the peer can say why.
Task<absl::Status> TlsStream::Handshake() {
  while (failure_.ok()) {
    ERR_clear_error();
    const int result = SSL_do_handshake(ssl_.get());
    const int error = SSL_get_error(ssl_.get(), result);
    if (result != 1 && error != SSL_ERROR_WANT_READ) {
      failure_ = input_ended_ ? ErrnoErrorAsIs(ECONNRESET,
                                               "TLS: the peer hung up while shaking "
                                               "hands; it may not accept us")
                              : SslFailure(ssl_.get(), /*handshaking=*/true);
      ERR_clear_error();
    }
    const absl::Status sent = co_await Flush();
    if (failure_.ok() && !sent.ok()) failure_ = sent;
    if (result == 1 || !failure_.ok()) break;
    if (absl::Status status = co_await Receive(); !status.ok()) failure_ = status;
  }
  if (failure_.ok()) NamePeer();
  if (failure_.ok())
    LogDebug("TLS with ", peer().text, ": ", SSL_get_version(ssl_.get()), " ",
             SSL_get_cipher_name(ssl_.get()), context_->uses_psk() ? ", pre-shared key" : "");
  co_return failure_;
}

// A client is asked for a certificate only where it is verified.
void TlsStream::NamePeer() {
  peer_ = below_->peer();
  const tls::Handle<X509, X509_free> certificate(SSL_get1_peer_certificate(ssl_.get()));
  if (!certificate) return;
  peer_->tls_subject = NameText(X509_get_subject_name(certificate.get()));
  peer_->tls_issuer = NameText(X509_get_issuer_name(certificate.get()));
}

size_t TlsStream::Decrypt(std::span<char> into) {
  size_t total = 0;
  while (total < into.size() && !ended_ && failure_.ok()) {
    size_t got = 0;
    ERR_clear_error();
    const int result = SSL_read_ex(ssl_.get(), into.data() + total, into.size() - total, &got);
    total += got;
    if (result == 1) continue;
    const int error = SSL_get_error(ssl_.get(), result);
    if (error == SSL_ERROR_WANT_READ) break;
    if (error == SSL_ERROR_ZERO_RETURN) {
      ended_ = true;
    } else {
      failure_ = SslFailure(ssl_.get(), /*handshaking=*/false);
    }
  }
  return total;
}

Task<absl::StatusOr<size_t>> TlsStream::ReadSome(std::span<char> into) {
  for (;;) {
    if (const size_t got = Decrypt(into); got > 0) co_return got;
    if (!failure_.ok()) co_return failure_;
    if (ended_) co_return size_t{0};
    BLK_CO_RETURN_IF_ERROR(co_await Receive());
  }
}

void TlsStream::Encrypt(const char* data, size_t size) {
  size_t written = 0;
  ERR_clear_error();
  if (SSL_write_ex(ssl_.get(), data, size, &written) == 1) {
    BLK_CHECK(written == size);
  } else {
    failure_ = SslFailure(ssl_.get(), /*handshaking=*/false);
  }
}

// What reading answers to the peer meanwhile goes to a fresh output_.
Task<absl::Status> TlsStream::Flush() {
  BLK_CHECK(!std::exchange(sending_, true));  // one write at a time
  absl::Status status;
  while (output_bytes_ > 0 && status.ok()) {
    const Buffer sending = std::move(output_);
    const iovec part{const_cast<char*>(sending.data()), std::exchange(output_bytes_, 0)};
    status = co_await below_->WriteAll({&part, 1});
  }
  sending_ = false;
  co_return status;
}

// Small parts are gathered, so that records are full; large ones are encrypted where they lie.
Task<absl::Status> TlsStream::WriteAll(std::span<const iovec> parts) {
  Buffer gathered;
  size_t gathered_bytes = 0;
  for (const iovec& part : parts) {
    const char* data = static_cast<const char*>(part.iov_base);
    for (size_t left = part.iov_len; left > 0;) {
      size_t step = std::min(left, kRecordBytes - gathered_bytes);
      if (step < kRecordBytes) {
        if (!gathered) gathered = Buffer(kRecordBytes);
        std::memcpy(gathered.data() + gathered_bytes, data, step);
        gathered_bytes += step;
      }
      if (step == kRecordBytes || gathered_bytes == kRecordBytes) {
        if (!RoomForRecord()) BLK_CO_RETURN_IF_ERROR(co_await Flush());
        if (failure_.ok()) Encrypt(step == kRecordBytes ? data : gathered.data(), kRecordBytes);
        gathered_bytes = 0;
      }
      data += step;
      left -= step;
    }
  }
  if (gathered_bytes > 0) {
    if (!RoomForRecord()) BLK_CO_RETURN_IF_ERROR(co_await Flush());
    if (failure_.ok()) Encrypt(gathered.data(), gathered_bytes);
  }
  if (!failure_.ok()) co_return failure_;
  co_return co_await Flush();
}

// The goodbye is sent if the stream below takes it at once; a peer that does not read will not miss
// it.
void TlsStream::ShutdownWrite() {
  if (failure_.ok() && !sending_) {
    ERR_clear_error();
    SSL_shutdown(ssl_.get());
    ERR_clear_error();
  }
  if (output_bytes_ > 0 && !sending_) {
    const iovec part{output_.data(), std::exchange(output_bytes_, 0)};
    (void)below_->WriteAll({&part, 1});
  }
  below_->ShutdownWrite();
}

Task<absl::Status> TlsContext::Upgrade(std::shared_ptr<const TlsContext> context,
                                       StreamPtr* stream) {
  auto secure = std::make_unique<TlsStream>(std::move(context), std::move(*stream));
  TlsStream* const started = secure.get();
  *stream = std::move(secure);
  co_return co_await started->Handshake();
}

// Reads to the end of the stream, for a while: closing a socket with unread input would reset the
// connection, and the peer could lose our last words.
Task<void> Drain(Stream* stream) {
  Loop* const loop = Loop::Current();
  const Loop::TimerId timer =
      loop->StartTimer(loop->NowNs() + kDrainNs, [stream] { stream->Cancel(); });
  Buffer scratch(kRecordBytes);
  for (uint64_t total = 0; total < kDrainBytesMax;) {
    const auto got = co_await stream->ReadSome(scratch.span());
    if (!got.ok() || *got == 0) break;
    total += *got;
  }
  loop->CancelTimer(timer);
}

}  // namespace blk
