// readahead: who reads one part after the other finds the next ones prefetched. It asks the disk
// below to cache them, so there must be a cache: its own, or the cache or cow filter.
//
// Parallel-safe: what is known of the readers is behind a lock that is held for moments; prefetches
// run in the background.
#include <algorithm>
#include <array>
#include <bit>
#include <mutex>

#include "src/backends/filters/background.h"
#include "src/backends/filters/wrap_layer.h"
#include "src/core/spec.h"
#include "src/core/trace.h"

namespace blk {
namespace {

constexpr uint64_t kFirstBytes = 64 << 10;  // a reader of less gets kFirstWindow after each read
constexpr uint64_t kFirstWindow = 32 << 10;
constexpr uint64_t kWindowMin = 256 << 10;  // how far ahead of a reader who has just begun
constexpr uint64_t kWindowMax = 32 << 20;   // and of one who has read for long
constexpr uint64_t kPieceBytes = 1 << 20;   // one prefetch, at most
constexpr uint32_t kPrefetchesMax = 32;     // at a time
constexpr int kReaders = 8;                 // a copy reads in several places at a time

// Somebody who reads forwards. With many requests in flight they come in any order.
struct Reader {
  uint64_t next = 0;        // where it has come to
  uint64_t prefetched = 0;  // up to here it was asked for
  uint64_t bytes = 0;       // so much
  uint64_t window = 0;      // so far ahead of it; 0: has read once only
  uint64_t last_use = 0;

  bool Fits(uint64_t offset) const {
    return offset + std::max(window, kWindowMin) >= next && offset <= std::max(next, prefetched);
  }
};

class ReadAheadDevice final : public Filter {
 public:
  explicit ReadAheadDevice(DevicePtr below)
      : Filter(below, below->facts()), background_(kPrefetchesMax) {
    readers_[0] = {.window = kWindowMin};  // the first is expected at the beginning
  }

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    StartPrefetches(offset, into.size());
    return below().Read(call, offset, into);
  }
  Task<absl::Status> DoClose() override {
    co_await background_.Stop();
    co_return co_await below().Close();
  }

 private:
  void StartPrefetches(uint64_t offset, uint64_t length) {
    std::lock_guard lock(mutex_);
    Reader& reader = ReaderAt(offset);
    reader.last_use = ++uses_;
    reader.next = std::max(reader.next, offset + length);
    reader.bytes += length;
    const bool first = reader.window == 0;
    reader.window = std::clamp(2 * reader.bytes, kWindowMin, kWindowMax);
    reader.prefetched = std::max(reader.prefetched, reader.next);
    if (first) return;  // nobody knows yet whether it goes on
    if (reader.bytes <= kFirstBytes) {
      // Small reads, and perhaps few: always the same little more, most of it asked for before.
      const uint64_t step = std::min(kFirstWindow, size() - reader.next);
      if (step > 0) (void)background_.Start(Prefetch(reader.next, step));
      return;
    }
    // Whole pieces only, so that a small request does not become a small prefetch.
    const uint64_t piece = std::min(std::bit_floor(reader.window / 2), kPieceBytes);
    const uint64_t end = std::min(reader.next + reader.window, size());
    while (reader.prefetched < end) {
      const uint64_t step = std::min(piece - reader.prefetched % piece, size() - reader.prefetched);
      if (reader.prefetched + step > end || !background_.Start(Prefetch(reader.prefetched, step)))
        return;
      reader.prefetched += step;
    }
  }

  Reader& ReaderAt(uint64_t offset) {
    for (Reader& reader : readers_)
      if (reader.Fits(offset)) return reader;
    Reader& oldest =
        *std::min_element(readers_.begin(), readers_.end(),
                          [](const Reader& a, const Reader& b) { return a.last_use < b.last_use; });
    oldest = {.next = offset, .prefetched = offset};
    return oldest;
  }

  Task<void> Prefetch(uint64_t offset, uint64_t length) {
    const Call call = background_.call();
    absl::Status status = co_await below().Cache(call, offset, length);
    // Whoever reads there finds out.
    if (!status.ok()) LogDebug("readahead: ", status.message());
  }

  Background background_;
  std::mutex mutex_;  // guards what follows
  std::array<Reader, kReaders> readers_;
  uint64_t uses_ = 0;
};

}  // namespace

const Spec& ReadAheadSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<NoConfig>("readahead", "prefetch what is read next")
          .Description(
              "The disk below must be able to prefetch. What cannot gets the filter cache, or cow "
              "with cow-on-cache=true, below this one. Prefetches become larger as long as reads "
              "follow one another; reads here and there cause none.")
          .Example("readahead+memory:64K")
          .Example("readahead+cache+memory:1M")
          .PrintedExample("readahead+cache+nbd://host/disk", "a far-away disk, read from the start")
          .Make([](NoConfig, LayerPtr below) {
            return MakeWrapLayer(
                std::move(below),
                [](DevicePtr device, const OpenArgs&) -> absl::StatusOr<DevicePtr> {
                  if (device->facts().cache != Support::kNone)
                    return std::make_shared<ReadAheadDevice>(std::move(device));
                  LogWarning(
                      "readahead: the disk below cannot prefetch, so this filter does "
                      "nothing: put the filter cache below it");
                  return device;
                });
          }));
  return spec;
}

}  // namespace blk
