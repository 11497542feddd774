#pragma once
// Byte streams: sockets, pipes and, in tests, simulated ones. A stream belongs to one loop. One
// read and one write may be in flight at a time. Sockets are tried without waiting first; the loop
// only waits for readiness.
#include <sys/socket.h>
#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "src/core/file_range.h"
#include "src/core/loop.h"

namespace blk {

// Who is at the other end, as far as the kernel tells.
struct Peer {
  sockaddr_storage address{};
  socklen_t address_bytes = 0;           // 0: no socket (stdin, simulated)
  int64_t pid = -1, uid = -1, gid = -1;  // Unix sockets
  std::string text;                      // "unix", "127.0.0.1:1234", for logs
  // Over TLS, of the certificate that it showed: whose it is and who says so (RFC 4514).
  std::string tls_subject = {}, tls_issuer = {};
};

class Stream {
 public:
  virtual ~Stream() = default;

  // Bytes read, at least 1; 0 at the end of the stream.
  virtual Task<absl::StatusOr<size_t>> ReadSome(std::span<char> into) = 0;

  // All bytes of all parts, in order. After a failure nothing more can be written.
  virtual Task<absl::Status> WriteAll(std::span<const iovec> parts) = 0;

  // Whether WriteWithFile() works.
  virtual bool sends_files() const { return false; }
  // As WriteAll, and then a range of a file, from the page cache. It fails with what reading the
  // file fails with, too; EIO where it ends too early.
  virtual Task<absl::Status> WriteWithFile(std::span<const iovec> parts, FileRange range) {
    (void)parts, (void)range;
    return ErrnoErrorAsIs(EOPNOTSUPP, "this stream cannot send files");
  }

  // As WriteAll with one part, and sends `fd` along (SCM_RIGHTS). EOPNOTSUPP unless this is a Unix
  // socket.
  virtual Task<absl::Status> WriteWithDescriptor(std::span<const char> bytes, int fd) {
    (void)bytes, (void)fd;
    return ErrnoErrorAsIs(EOPNOTSUPP, "this stream cannot send descriptors");
  }
  // Whether descriptors that the peer sends are kept for TakeDescriptor() (the last one; all others
  // are closed). Off at first.
  virtual void KeepDescriptors(bool keep) { (void)keep; }
  // The caller's from now on; -1 if none has come.
  virtual int TakeDescriptor() { return -1; }

  // The peer's only request in flight has its answer. A process of this machine that sends the next
  // one as soon as it has read that, again and again, is looked out for (Loop::ExpectSoon).
  virtual void LoneRequestAnswered() {}

  // The other end sees the end of the stream; reading goes on.
  virtual void ShutdownWrite() = 0;

  // Reads, the one in flight too, see the end of the stream; writing goes on.
  virtual void ShutdownRead() = 0;

  // Operations in flight and later ones fail with ECANCELED. Idempotent.
  virtual void Cancel() = 0;

  virtual const Peer& peer() const = 0;
};
using StreamPtr = std::unique_ptr<Stream>;

// Owns `fd` (made non-blocking), a stream socket, pipe or tty. On the current loop.
StreamPtr MakeSocketStream(int fd);

// Reads from one descriptor and writes to another (serve -s). Owns both.
StreamPtr MakePairStream(int read_fd, int write_fd);

// Input with a buffer: small pieces are taken from it, large ones are received in place.
class BufferedReader {
 public:
  explicit BufferedReader(Stream* stream, size_t buffer_bytes = 64 << 10)
      : stream_(stream), buffer_(buffer_bytes) {}

  // What has been received and not yet consumed.
  std::span<char> buffered() { return {buffer_.data() + begin_, end_ - begin_}; }
  void Consume(size_t bytes) { begin_ += bytes; }

  // Bytes that were received before, by somebody else. The buffer must be empty and large enough.
  void Preload(std::span<const char> bytes);

  // Receives more, at least one byte; false at the end of the stream. The space left must not be 0:
  // consume first. Spans from buffered() may move.
  Task<absl::StatusOr<bool>> Fill();

  // Exactly into.size() bytes; the stream ending before that is an error: ECONNRESET.
  Task<absl::Status> ReadExactly(std::span<char> into);

  // Reads and forgets.
  Task<absl::Status> Skip(uint64_t bytes);

  Stream* stream() { return stream_; }
  void set_stream(Stream* stream) { stream_ = stream; }  // TLS takes over; the buffer must be empty
  void Grow(size_t buffer_bytes) {
    if (buffer_.size() < buffer_bytes) buffer_.resize(buffer_bytes);
  }
  void DropBuffered() { begin_ = end_ = 0; }

 private:
  Stream* stream_;
  std::vector<char> buffer_;
  size_t begin_ = 0, end_ = 0;
};

// Listening and connecting. Descriptors are non-blocking and close-on-exec.
absl::StatusOr<int> ListenUnix(const std::string& path, int backlog = 128);
// `host` empty: all interfaces. One descriptor per address. family: AF_UNSPEC, AF_INET, AF_INET6.
absl::StatusOr<std::vector<int>> ListenTcp(const std::string& host, const std::string& port,
                                           int family = AF_UNSPEC);
absl::StatusOr<int> ListenVsock(uint32_t port);
// The number of the port that a listening TCP socket has; 0 for others.
int LocalPort(int fd);

// Waits for a connection on a listening descriptor; ECANCELED after watch->Cancel().
Task<absl::StatusOr<int>> Accept(int fd, Watch* watch);

Task<absl::StatusOr<StreamPtr>> ConnectUnix(std::string path);
Task<absl::StatusOr<StreamPtr>> ConnectTcp(std::string host,
                                           std::string port);  // resolves off loop
Task<absl::StatusOr<StreamPtr>> ConnectVsock(uint32_t cid, uint32_t port);

}  // namespace blk
