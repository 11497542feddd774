// checkwrite: writes are compared with what is there; a difference is EIO. Proves copies.
//
// Parallel-safe: no state. The disk below is opened for reading only.
#include <algorithm>
#include <cerrno>
#include <cstring>

#include "src/backends/filters/aligned_io.h"
#include "src/core/buffer.h"
#include "src/core/spec.h"
#include "src/core/zeroes.h"

namespace blk {
namespace {

constexpr uint64_t kPieceBytes = 1 << 20;

class CheckDevice final : public Filter {
 public:
  CheckDevice(DevicePtr below, bool read_only)
      : Filter(below, MakeFacts(*below, read_only), true) {}

 protected:
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override {
    Buffer held(std::min<uint64_t>(kPieceBytes, from.size()));
    while (!from.empty()) {
      std::span<char> part = held.span().first(std::min(held.size(), from.size()));
      BLK_CO_RETURN_IF_ERROR(co_await ReadUnaligned(&below(), call.With(0), offset, part));
      if (std::memcmp(part.data(), from.data(), part.size()) != 0) co_return Different(offset);
      offset += part.size();
      from = from.subspan(part.size());
    }
    co_return absl::OkStatus();
  }
  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override {
    return CheckZero(call, offset, length);
  }
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override {
    return CheckZero(call, offset, length);
  }
  Task<absl::Status> DoFlush(const Call&) override { return absl::OkStatus(); }

 private:
  static Facts MakeFacts(const Device& below, bool read_only) {
    Facts facts = below.facts();
    facts.read_only = read_only;
    facts.flush = facts.trim = facts.zero = facts.fast_zero = true;
    facts.fua = Support::kNative;
    facts.multi_conn = true;
    return facts;
  }
  static absl::Status Different(uint64_t offset) {
    return ErrnoErrorAsIs(
        EIO, absl::StrCat("what is written at or after ", offset, " is not what is there"));
  }

  // Holes need not be read.
  Task<absl::Status> CheckZero(const Call& call, uint64_t offset, uint64_t length) {
    const Call plain = call.With(0);
    ExtentList list(offset, length);
    Buffer held;
    while (!list.full()) {
      const uint64_t from = list.next();
      ExtentList part(from, list.end() - from, 1);
      BLK_CO_RETURN_IF_ERROR(co_await below().Extents(plain, kBaseAllocation, &part));
      const Extent extent = part.front();
      list.Append(extent.length, 0);
      if (extent.flags & kExtentZero) continue;
      if (!held) held = Buffer(kPieceBytes);
      for (uint64_t at = from; at < from + extent.length;) {
        std::span<char> piece = held.span().first(std::min(kPieceBytes, from + extent.length - at));
        BLK_CO_RETURN_IF_ERROR(co_await ReadUnaligned(&below(), plain, at, piece));
        if (!IsZero(piece.data(), piece.size())) co_return Different(at);
        at += piece.size();
      }
    }
    co_return absl::OkStatus();
  }
};

class CheckLayer final : public FilterLayer {
 public:
  using FilterLayer::FilterLayer;
  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    const bool read_only = args.read_only;
    args.read_only = true;
    BLK_CO_ASSIGN_OR_RETURN(DevicePtr device, co_await below().Open(std::move(args)));
    co_return std::make_shared<CheckDevice>(std::move(device), read_only);
  }
};

}  // namespace

const Spec& CheckWriteSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<NoConfig>("checkwrite", "compare what is written with what is there")
          .Description(
              "A copy of a disk onto itself through this filter succeeds, and one with a mistake "
              "fails with EIO. Nothing is ever written; trims must find zeroes.")
          .PrintedExample("checkwrite+disk.img", "the target of a copy that is to be proved")
          .Make([](NoConfig, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<CheckLayer>(std::move(below));
          }));
  return spec;
}

}  // namespace blk
