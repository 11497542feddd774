#pragma once
// RangeLock: one holder at a time of each number in a range, for block numbers, or several that
// share it. First come, first served among those that overlap; ranges that do not overlap never
// wait for each other.
//
// Owner: whoever shares it; outlives all holders and waiters. Threads: any loop; a waiter resumes
// on its own. Cannot be cancelled: bound the work that is done while holding. A coroutine that
// holds one range must not ask for another.
#include <algorithm>
#include <coroutine>
#include <cstdint>
#include <list>
#include <mutex>
#include <utility>

#include "src/core/loop.h"

namespace blk {

class RangeLock {
  struct Entry {
    uint64_t first, count;
    Loop* loop;                      // of the waiter
    std::coroutine_handle<> waiter;  // null: holds the range
    bool shared;
    bool Excludes(const Entry& other) const {
      return !(shared && other.shared) && Overlaps(other.first, other.count);
    }
    bool Overlaps(uint64_t other_first, uint64_t other_count) const {
      return first < other_first + other_count && other_first < first + count;
    }
  };
  using Entries = std::list<Entry>;

 public:
  class [[nodiscard]] Guard {
   public:
    Guard(RangeLock* lock, Entries::iterator entry) : lock_(lock), entry_(entry) {}
    Guard(Guard&& other) noexcept
        : lock_(std::exchange(other.lock_, nullptr)), entry_(other.entry_) {}
    Guard& operator=(Guard&&) = delete;
    ~Guard() {
      if (lock_) lock_->Release(entry_);
    }

   private:
    RangeLock* lock_;
    Entries::iterator entry_;
  };

 private:
  auto Wait(uint64_t first, uint64_t count, bool shared) {
    struct Awaiter {
      RangeLock* lock;
      uint64_t first, count;
      bool shared;
      Entries::iterator entry;
      bool await_ready() const noexcept { return false; }
      bool await_suspend(std::coroutine_handle<> handle) {
        std::lock_guard guard(lock->mutex_);
        entry = lock->entries_.insert(lock->entries_.end(),
                                      {first, count, Loop::Current(), handle, shared});
        if (!lock->IsFree(entry)) return true;
        entry->waiter = nullptr;
        return false;
      }
      Guard await_resume() const { return Guard(lock, entry); }
    };
    return Awaiter{this, first, count, shared, {}};
  }

 public:
  // `RangeLock::Guard guard = co_await lock.Lock(first, count);` [first, first + count), no
  // overflow.
  auto Lock(uint64_t first, uint64_t count) { return Wait(first, count, /*shared=*/false); }
  // Together with others that share it, apart from those that do not.
  auto LockShared(uint64_t first, uint64_t count) { return Wait(first, count, /*shared=*/true); }
  // How much of the range, from its beginning, nobody holds or waits for at this moment.
  uint64_t FreeBefore(uint64_t first, uint64_t count) {
    std::lock_guard guard(mutex_);
    for (const Entry& entry : entries_)
      if (entry.Overlaps(first, count)) count = std::max(entry.first, first) - first;
    return count;
  }

 private:
  // Nobody who came before keeps it out.
  bool IsFree(Entries::iterator wanted) {
    return std::none_of(entries_.begin(), wanted,
                        [&](const Entry& entry) { return entry.Excludes(*wanted); });
  }

  void Release(Entries::iterator released) {
    std::lock_guard guard(mutex_);
    const uint64_t first = released->first, count = released->count;
    auto next = entries_.erase(released);
    for (; next != entries_.end(); ++next) {
      if (!next->waiter || !next->Overlaps(first, count)) continue;
      if (IsFree(next)) next->loop->Post(std::exchange(next->waiter, nullptr));
    }
  }

  std::mutex mutex_;
  Entries entries_;  // guarded by mutex_; in the order in which they came
};

}  // namespace blk
