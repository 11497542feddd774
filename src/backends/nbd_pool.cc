#include "src/backends/nbd_pool.h"

#include <algorithm>

#include "src/core/loop.h"
#include "src/core/trace.h"

namespace blk {
namespace {
// Compact requests have 32-bit lengths; longer ones go in pieces of this.
constexpr uint64_t kPieceBytes = uint64_t{1} << 31;
}  // namespace

NbdDevice::NbdDevice(NbdConnection first, NbdConnect connect, int connections_max)
    : Device(std::move(first.facts)),
      connect_(std::move(connect)),
      wide_(first.told.style == nbd::ReplyStyle::kExtended),
      connections_max_(facts().multi_conn ? std::max(1, connections_max) : 1) {
  first_ = GroupHere();
  first_->sessions.push_back(std::move(first.session));
  first_->connected = connections_max_ == 1;
}

NbdDevice::~NbdDevice() = default;

NbdDevice::Group* NbdDevice::GroupHere() {
  std::lock_guard lock(mutex_);
  std::unique_ptr<Group>& group = groups_[Loop::Current()];
  if (!group) {
    group = std::make_unique<Group>();
    group->loop = Loop::Current();
  }
  return group.get();
}

// The session with the fewest requests in flight.
nbd::ClientSession* NbdDevice::Pick(Group& group) {
  nbd::ClientSession* best = group.sessions.front().get();
  for (const auto& session : group.sessions)
    if (session->in_flight() < best->in_flight()) best = session.get();
  return best;
}

nbd::ClientSession* NbdDevice::SessionHere() {
  Group* group =
      connections_max_ == 1 ? (first_->loop == Loop::Current() ? first_ : nullptr) : GroupHere();
  return group && group->connected && !group->sessions.empty() ? Pick(*group) : nullptr;
}

// Gives this loop its share of connections. A loop that gets none borrows those of the first.
Task<absl::Status> NbdDevice::Connected(Group* group) {
  MutexGuard guard = co_await group->connecting.Lock();
  const int loops = static_cast<int>(group->loop->pool_size());
  const size_t share = std::max(1, connections_max_ / loops);
  while (!group->connected && group->sessions.size() < share) {
    {
      std::lock_guard lock(mutex_);
      if (connections_ >= connections_max_) break;
      ++connections_;
    }
    auto connection = co_await connect_();
    if (!connection.ok()) {
      // What we have will do; a server may limit its clients.
      LogDebug("nbd: no further connection: ", connection.status().message());
      break;
    }
    group->sessions.push_back(std::move(connection->session));
  }
  group->connected = true;
  co_return absl::OkStatus();
}

Task<absl::Status> NbdDevice::RunSlowly(Operation operation) {
  Group* group = connections_max_ == 1 ? first_ : GroupHere();
  if (group->loop == Loop::Current()) BLK_CO_RETURN_IF_ERROR(co_await Connected(group));
  if (!group->sessions.empty() && group->loop == Loop::Current())
    co_return co_await operation(Pick(*group));
  // The first loop's session, used there.
  Loop* home = Loop::Current();
  co_await ResumeOn{first_->loop};
  absl::Status status = co_await operation(Pick(*first_));
  co_await ResumeOn{home};
  co_return status;
}

template <typename Op>
Task<absl::Status> NbdDevice::Run(Op operation) {
  if (nbd::ClientSession* session = SessionHere()) return operation(session);
  return RunSlowly(operation);
}

Task<absl::Status> NbdDevice::DoRead(const Call& call, uint64_t offset, std::span<char> into) {
  return Run([=, &call](nbd::ClientSession* session) { return session->Read(offset, into, call); });
}

Task<absl::Status> NbdDevice::DoWrite(const Call& call, uint64_t offset,
                                      std::span<const char> from) {
  return Run([=, &call](nbd::ClientSession* session) {
    return session->Write(offset, from, call.flags, call);
  });
}

Task<absl::Status> NbdDevice::DoFlush(const Call& call) {
  if (!facts().flush) return absl::OkStatus();  // the server has nothing to flush, and would refuse
  return Run([&call](nbd::ClientSession* session) { return session->Flush(call); });
}

Task<absl::Status> NbdDevice::InPieces(
    uint64_t offset, uint64_t length,
    std::function<Task<absl::Status>(uint64_t, uint64_t)> operation) {
  while (length > 0) {
    uint64_t step = std::min(length, kPieceBytes);
    BLK_CO_RETURN_IF_ERROR(co_await operation(offset, step));
    offset += step;
    length -= step;
  }
  co_return absl::OkStatus();
}

Task<absl::Status> NbdDevice::DoTrim(const Call& call, uint64_t offset, uint64_t length) {
  if (!facts().trim) return absl::OkStatus();
  auto trim = [this, &call](uint64_t at, uint64_t bytes) {
    return Run([=, &call](nbd::ClientSession* session) {
      return session->Trim(at, bytes, call.flags, call);
    });
  };
  return wide_ || length <= kPieceBytes ? trim(offset, length) : InPieces(offset, length, trim);
}

Task<absl::Status> NbdDevice::DoZero(const Call& call, uint64_t offset, uint64_t length) {
  if (!facts().zero || ((call.flags & kFastZero) && !facts().fast_zero))
    return Device::DoZero(call, offset, length);
  auto zero = [this, &call](uint64_t at, uint64_t bytes) {
    return Run([=, &call](nbd::ClientSession* session) {
      return session->Zero(at, bytes, call.flags, call);
    });
  };
  return wide_ || length <= kPieceBytes ? zero(offset, length) : InPieces(offset, length, zero);
}

Task<absl::Status> NbdDevice::DoCache(const Call& call, uint64_t offset, uint64_t length) {
  if (facts().cache == Support::kNone) return absl::OkStatus();
  auto cache = [this, &call](uint64_t at, uint64_t bytes) {
    return Run([=, &call](nbd::ClientSession* session) { return session->Cache(at, bytes, call); });
  };
  return wide_ || length <= kPieceBytes ? cache(offset, length) : InPieces(offset, length, cache);
}

Task<absl::Status> NbdDevice::DoExtents(const Call& call, std::string_view context,
                                        ExtentList* list) {
  if (!facts().extents) return Device::DoExtents(call, context, list);
  return Run([context, list, &call](nbd::ClientSession* session) {
    return session->Extents(context, list, call.flags & kRequestOne, call);
  });
}

Task<absl::Status> NbdDevice::DoClose() {
  std::vector<Group*> groups;
  {
    std::lock_guard lock(mutex_);
    for (auto& [loop, group] : groups_) groups.push_back(group.get());
  }
  Loop* home = Loop::Current();
  for (Group* group : groups) {
    co_await ResumeOn{group->loop};
    for (auto& session : group->sessions) co_await session->Close();
    group->sessions.clear();  // their descriptors are watched by this loop
  }
  co_await ResumeOn{home};
  co_return absl::OkStatus();
}

}  // namespace blk
