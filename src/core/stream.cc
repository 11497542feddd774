#include "src/core/stream.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/sockios.h>
#include <linux/vm_sockets.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/sendfile.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/numbers.h"
#include "src/core/buffer.h"
#include "src/core/file_io.h"

namespace blk {
namespace {

constexpr size_t kCopiedBytes = 256 << 10;
constexpr size_t kPartsPerCallMax = 1024;  // IOV_MAX
constexpr int kTurnsPerProbe = 16, kTurnsBeforeLooking = 2 * kTurnsPerProbe;

bool WouldBlock(int error) { return error == EAGAIN || error == EWOULDBLOCK; }

Peer DescribePeer(int fd) {
  Peer peer;
  peer.address_bytes = sizeof peer.address;
  auto* address = reinterpret_cast<sockaddr*>(&peer.address);
  if (getpeername(fd, address, &peer.address_bytes) < 0) {
    peer.address_bytes = 0;
    peer.text = "stream";
    return peer;
  }
  char text[INET6_ADDRSTRLEN] = "";
  switch (peer.address.ss_family) {
    case AF_INET: {
      auto* in = reinterpret_cast<sockaddr_in*>(address);
      inet_ntop(AF_INET, &in->sin_addr, text, sizeof text);
      peer.text = absl::StrCat(text, ":", ntohs(in->sin_port));
      break;
    }
    case AF_INET6: {
      auto* in = reinterpret_cast<sockaddr_in6*>(address);
      inet_ntop(AF_INET6, &in->sin6_addr, text, sizeof text);
      peer.text = absl::StrCat("[", text, "]:", ntohs(in->sin6_port));
      break;
    }
    case AF_UNIX: {
      ucred credentials{};
      socklen_t bytes = sizeof credentials;
      if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &bytes) == 0) {
        peer.pid = credentials.pid;
        peer.uid = credentials.uid;
        peer.gid = credentials.gid;
      }
      peer.text = "unix";
      break;
    }
    case AF_VSOCK: {
      auto* vm = reinterpret_cast<sockaddr_vm*>(address);
      peer.text = absl::StrCat("vsock:", vm->svm_cid, ":", vm->svm_port);
      break;
    }
    default:
      peer.text = "stream";
  }
  return peer;
}

void SetNonBlocking(int fd) { fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK); }

// Removes `bytes` from the front of `parts`.
void Advance(std::vector<iovec>& parts, size_t& first, size_t bytes) {
  while (bytes > 0) {
    size_t step = std::min(bytes, parts[first].iov_len);
    parts[first].iov_base = static_cast<char*>(parts[first].iov_base) + step;
    parts[first].iov_len -= step;
    bytes -= step;
    if (parts[first].iov_len == 0) ++first;
  }
}

class DescriptorStream final : public Stream {
 public:
  DescriptorStream(int read_fd, int write_fd)
      : read_fd_(read_fd), write_fd_(write_fd), peer_(DescribePeer(read_fd)) {
    socket_ = read_fd == write_fd && peer_.text != "stream";
    int one = 1;
    if (peer_.address.ss_family == AF_INET || peer_.address.ss_family == AF_INET6)
      setsockopt(read_fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    // A large payload leaves in one call; the kernel takes as much of this as its limit allows. TCP
    // sizes its buffers itself.
    int buffer_bytes = 512 << 10;
    if (peer_.address.ss_family == AF_UNIX)
      setsockopt(write_fd, SOL_SOCKET, SO_SNDBUF, &buffer_bytes, sizeof buffer_bytes);
    SetNonBlocking(read_fd_);
    SetNonBlocking(write_fd_);
    read_watch_ = Loop::Current()->WatchDescriptor(read_fd_);
    if (write_fd_ != read_fd_) write_watch_ = Loop::Current()->WatchDescriptor(write_fd_);
  }
  ~DescriptorStream() override {
    read_watch_.reset();
    write_watch_.reset();
    if (received_fd_ >= 0) close(received_fd_);
    close(read_fd_);
    if (write_fd_ != read_fd_ && write_fd_ >= 0) close(write_fd_);
  }

  Task<absl::StatusOr<size_t>> ReadSome(std::span<char> into) override {
    for (bool wait_first = std::exchange(drained_, false);; wait_first = false) {
      if (cancelled_) co_return ErrnoErrorAsIs(ECANCELED, "the connection was closed");
      if (!wait_first) {
        ssize_t got = keep_descriptors_ ? ReceiveWithDescriptor(into)
                                        : read(read_fd_, into.data(), into.size());
        if (got >= 0) {
          drained_ = got > 0 && static_cast<size_t>(got) < into.size() && ShortMeansDrained();
          CountTurn();
          co_return static_cast<size_t>(got);
        }
        if (errno == EINTR) continue;
        if (!WouldBlock(errno)) co_return ErrnoError(errno, "cannot read from the peer");
      }
      if (read_shut_) co_return size_t{0};
      absl::Status ready = co_await read_watch_->Readable();
      if (!ready.ok() && !read_shut_) co_return ready;
    }
  }

  Task<absl::Status> WriteAll(std::span<const iovec> parts) override {
    size_t total = 0;
    for (const iovec& part : parts) total += part.iov_len;
    // The common case: the kernel takes all at once, and no frame is needed.
    if (parts.size() <= kPartsPerCallMax && !cancelled_) {
      ssize_t sent = SendSome(parts);
      if (sent >= 0 && static_cast<size_t>(sent) == total) return absl::OkStatus();
      if (sent < 0 && !WouldBlock(errno) && errno != EINTR)
        return ErrnoError(errno, "cannot write to the peer");
      return WriteRest({parts.begin(), parts.end()}, sent > 0 ? sent : 0, total);
    }
    return WriteRest({parts.begin(), parts.end()}, 0, total);
  }

  bool sends_files() const override { return socket_ && peer_.address.ss_family != AF_VSOCK; }
  Task<absl::Status> WriteWithFile(std::span<const iovec> parts, FileRange range) override {
    more_follows_ = true;  // or TCP would send a short segment
    absl::Status written = co_await WriteAll(parts);
    more_follows_ = false;
    if (!written.ok()) co_return written;
    co_return co_await SendFile(range);
  }

  Task<absl::Status> WriteWithDescriptor(std::span<const char> bytes, int fd) override {
    if (peer_.address.ss_family != AF_UNIX)
      co_return ErrnoErrorAsIs(EOPNOTSUPP, "this stream cannot send descriptors");
    alignas(cmsghdr) char control[CMSG_SPACE(sizeof fd)] = {};
    iovec part{const_cast<char*>(bytes.data()), bytes.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof fd);
    std::memcpy(CMSG_DATA(header), &fd, sizeof fd);
    for (;;) {
      ssize_t sent = sendmsg(write_fd_, &message, MSG_NOSIGNAL);
      if (sent >= 0) {
        iovec rest{const_cast<char*>(bytes.data()) + sent, bytes.size() - sent};
        co_return co_await WriteAll({&rest, 1});
      }
      if (errno == EINTR) continue;
      if (!WouldBlock(errno)) co_return ErrnoError(errno, "cannot write to the peer");
      BLK_CO_RETURN_IF_ERROR(co_await read_watch_->Writable());
    }
  }
  void KeepDescriptors(bool keep) override {
    keep_descriptors_ = keep && peer_.address.ss_family == AF_UNIX;
    if (!keep && received_fd_ >= 0) close(TakeDescriptor());
  }
  int TakeDescriptor() override { return std::exchange(received_fd_, -1); }

  void LoneRequestAnswered() override {
    answered_ = peer_.address.ss_family == AF_UNIX;
    if (answered_ && turns_ >= kTurnsBeforeLooking) Loop::Current()->ExpectSoon();
  }

  void ShutdownWrite() override {
    if (socket_) {
      shutdown(write_fd_, SHUT_WR);
    } else if (write_fd_ != read_fd_ && write_fd_ >= 0) {
      write_watch_.reset();
      close(std::exchange(write_fd_, -1));
    }
  }

  void ShutdownRead() override {
    read_shut_ = true;
    if (socket_) {
      shutdown(read_fd_, SHUT_RD);  // a waiting read wakes up
    } else {
      read_watch_->Cancel();
    }
  }

  void Cancel() override {
    cancelled_ = true;
    read_watch_->Cancel();
    if (write_watch_) write_watch_->Cancel();
  }

  const Peer& peer() const override { return peer_; }

 private:
  ssize_t ReceiveWithDescriptor(std::span<char> into) {
    alignas(cmsghdr) char control[CMSG_SPACE(16 * sizeof(int))];
    iovec part{into.data(), into.size()};
    msghdr message{};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    ssize_t got = recvmsg(read_fd_, &message, MSG_CMSG_CLOEXEC);
    if (got < 0) return got;
    for (cmsghdr* h = CMSG_FIRSTHDR(&message); h; h = CMSG_NXTHDR(&message, h)) {
      if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS) continue;
      for (size_t at = 0; CMSG_LEN(at + sizeof(int)) <= h->cmsg_len; at += sizeof(int)) {
        if (received_fd_ >= 0) close(received_fd_);
        std::memcpy(&received_fd_, CMSG_DATA(h) + at, sizeof(int));
      }
    }
    return got;
  }

  // One request, one answer, and all answers read when the next request comes. (Who has more in
  // flight than he reads at once leaves some unread.)
  void CountTurn() {
    if (!std::exchange(answered_, false)) {
      turns_ = 0;
    } else if (++turns_ % kTurnsPerProbe == 0) {
      int unread_bytes = 0;
      if (ioctl(write_fd_, SIOCOUTQ, &unread_bytes) < 0 || unread_bytes > 0) turns_ = 0;
    }
  }

  // A stream socket that gave less than it was asked for had no more: another read now would only
  // be told so. Where descriptors come along, a read also ends with each of them.
  bool ShortMeansDrained() const {
    return socket_ && !keep_descriptors_ && peer_.address.ss_family != AF_VSOCK;
  }

  ssize_t SendSome(std::span<const iovec> parts) {
    if (!socket_) return writev(write_fd_, parts.data(), static_cast<int>(parts.size()));
    const int flags = MSG_NOSIGNAL | (more_follows_ ? MSG_MORE : 0);
    if (parts.size() == 1) return send(write_fd_, parts[0].iov_base, parts[0].iov_len, flags);
    msghdr message{};
    message.msg_iov = const_cast<iovec*>(parts.data());
    message.msg_iovlen = parts.size();
    return sendmsg(write_fd_, &message, flags);
  }

  Task<absl::Status> SendFile(FileRange range) {
    while (range.length > 0) {
      if (cancelled_) co_return ErrnoErrorAsIs(ECANCELED, "the connection was closed");
      off_t at = static_cast<off_t>(range.offset);
      ssize_t sent = sendfile(write_fd_, range.file->fd(), &at, range.length);
      if (sent > 0) {
        range.offset += sent;
        range.length -= sent;
      } else if (sent == 0) {
        co_return co_await SendFileByCopying(range);  // fails: the file was made shorter
      } else if (WouldBlock(errno)) {
        BLK_CO_RETURN_IF_ERROR(co_await read_watch_->Writable());
        // That may have taken long, and this loop has other clients.
        if (!range.file->IsCached(range.offset, range.length))
          co_return co_await SendFileByCopying(range);
      } else if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP) {
        co_return co_await SendFileByCopying(range);  // this file system has no sendfile
      } else if (errno != EINTR) {
        co_return ErrnoError(errno, absl::StrCat("cannot send ", range.file->name(), " at ",
                                                 range.offset, " to the peer"));
      }
    }
    co_return absl::OkStatus();
  }

  Task<absl::Status> SendFileByCopying(FileRange range) {
    Buffer buffer(std::min<uint64_t>(range.length, kCopiedBytes));
    while (range.length > 0) {
      const std::span<char> bytes =
          buffer.span().first(std::min<uint64_t>(range.length, buffer.size()));
      BLK_CO_RETURN_IF_ERROR(co_await range.file->ReadAt(range.offset, bytes));
      const iovec part{bytes.data(), bytes.size()};
      BLK_CO_RETURN_IF_ERROR(co_await WriteAll({&part, 1}));
      range.offset += bytes.size();
      range.length -= bytes.size();
    }
    co_return absl::OkStatus();
  }

  Task<absl::Status> WriteRest(std::vector<iovec> parts, size_t done, size_t total) {
    size_t first = 0;
    Advance(parts, first, done);
    Watch* watch = write_watch_ ? write_watch_.get() : read_watch_.get();
    while (done < total) {
      if (cancelled_ || write_fd_ < 0)
        co_return ErrnoErrorAsIs(ECANCELED, "the connection was closed");
      std::span<const iovec> rest(parts.begin() + first, parts.end());
      ssize_t sent = SendSome(rest.first(std::min(rest.size(), kPartsPerCallMax)));
      if (sent >= 0) {
        done += sent;
        Advance(parts, first, sent);
      } else if (WouldBlock(errno)) {
        BLK_CO_RETURN_IF_ERROR(co_await watch->Writable());
      } else if (errno != EINTR) {
        co_return ErrnoError(errno, "cannot write to the peer");
      }
    }
    co_return absl::OkStatus();
  }

  int read_fd_, write_fd_;
  bool socket_ = false;
  bool cancelled_ = false, read_shut_ = false, keep_descriptors_ = false;
  bool drained_ = false;       // the last read left nothing behind
  bool more_follows_ = false;  // what is written now
  bool answered_ = false;      // LoneRequestAnswered() since the last read
  int turns_ = 0;              // reads before each of which it was, in a row
  int received_fd_ = -1;
  Peer peer_;
  std::unique_ptr<Watch> read_watch_, write_watch_;
};

absl::StatusOr<sockaddr_un> UnixAddress(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path)
    return ErrnoErrorAsIs(ENAMETOOLONG,
                          absl::StrCat("socket path is longer than ", sizeof address.sun_path - 1,
                                       " bytes: ", path, "; use a shorter one"));
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

constexpr int kConnectSecondsMax = 30;  // of one address, before a word is said
constexpr int kSocketType = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;

absl::StatusOr<int> BindAndListen(int family, const sockaddr* address, socklen_t bytes,
                                  int backlog) {
  int fd = socket(family, kSocketType, 0);
  if (fd < 0) return ErrnoError(errno, "cannot make a socket");
  absl::Cleanup closer = [fd] { close(fd); };
  int one = 1;
  if (family != AF_UNIX) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &one, sizeof one);
  if (bind(fd, address, bytes) < 0) return ErrnoError(errno, "cannot bind");
  if (listen(fd, backlog) < 0) return ErrnoError(errno, "cannot listen");
  std::move(closer).Cancel();
  return fd;
}

// Waits until a connect() in progress has an end; takes the descriptor.
Task<absl::StatusOr<StreamPtr>> Connect(int family, sockaddr_storage address, socklen_t bytes,
                                        std::string where) {
  int fd = socket(family, kSocketType, 0);
  if (fd < 0) co_return ErrnoError(errno, "cannot make a socket");
  absl::Cleanup closer = [fd] { close(fd); };
  int result = connect(fd, reinterpret_cast<sockaddr*>(&address), bytes);
  if (result < 0 && errno != EINPROGRESS)
    co_return ErrnoError(errno, absl::StrCat("cannot connect to ", where));
  if (result < 0) {
    // The kernel alone would try for minutes.
    auto watch = Loop::Current()->WatchDescriptor(fd);
    Loop::TimerId timer = Loop::Current()->StartTimer(
        Loop::Current()->NowNs() + int64_t{kConnectSecondsMax} * 1'000'000'000,
        [&watch] { watch->Cancel(); });
    absl::Status connected = co_await watch->Writable();
    Loop::Current()->CancelTimer(timer);
    if (!connected.ok())
      co_return ErrnoErrorAsIs(ETIMEDOUT,
                               absl::StrCat("cannot connect to ", where, ": no answer in ",
                                            kConnectSecondsMax, " seconds"));
    int error = 0;
    socklen_t error_bytes = sizeof error;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &error_bytes);
    if (error) co_return ErrnoError(error, absl::StrCat("cannot connect to ", where));
  }
  std::move(closer).Cancel();
  co_return MakeSocketStream(fd);
}

struct AddressListDeleter {
  void operator()(addrinfo* list) const { freeaddrinfo(list); }
};
using AddressList = std::unique_ptr<addrinfo, AddressListDeleter>;

// Blocking. Never loads a foreign machine's name service modules into this static program.
absl::StatusOr<AddressList> Resolve(const std::string& host, const std::string& port, int family,
                                    bool passive) {
  // getaddrinfo takes 65537 for 1.
  int number = 0;
  if (!absl::SimpleAtoi(port, &number) || number < 0 || number > 65535)
    return absl::InvalidArgumentError(
        absl::StrCat("\"", port, "\" is no TCP port; use a number from 0 to 65535"));
  addrinfo hints{};
  hints.ai_family = family;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = (passive ? AI_PASSIVE : 0) | AI_NUMERICSERV;
  addrinfo* list = nullptr;
  int error = getaddrinfo(host.empty() ? nullptr : host.c_str(), port.c_str(), &hints, &list);
  if (error)
    return absl::NotFoundError(absl::StrCat("cannot resolve ", host.empty() ? "*" : host, ":", port,
                                            ": ", gai_strerror(error)));
  return AddressList(list);
}

}  // namespace

StreamPtr MakeSocketStream(int fd) { return std::make_unique<DescriptorStream>(fd, fd); }

StreamPtr MakePairStream(int read_fd, int write_fd) {
  return std::make_unique<DescriptorStream>(read_fd, write_fd);
}

void BufferedReader::Preload(std::span<const char> bytes) {
  BLK_CHECK(begin_ == end_ && bytes.size() <= buffer_.size());
  if (!bytes.empty()) std::memcpy(buffer_.data(), bytes.data(), bytes.size());
  begin_ = 0;
  end_ = bytes.size();
}

Task<absl::StatusOr<bool>> BufferedReader::Fill() {
  if (begin_ == end_) begin_ = end_ = 0;
  if (end_ == buffer_.size()) {
    BLK_CHECK(begin_ > 0);
    std::memmove(buffer_.data(), buffer_.data() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  auto got = co_await stream_->ReadSome({buffer_.data() + end_, buffer_.size() - end_});
  if (!got.ok()) co_return std::move(got).status();
  end_ += *got;
  co_return *got > 0;
}

Task<absl::Status> BufferedReader::ReadExactly(std::span<char> into) {
  size_t take = std::min(into.size(), end_ - begin_);
  if (take > 0) std::memcpy(into.data(), buffer_.data() + begin_, take);
  begin_ += take;
  into = into.subspan(take);
  while (!into.empty()) {
    size_t got = 0;
    if (into.size() >= buffer_.size() / 2) {
      BLK_CO_ASSIGN_OR_RETURN(got, co_await stream_->ReadSome(into));
      if (got == 0) co_return ErrnoErrorAsIs(ECONNRESET, "the peer closed the connection");
    } else {
      BLK_CO_ASSIGN_OR_RETURN(bool more, co_await Fill());
      if (!more) co_return ErrnoErrorAsIs(ECONNRESET, "the peer closed the connection");
      got = std::min(into.size(), end_ - begin_);
      std::memcpy(into.data(), buffer_.data() + begin_, got);
      begin_ += got;
    }
    into = into.subspan(got);
  }
  co_return absl::OkStatus();
}

Task<absl::Status> BufferedReader::Skip(uint64_t bytes) {
  while (bytes > 0) {
    if (begin_ == end_) {
      BLK_CO_ASSIGN_OR_RETURN(bool more, co_await Fill());
      if (!more) co_return ErrnoErrorAsIs(ECONNRESET, "the peer closed the connection");
    }
    uint64_t step = std::min<uint64_t>(bytes, end_ - begin_);
    begin_ += step;
    bytes -= step;
  }
  co_return absl::OkStatus();
}

absl::StatusOr<int> ListenUnix(const std::string& path, int backlog) {
  BLK_ASSIGN_OR_RETURN(sockaddr_un address, UnixAddress(path));
  auto fd = BindAndListen(AF_UNIX, reinterpret_cast<sockaddr*>(&address), sizeof address, backlog);
  if (!fd.ok()) return Annotate(fd.status(), path);
  return fd;
}

absl::StatusOr<std::vector<int>> ListenTcp(const std::string& host, const std::string& port,
                                           int family) {
  BLK_ASSIGN_OR_RETURN(AddressList list, Resolve(host, port, family, true));
  std::vector<int> fds;
  absl::Status failure;
  for (addrinfo* a = list.get(); a; a = a->ai_next) {
    auto fd = BindAndListen(a->ai_family, a->ai_addr, a->ai_addrlen, SOMAXCONN);
    if (fd.ok()) {
      fds.push_back(*fd);
    } else if (ErrnoOf(fd.status()) != EAFNOSUPPORT) {  // a machine without IPv6
      failure = Annotate(fd.status(), absl::StrCat(host.empty() ? "*" : host, ":", port));
    }
  }
  if (failure.ok() && !fds.empty()) return fds;
  for (int fd : fds) close(fd);
  if (failure.ok()) failure = absl::NotFoundError(absl::StrCat("no address for ", host));
  return failure;
}

absl::StatusOr<int> ListenVsock(uint32_t port) {
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = VMADDR_CID_ANY;
  address.svm_port = port;
  return BindAndListen(AF_VSOCK, reinterpret_cast<sockaddr*>(&address), sizeof address, SOMAXCONN);
}

int LocalPort(int fd) {
  sockaddr_storage address{};
  socklen_t bytes = sizeof address;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &bytes) < 0) return 0;
  if (address.ss_family == AF_INET) return ntohs(reinterpret_cast<sockaddr_in&>(address).sin_port);
  if (address.ss_family == AF_INET6)
    return ntohs(reinterpret_cast<sockaddr_in6&>(address).sin6_port);
  return 0;
}

Task<absl::StatusOr<int>> Accept(int fd, Watch* watch) {
  for (;;) {
    int connection = accept4(fd, nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (connection >= 0) co_return connection;
    if (errno == EINTR || errno == ECONNABORTED) continue;
    if (!WouldBlock(errno)) co_return ErrnoError(errno, "cannot accept a connection");
    BLK_CO_RETURN_IF_ERROR(co_await watch->Readable());
  }
}

Task<absl::StatusOr<StreamPtr>> ConnectUnix(std::string path) {
  BLK_CO_ASSIGN_OR_RETURN(sockaddr_un address, UnixAddress(path));
  sockaddr_storage storage{};
  std::memcpy(&storage, &address, sizeof address);
  // A full backlog of a Unix socket answers EAGAIN at once, where TCP would wait.
  constexpr int kTriesMax = 1000;
  for (int i = 0;; ++i) {
    auto stream = co_await Connect(AF_UNIX, storage, sizeof address, path);
    if (stream.ok() || ErrnoOf(stream.status()) != EAGAIN || i == kTriesMax) co_return stream;
    BLK_CO_RETURN_IF_ERROR(co_await Loop::Current()->Sleep(5'000'000));
  }
}

Task<absl::StatusOr<StreamPtr>> ConnectTcp(std::string host, std::string port) {
  absl::StatusOr<AddressList> list = absl::UnknownError("not resolved");
  co_await Loop::Current()->Offload([&] { list = Resolve(host, port, AF_UNSPEC, false); });
  if (!list.ok()) co_return list.status();
  absl::Status failure = absl::NotFoundError(absl::StrCat("no address for ", host));
  for (addrinfo* a = list->get(); a; a = a->ai_next) {
    sockaddr_storage storage{};
    std::memcpy(&storage, a->ai_addr, a->ai_addrlen);
    auto stream =
        co_await Connect(a->ai_family, storage, a->ai_addrlen, absl::StrCat(host, ":", port));
    if (stream.ok()) co_return stream;
    failure = stream.status();
  }
  co_return failure;
}

Task<absl::StatusOr<StreamPtr>> ConnectVsock(uint32_t cid, uint32_t port) {
  sockaddr_vm address{};
  address.svm_family = AF_VSOCK;
  address.svm_cid = cid;
  address.svm_port = port;
  sockaddr_storage storage{};
  std::memcpy(&storage, &address, sizeof address);
  return Connect(AF_VSOCK, storage, sizeof address, absl::StrCat("vsock ", cid, ":", port));
}

}  // namespace blk
