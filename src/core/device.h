#pragma once
// Device: one opened export of a layer, the contract that servers, copies, maps, filters and
// formats share. Block I/O only.
//
// Callers use the door (Read, Write, ...): it checks range, alignment, read-only and flags once, so
// that the Do... methods behind it need not. A Do... method is called on whichever loop the caller
// is on, with any number of calls at the same time (the thread model of the layer, enforced by a
// wrapper, may lower that), and resumes its caller there.
//
// Spans and the Call must live until the Task has completed; a cancelled or late operation still
// completes its Task, and after that no span is touched. Tasks must be awaited.
// Offsets and lengths are bytes.
#include <sys/uio.h>

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <stop_token>
#include <string>
#include <string_view>
#include <vector>

#include "absl/container/inlined_vector.h"
#include "src/core/budget.h"
#include "src/core/extents.h"
#include "src/core/file_range.h"
#include "src/core/limits.h"
#include "src/core/task.h"

namespace blk {

inline constexpr std::string_view kBaseAllocation = "base:allocation";

// Flags of a Call.
inline constexpr uint32_t kFua = 1;         // on stable storage before the call completes
inline constexpr uint32_t kFastZero = 2;    // zero: only if faster than writing, else EOPNOTSUPP
inline constexpr uint32_t kNoHole = 4;      // zero: keep the range allocated
inline constexpr uint32_t kRequestOne = 8;  // extents: the first extent is enough
inline constexpr uint32_t kLendFile = 16;   // borrow: a range of a file will do, too

// Who asks, how, and until when. Made by the caller for each operation; filters may pass it on.
struct Call {
  uint32_t flags = 0;
  uint64_t connection = 0;                // number for logs and per-client state; 0: no server
  const std::stop_token* stop = nullptr;  // requested: complete soon, with ECANCELED
  int64_t deadline_ns = INT64_MAX;        // on the loop's clock; then ETIMEDOUT
  MemoryBudget* budget = nullptr;         // what large buffers are drawn from; null: the process's

  Call With(uint32_t new_flags) const {
    Call copy = *this;
    copy.flags = new_flags;
    return copy;
  }
  bool stopped() const { return stop != nullptr && stop->stop_requested(); }
};

// How a device does something: not at all; the door or a filter does it by other means; itself.
enum class Support : uint8_t { kNone, kEmulate, kNative };

// NBD protocol, "Block size constraints".
struct BlockSizes {
  uint32_t minimum = 1;  // offsets and lengths must be multiples
  uint32_t preferred = limits::kPreferredBlockBytes;
  uint32_t maximum = limits::kRequestBytesMax;  // of reads and writes
  friend bool operator==(const BlockSizes&, const BlockSizes&) = default;
};

// What the document has clients of a server do that says nothing.
inline constexpr BlockSizes kAssumedBlockSizes = {1, 4096, 32 << 20};

// A snapshot made when the device is opened; fixed except for the size (Device::size()).
struct Facts {
  uint64_t size = 0;
  BlockSizes block;
  bool block_is_advice = false;   // requests that are no multiples of block.minimum work, too
  bool block_is_assumed = false;  // nobody said what the disk wants: block is kAssumedBlockSizes
  bool read_only = false;
  bool rotational = false;
  bool flush = true;       // there is something to flush
  bool trim = false;       // trims do something
  bool zero = false;       // zeroes without being sent them
  bool offer_zero = true;  // clients are told of zeroing; where not `zero`, zeroes are written
  bool fast_zero = false;  // kFastZero is answered truthfully
  bool extents = false;    // knows holes; else everything is reported as data
  Support fua = Support::kEmulate;
  bool fua_by_flush = false;  // a request with FUA costs a flush, so one FUA for several is better
  Support cache = Support::kNone;
  bool multi_conn = false;         // a flush covers the completed writes of all connections
  bool shared_buffers_ok = false;  // reads each input byte once, never reads back its output
  std::vector<std::string> contexts = {std::string(kBaseAllocation)};
  std::string description;
  std::string export_name;  // canonical, where it differs from what was asked
};

// Bytes that a device lends: valid and unchanged in place until the loan ends (the bytes may change
// under concurrent writes, as with any read). Ends by destruction, on any thread. With kLendFile it
// may be, instead of spans, a range of a file that the device keeps open, all of it in the page
// cache when it was lent.
class Loan {
 public:
  Loan() = default;
  Loan(Loan&& other) noexcept { *this = std::move(other); }
  Loan& operator=(Loan&& other) noexcept {
    End();
    spans_ = std::move(other.spans_);
    file_ = std::exchange(other.file_, {});
    release_ = std::exchange(other.release_, nullptr);
    context_ = std::exchange(other.context_, nullptr);
    other.spans_.clear();
    return *this;
  }
  ~Loan() { End(); }

  void Add(const void* data, size_t bytes) { spans_.push_back({const_cast<void*>(data), bytes}); }
  // `release(context)` is called once, when the loan ends.
  void SetRelease(void (*release)(void*), void* context) {
    release_ = release;
    context_ = context;
  }
  std::span<const iovec> spans() const { return spans_; }
  void SetFile(FileRange range) { file_ = range; }
  const FileRange& file() const { return file_; }
  void End() {
    spans_.clear();
    file_ = {};
    if (release_) std::exchange(release_, nullptr)(context_);
  }

 private:
  absl::InlinedVector<iovec, 2> spans_;
  FileRange file_;
  void (*release_)(void*) = nullptr;
  void* context_ = nullptr;
};

class Device {
 public:
  explicit Device(Facts facts) : facts_(std::move(facts)), size_(facts_.size) {}
  Device(const Device&) = delete;
  virtual ~Device() = default;

  const Facts& facts() const { return facts_; }
  uint64_t size() const { return size_.load(std::memory_order_relaxed); }

  // ---- The door. Errors: EINVAL (range, alignment, flags), ENOSPC (a write or zeroes past the
  // end), EPERM (read-only), ECANCELED, ETIMEDOUT, or what the device says. Length 0 is OK and does
  // nothing.
  Task<absl::Status> Read(const Call& call, uint64_t offset, std::span<char> into);
  Task<absl::Status> Write(const Call& call, uint64_t offset, std::span<const char> from);
  // Everything that was completed before is on stable storage afterwards.
  Task<absl::Status> Flush(const Call& call);
  // Advice that the content is no longer wanted.
  Task<absl::Status> Trim(const Call& call, uint64_t offset, uint64_t length);
  Task<absl::Status> Zero(const Call& call, uint64_t offset, uint64_t length);
  // Prefetch; advice.
  Task<absl::Status> Cache(const Call& call, uint64_t offset, uint64_t length);
  // Appends at least one extent to `list`, which was made for the range asked; it may end early.
  Task<absl::Status> Extents(const Call& call, std::string_view context, ExtentList* list);
  // Lends the bytes of a range instead of copying them. False: not possible (nothing is lent).
  bool Borrow(const Call& call, uint64_t offset, uint64_t length, Loan* loan);
  // Awaited once by whoever opened the device, before the last reference goes; nothing may be in
  // flight. A layer that gives the same device to many ignores it.
  Task<absl::Status> Close() { return DoClose(); }

  // Shortcuts (Borrow) can be forced off for tests: the answers must be the same.
  static void ForceShortcutsOff(bool off) { shortcuts_off_ = off; }

 protected:
  virtual Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) = 0;
  virtual Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                                     std::span<const char> from);                         // EPERM
  virtual Task<absl::Status> DoFlush(const Call& call);                                   // OK
  virtual Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length);  // OK
  // Writes zeroes through DoWrite; EOPNOTSUPP for kFastZero.
  virtual Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length);
  virtual Task<absl::Status> DoCache(const Call& call, uint64_t offset, uint64_t length);  // OK
  // All data.
  virtual Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                                       ExtentList* list);
  virtual Task<absl::Status> DoClose();
  virtual bool DoBorrow(const Call& call, uint64_t offset, uint64_t length, Loan* loan);

  // A resize. Any thread.
  void SetSize(uint64_t size) { size_.store(size, std::memory_order_relaxed); }

 private:
  // What a request does to its range; NBD protocol document, "Error values".
  enum class Access : uint8_t { kRead, kWrite, kTrim };
  absl::Status CheckRange(const Call& call, uint64_t offset, uint64_t length, Access access) const;
  absl::Status RangeError(uint64_t offset, uint64_t length, Access access) const;
  template <typename Argument>
  Task<absl::Status> ThenFlush(Task<absl::Status> (Device::*operation)(const Call&, uint64_t,
                                                                       Argument),
                               Call call, uint64_t offset, Argument argument);

  const Facts facts_;
  std::atomic<uint64_t> size_;
  static std::atomic<bool> shortcuts_off_;
};
using DevicePtr = std::shared_ptr<Device>;

// A device over another. Forwards every operation plainly; what a filter changes, it overrides. The
// exception is Borrow, which stays off unless the filter says that it passes data through
// untouched, or it would be bypassed.
class Filter : public Device {
 public:
  explicit Filter(DevicePtr below) : Filter(below, below->facts()) {}
  // With changed facts; shared_buffers_ok is cleared unless passes_data.
  Filter(DevicePtr below, Facts facts, bool passes_data = false);

 protected:
  Device& below() const { return *below_; }
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override;
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override;
  Task<absl::Status> DoFlush(const Call& call) override;
  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override;
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override;
  Task<absl::Status> DoCache(const Call& call, uint64_t offset, uint64_t length) override;
  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override;
  Task<absl::Status> DoClose() override;
  bool DoBorrow(const Call& call, uint64_t offset, uint64_t length, Loan* loan) override;

 private:
  DevicePtr below_;
  bool passes_data_;
};

}  // namespace blk
