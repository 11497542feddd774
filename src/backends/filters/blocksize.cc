// blocksize: any request becomes requests that the disk below can do: whole blocks, not too long.
// blocksize-policy: other block sizes are told to clients, and may be insisted on.
//
// Parallel-safe: what is written locks its blocks, so that no two writers of one block lose bytes.
#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>

#include "src/backends/filters/aligned_io.h"
#include "src/backends/filters/range_lock.h"
#include "src/backends/filters/wrap_layer.h"
#include "src/core/buffer.h"
#include "src/core/spec.h"

namespace blk {
namespace {

constexpr uint64_t kMinimumMax = 64 << 10;  // NBD protocol, "Block size constraints", as are others
constexpr uint64_t kLengthMax = UINT32_MAX;

struct Config {
  std::optional<Size> minblock, maxdata, maxlen;
};

struct Limits {
  uint64_t block, data, length;
};

class BlockSizeDevice final : public Filter {
 public:
  BlockSizeDevice(DevicePtr below, Limits limits, RangeLock* lock)
      : Filter(below, MakeFacts(*below, limits)), limits_(limits), lock_(*lock) {}

 private:
  // Those who write whole blocks need not wait for each other.
  auto Lock(uint64_t offset, uint64_t length) {
    const uint64_t first = offset / limits_.block;
    const uint64_t count = (offset + length - 1) / limits_.block - first + 1;
    const bool whole = (offset | length) % limits_.block == 0;
    return whole ? lock_.LockShared(first, count) : lock_.Lock(first, count);
  }

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    const BlockSizes sizes = {static_cast<uint32_t>(limits_.block), 0,
                              static_cast<uint32_t>(limits_.data)};
    if ((offset | into.size()) % limits_.block == 0 && into.size() <= limits_.data)
      return below().Read(call, offset, into);
    return SlowRead(call, offset, into, sizes);
  }
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override {
    return ChangeStable(call, offset, from.size(), from.data());
  }
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override {
    if ((call.flags & kFastZero) && (offset | length) % limits_.block != 0)
      return ErrnoErrorAsIs(EOPNOTSUPP, "zeroing part of a block is no faster than writing");
    return ChangeStable(call, offset, length, nullptr);
  }
  // A trim is advice: what is not whole blocks is left alone.
  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override {
    const uint64_t begin = RoundUp(offset), end = RoundDown(offset + length);
    RangeLock::Guard guard = co_await Lock(offset, length);
    for (uint64_t at = begin; at < end; at += std::min(limits_.length, end - at))
      BLK_CO_RETURN_IF_ERROR(co_await below().Trim(call, at, std::min(limits_.length, end - at)));
    co_return absl::OkStatus();
  }
  Task<absl::Status> DoCache(const Call& call, uint64_t offset, uint64_t length) override {
    const uint64_t end = RoundUp(offset + length);
    for (uint64_t at = RoundDown(offset); at < end; at += std::min(limits_.length, end - at))
      BLK_CO_RETURN_IF_ERROR(co_await below().Cache(call, at, std::min(limits_.length, end - at)));
    co_return absl::OkStatus();
  }
  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override {
    return AlignedExtents(&below(), call, context, limits_.block, limits_.length, list);
  }

 private:
  static Facts MakeFacts(const Device& below, Limits limits) {
    Facts facts = below.facts();
    facts.size = below.size() / limits.block * limits.block;
    facts.block.minimum = 1;
    facts.block.preferred = std::max(facts.block.preferred, static_cast<uint32_t>(limits.block));
    facts.block.maximum = UINT32_MAX;  // whatever is sent is cut
    return facts;
  }
  uint64_t RoundDown(uint64_t offset) const { return offset / limits_.block * limits_.block; }
  uint64_t RoundUp(uint64_t offset) const { return RoundDown(offset + limits_.block - 1); }
  Task<absl::Status> SlowRead(const Call& call, uint64_t offset, std::span<char> into,
                              BlockSizes sizes) {
    co_return co_await ReadUnaligned(&below(), call, offset, into, sizes);
  }

  // One flush for all pieces, where each piece with FUA would cost one.
  Task<absl::Status> ChangeStable(Call call, uint64_t offset, uint64_t length, const char* data) {
    const Facts& below_facts = below().facts();
    const bool native = below_facts.fua == Support::kNative && !below_facts.fua_by_flush;
    if (!(call.flags & kFua) || native) co_return co_await Change(call, offset, length, data);
    call.flags &= ~kFua;
    BLK_CO_RETURN_IF_ERROR(co_await Change(call, offset, length, data));
    co_return co_await below().Flush(call.With(0));
  }

  // Writes `data`, or zeroes without data.
  Task<absl::Status> Change(const Call& call, uint64_t offset, uint64_t length, const char* data) {
    RangeLock::Guard guard = co_await Lock(offset, length);
    for (uint64_t at = offset, end = offset + length; at < end;) {
      const uint64_t block_end = RoundDown(at) + limits_.block;
      uint64_t step = std::min(end, block_end) - at;
      if (at % limits_.block != 0 || step < limits_.block) {
        BLK_CO_RETURN_IF_ERROR(
            co_await ChangePart(call, at, step, data ? data + (at - offset) : nullptr));
      } else if (data) {
        step = std::min(RoundDown(end) - at, limits_.data);
        BLK_CO_RETURN_IF_ERROR(co_await below().Write(call, at, {data + (at - offset), step}));
      } else {
        step = std::min(RoundDown(end) - at, limits_.length);
        BLK_CO_RETURN_IF_ERROR(co_await below().Zero(call, at, step));
      }
      at += step;
    }
    co_return absl::OkStatus();
  }

  // The same for a part of one block.
  Task<absl::Status> ChangePart(const Call& call, uint64_t offset, uint64_t length,
                                const char* data) {
    Buffer block(limits_.block);
    const uint64_t begin = RoundDown(offset);
    BLK_CO_RETURN_IF_ERROR(co_await below().Read(call.With(0), begin, block.span()));
    if (data) std::memcpy(block.data() + (offset - begin), data, length);
    if (!data) std::memset(block.data() + (offset - begin), 0, length);
    co_return co_await below().Write(call.With(call.flags & kFua), begin, block.span());
  }

  const Limits limits_;
  RangeLock& lock_;  // of blocks; shared by all devices of the layer
};

class BlockSizeLayer final : public FilterLayer {
 public:
  BlockSizeLayer(LayerPtr below, Config config) : FilterLayer(std::move(below)), config_(config) {}

 protected:
  absl::StatusOr<DevicePtr> Wrap(DevicePtr device, const OpenArgs&) override {
    const BlockSizes& sizes = device->facts().block;
    Limits limits;
    limits.block = std::max<uint64_t>(config_.minblock.value_or(Size{1}).bytes, sizes.minimum);
    limits.data = std::min<uint64_t>(config_.maxdata.value_or(Size{limits::kRequestBytesMax}).bytes,
                                     sizes.maximum) /
                  limits.block * limits.block;
    limits.length = config_.maxlen.value_or(Size{kLengthMax}).bytes / limits.block * limits.block;
    if (limits.data == 0 || limits.length == 0)
      return ErrnoErrorAsIs(EINVAL, absl::StrCat("maxdata and maxlen must not be less than one "
                                                 "block of ",
                                                 limits.block, " bytes"));
    return std::make_shared<BlockSizeDevice>(std::move(device), limits, &lock_);
  }

 private:
  const Config config_;
  RangeLock lock_;
};

absl::StatusOr<LayerPtr> MakeBlockSize(Config config, LayerPtr below) {
  const uint64_t block = config.minblock.value_or(Size{1}).bytes;
  if (!std::has_single_bit(block) || block > kMinimumMax)
    return absl::InvalidArgumentError("minblock must be a power of two of at most 64K");
  for (const auto& [name, size] : {std::pair("maxdata", config.maxdata), {"maxlen", config.maxlen}})
    if (size && (size->bytes == 0 || size->bytes % block != 0))
      return absl::InvalidArgumentError(absl::StrCat(name, " must be a multiple of minblock"));
  return std::make_shared<BlockSizeLayer>(std::move(below), config);
}

// ---- blocksize-policy

struct PolicyConfig {
  bool refuse = false;
  std::optional<Size> minimum, preferred, maximum, write_disconnect;
};

// The door leaves the checks of block sizes to this device, since a write that is too long ends the
// connection even when it would be refused for another reason.
class PolicyDevice final : public Filter {
 public:
  PolicyDevice(DevicePtr below, const PolicyConfig& config, Session* session)
      : Filter(below, MakeFacts(*below, config), /*passes_data=*/true),
        refuse_(config.refuse),
        disconnect_bytes_(config.write_disconnect.value_or(Size{UINT64_MAX}).bytes),
        session_(session) {}

 protected:
  Task<absl::Status> DoRead(const Call& call, uint64_t offset, std::span<char> into) override {
    if (absl::Status s = Check(offset, into.size(), facts().block.maximum); !s.ok()) return s;
    return below().Read(call, offset, into);
  }
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override {
    if (from.size() > disconnect_bytes_) {
      if (session_) session_->RequestDisconnect(Session::Disconnect::kHard);
      return TooLong(from.size());
    }
    if (absl::Status s = Check(offset, from.size(), facts().block.maximum); !s.ok()) return s;
    return below().Write(call, offset, from);
  }
  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override {
    if (absl::Status s = Check(offset, length); !s.ok()) return s;
    return below().Trim(call, offset, length);
  }
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override {
    if (absl::Status s = Check(offset, length); !s.ok()) return s;
    return below().Zero(call, offset, length);
  }
  Task<absl::Status> DoCache(const Call& call, uint64_t offset, uint64_t length) override {
    if (absl::Status s = Check(offset, length); !s.ok()) return s;
    return below().Cache(call, offset, length);
  }
  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override {
    if (absl::Status s = Check(list->start(), list->end() - list->start()); !s.ok()) return s;
    return below().Extents(call, context, list);
  }
  bool DoBorrow(const Call& call, uint64_t offset, uint64_t length, Loan* loan) override {
    return Check(offset, length, facts().block.maximum).ok() &&
           Filter::DoBorrow(call, offset, length, loan);
  }

 private:
  static Facts MakeFacts(const Device& below, const PolicyConfig& config) {
    Facts facts = below.facts();
    auto set = [](uint32_t* to, const std::optional<Size>& size) {
      if (size) *to = static_cast<uint32_t>(std::min(size->bytes, kLengthMax));
    };
    set(&facts.block.minimum, config.minimum);
    set(&facts.block.preferred, config.preferred);
    set(&facts.block.maximum, config.maximum);
    facts.block.preferred = std::max(facts.block.preferred, facts.block.minimum);
    facts.block.maximum = std::max(facts.block.maximum, facts.block.preferred);
    facts.block_is_advice = true;
    return facts;
  }
  absl::Status Check(uint64_t offset, uint64_t length, uint64_t maximum = UINT64_MAX) const {
    if (!refuse_) return absl::OkStatus();
    if (length > maximum) return TooLong(length);
    const uint32_t minimum = facts().block.minimum;
    if ((offset | length) % minimum == 0) return absl::OkStatus();
    return ErrnoErrorAsIs(EINVAL, absl::StrCat("offset ", offset, " length ", length,
                                               " is not a multiple of the minimum block size of ",
                                               minimum, " bytes"));
  }
  absl::Status TooLong(uint64_t bytes) const {
    return ErrnoErrorAsIs(EINVAL, absl::StrCat("a request of ", bytes,
                                               " bytes is longer than the maximum block size"));
  }

  const bool refuse_;
  const uint64_t disconnect_bytes_;
  Session* const session_;  // null outside a server
};

absl::StatusOr<LayerPtr> MakePolicy(PolicyConfig config, LayerPtr below) {
  const uint64_t minimum = config.minimum.value_or(Size{1}).bytes;
  const uint64_t preferred = config.preferred.value_or(Size{4096}).bytes;
  if (!std::has_single_bit(minimum) || minimum > kMinimumMax)
    return absl::InvalidArgumentError(
        "blocksize-minimum must be a power of two and between 1 and 64K");
  if (!std::has_single_bit(preferred) || preferred < 512 || preferred > 32u << 20)
    return absl::InvalidArgumentError(
        "blocksize-preferred must be a power of two and between 512 and 32M");
  if (config.preferred && preferred < minimum)
    return absl::InvalidArgumentError(
        "blocksize-preferred must not be less than blocksize-minimum");
  if (config.maximum && config.maximum->bytes != kLengthMax &&
      (config.maximum->bytes == 0 || config.maximum->bytes > kLengthMax ||
       config.maximum->bytes % minimum != 0))
    return absl::InvalidArgumentError("blocksize-maximum must be a multiple of blocksize-minimum");
  if (config.maximum && config.preferred && config.maximum->bytes < preferred)
    return absl::InvalidArgumentError(
        "blocksize-maximum must not be less than blocksize-preferred");
  return MakeWrapLayer(std::move(below), [config](DevicePtr device, const OpenArgs& args) {
    return absl::StatusOr<DevicePtr>(
        std::make_shared<PolicyDevice>(std::move(device), config, args.session));
  });
}

}  // namespace

const Spec& BlockSizeSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("blocksize", "cut and widen requests to what the disk can do")
          .Param("minblock", &Config::minblock,
                 {.help = "read and write only whole blocks of this size, at most 64K"})
          .Param("maxdata", &Config::maxdata, {.help = "longest read or write"})
          .Param("maxlen", &Config::maxlen, {.help = "longest of the other requests"})
          .Description(
              "What is not given is taken from the disk below. Its size is rounded down to whole "
              "blocks; the filter truncate can round it up before.")
          .Example("blocksize(minblock=4K,maxdata=64K)+memory:1M")
          .Make(MakeBlockSize));
  return spec;
}

const Spec& BlockSizePolicySpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<PolicyConfig>("blocksize-policy", "tell clients of other block sizes")
          .Param("blocksize-error-policy", &PolicyConfig::refuse,
                 {{"allow", false}, {"error", true}},
                 {.help = "what becomes of requests that do not follow them"})
          .Param("blocksize-minimum", &PolicyConfig::minimum, {.help = "minimum block size"})
          .Param("blocksize-preferred", &PolicyConfig::preferred, {.help = "preferred block size"})
          .Param("blocksize-maximum", &PolicyConfig::maximum, {.help = "maximum block size"})
          .Param("blocksize-write-disconnect", &PolicyConfig::write_disconnect,
                 {.help = "disconnect a client that writes more bytes at once"})
          .Example("blocksize-policy(blocksize-preferred=32K)+memory:1M")
          .Make(MakePolicy));
  return spec;
}

}  // namespace blk
