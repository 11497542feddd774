#pragma once
// FlushGroup: the open devices of one disk, where a flush of one may not cover what was written
// through another (Facts::multi_conn is false): then all are flushed.
//
// Owner: a filter's layer. Threads: any loop; a member that is being flushed for another is not
// closed meanwhile.
#include <atomic>
#include <cerrno>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "src/core/device.h"
#include "src/core/sync.h"

namespace blk {

class FlushGroup {
 public:
  // One open device, as others see it. Set `dirty` after a change has ended and before it is
  // acknowledged.
  struct Member {
    DevicePtr device;
    std::string export_name;
    bool others_rely = false;  // they flush it, too
    std::atomic<bool> dirty{false};
    // It may hold what others have made stale since; for its owner alone.
    std::atomic<bool> has_read{false};

    // Flushes the device, unless it is closed, or is clean and that is `enough`. What could not be
    // flushed is lost, whoever wrote it; a disk may say so only once, so it is kept for all who
    // rely on it.
    Task<absl::Status> Flush(Call call, bool enough) {
      MutexGuard guard = co_await in_use_.Lock();
      if (closed_) co_return absl::OkStatus();
      BLK_CO_RETURN_IF_ERROR(lost_);
      // A mark that is gone says nothing before the flush that took it has ended: it may yet fail.
      if (!dirty.exchange(false) && enough) co_return absl::OkStatus();
      absl::Status status = co_await device->Flush(call);
      if (status.ok()) co_return status;
      dirty = true;
      const int error = ErrnoOf(status);
      if (others_rely && error != ECANCELED && error != ETIMEDOUT) lost_ = status;
      co_return status;
    }
    // Nobody flushes it any more.
    Task<absl::Status> Close() {
      MutexGuard guard = co_await in_use_.Lock();
      closed_ = true;
      co_return co_await device->Close();
    }

   private:
    Mutex in_use_;
    bool closed_ = false;  // guarded by in_use_, as is the next
    absl::Status lost_;
  };
  using MemberPtr = std::shared_ptr<Member>;

  MemberPtr Add(DevicePtr device, std::string export_name, bool others_rely) {
    auto member = std::make_shared<Member>();
    member->device = std::move(device);
    member->export_name = std::move(export_name);
    member->others_rely = others_rely;
    std::lock_guard lock(mutex_);
    all_.push_back(member);
    return member;
  }
  void Remove(const MemberPtr& member) {
    std::lock_guard lock(mutex_);
    std::erase(all_, member);
  }
  std::vector<MemberPtr> All() const {
    std::lock_guard lock(mutex_);
    return all_;
  }

 private:
  mutable std::mutex mutex_;
  std::vector<MemberPtr> all_;
};

}  // namespace blk
