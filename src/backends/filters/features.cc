// Filters that change what a disk says it can do, or how one kind of request is done: nofilter,
// readonly, noextents, nocache, nozero, fua, rotational. Parallel-safe: no state.
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "src/backends/filters/aligned_io.h"
#include "src/backends/filters/request.h"
#include "src/backends/filters/wrap_layer.h"
#include "src/core/buffer.h"
#include "src/core/spec.h"

namespace blk {
namespace {

bool IsWrite(Operation operation) {
  return operation == Operation::kWrite || operation == Operation::kTrim ||
         operation == Operation::kZero;
}

// Other facts, the same data.
class FactsFilter final : public Filter {
 public:
  FactsFilter(DevicePtr below, Facts facts)
      : Filter(std::move(below), std::move(facts), /*passes_data=*/true) {}
};
absl::StatusOr<DevicePtr> WithFacts(DevicePtr below, Facts facts) {
  return std::make_shared<FactsFilter>(std::move(below), std::move(facts));
}

// ---- readonly

struct ReadOnlyConfig {
  std::string file;
};

class SwitchedReadOnly final : public RequestFilter {
 public:
  SwitchedReadOnly(DevicePtr below, const std::string& file)
      : RequestFilter(std::move(below)), file_(file) {}

 protected:
  Task<absl::Status> Handle(Request request) override {
    if (IsWrite(request.operation) && access(file_.c_str(), F_OK) == 0)
      return ErrnoErrorAsIs(EPERM, absl::StrCat("read-only while ", file_, " exists"));
    return Perform(&below(), request);
  }

 private:
  const std::string file_;
};

class ReadOnlyLayer final : public FilterLayer {
 public:
  ReadOnlyLayer(LayerPtr below, ReadOnlyConfig config)
      : FilterLayer(std::move(below)), config_(std::move(config)) {}

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    args.read_only |= config_.file.empty();
    return FilterLayer::Open(std::move(args));
  }

 protected:
  absl::StatusOr<DevicePtr> Wrap(DevicePtr device, const OpenArgs&) override {
    if (!config_.file.empty())
      return std::make_shared<SwitchedReadOnly>(std::move(device), config_.file);
    Facts facts = device->facts();
    facts.read_only = true;
    return WithFacts(std::move(device), std::move(facts));
  }

 private:
  const ReadOnlyConfig config_;
};

// ---- noextents, rotational

class NoExtents final : public Filter {
 public:
  explicit NoExtents(DevicePtr below) : Filter(below, MakeFacts(*below), /*passes_data=*/true) {}

 protected:
  Task<absl::Status> DoExtents(const Call& call, std::string_view context,
                               ExtentList* list) override {
    return Device::DoExtents(call, context, list);
  }

 private:
  static Facts MakeFacts(const Device& below) {
    Facts facts = below.facts();
    facts.extents = false;
    facts.contexts = {std::string(kBaseAllocation)};
    return facts;
  }
};

struct RotationalConfig {
  bool rotational = true;
};

// ---- nocache

enum class CacheMode { kNone, kEmulate, kNop };
struct NoCacheConfig {
  CacheMode mode = CacheMode::kNone;
};

class NoCache final : public Filter {
 public:
  NoCache(DevicePtr below, CacheMode mode)
      : Filter(below, MakeFacts(*below, mode), /*passes_data=*/true), mode_(mode) {}

 protected:
  Task<absl::Status> DoCache(const Call& call, uint64_t offset, uint64_t length) override {
    if (mode_ != CacheMode::kEmulate) return absl::OkStatus();
    return ReadAway(call, offset, length);
  }

 private:
  static Facts MakeFacts(const Device& below, CacheMode mode) {
    Facts facts = below.facts();
    facts.cache = mode == CacheMode::kNone      ? Support::kNone
                  : mode == CacheMode::kEmulate ? Support::kEmulate
                                                : Support::kNative;
    return facts;
  }
  Task<absl::Status> ReadAway(const Call& call, uint64_t offset, uint64_t length) {
    Buffer buffer(std::min<uint64_t>(length, 1 << 20));
    while (length > 0) {
      const uint64_t step = std::min<uint64_t>(length, buffer.size());
      BLK_CO_RETURN_IF_ERROR(
          co_await ReadUnaligned(&below(), call, offset, buffer.span().first(step)));
      offset += step;
      length -= step;
    }
    co_return absl::OkStatus();
  }

  const CacheMode mode_;
};

// ---- nozero

enum class ZeroMode { kNone, kEmulate, kNoTrim, kPlugin };
enum class FastZeroMode { kDefault, kNone, kSlow, kIgnore };
struct NoZeroConfig {
  ZeroMode mode = ZeroMode::kNone;
  FastZeroMode fast = FastZeroMode::kDefault;
};

class NoZero final : public Filter {
 public:
  NoZero(DevicePtr below, NoZeroConfig config)
      : Filter(below, MakeFacts(*below, config), /*passes_data=*/true), config_(config) {}

 protected:
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override {
    uint32_t flags = call.flags;
    if ((flags & kFastZero) && config_.fast == FastZeroMode::kSlow)
      return ErrnoErrorAsIs(EOPNOTSUPP, "zeroing here is no faster than writing");
    if (config_.fast == FastZeroMode::kIgnore) flags &= ~kFastZero;
    if (config_.mode == ZeroMode::kNoTrim) flags |= kNoHole;
    return WithFlags(call.With(flags), offset, length);
  }

 private:
  static Facts MakeFacts(const Device& below, NoZeroConfig config) {
    Facts facts = below.facts();
    facts.offer_zero = config.mode != ZeroMode::kNone;
    if (config.mode <= ZeroMode::kEmulate) facts.zero = false;
    if (config.fast != FastZeroMode::kDefault) {
      facts.fast_zero = config.fast != FastZeroMode::kNone;
    } else if (config.mode <= ZeroMode::kEmulate) {
      facts.fast_zero = facts.offer_zero;  // and refused each time
    }
    return facts;
  }
  Task<absl::Status> WithFlags(Call call, uint64_t offset, uint64_t length) {
    if (config_.mode <= ZeroMode::kEmulate) co_return co_await Device::DoZero(call, offset, length);
    co_return co_await below().Zero(call, offset, length);
  }

  const NoZeroConfig config_;
};

absl::StatusOr<DevicePtr> MakeNoZero(DevicePtr below, NoZeroConfig config) {
  if (config.mode >= ZeroMode::kNoTrim && !below->facts().zero)
    return ErrnoErrorAsIs(EINVAL,
                          "zeromode=notrim and plugin need a disk below that can zero by itself");
  return std::make_shared<NoZero>(std::move(below), config);
}

// ---- fua

enum class FuaMode { kNone, kEmulate, kNative, kForce, kPass, kDiscard };
struct FuaConfig {
  FuaMode mode = FuaMode::kNone;
};

class Fua final : public RequestFilter {
 public:
  Fua(DevicePtr below, FuaMode mode) : RequestFilter(below, MakeFacts(*below, mode)), mode_(mode) {}

 protected:
  Task<absl::Status> Handle(Request request) override {
    const bool flush = request.operation == Operation::kFlush;
    if (flush && (mode_ == FuaMode::kForce || mode_ == FuaMode::kDiscard)) return absl::OkStatus();
    if (!IsWrite(request.operation)) return Perform(&below(), request);
    const uint32_t flags = mode_ == FuaMode::kForce ? request.call->flags | kFua
                           : mode_ == FuaMode::kDiscard || mode_ == FuaMode::kEmulate
                               ? request.call->flags & ~kFua
                               : request.call->flags;
    const bool then_flush = mode_ == FuaMode::kEmulate && request.has(kFua);
    if (flags == request.call->flags) return Perform(&below(), request);
    return WithFlags(request, request.call->With(flags), then_flush);
  }

 private:
  static Facts MakeFacts(const Device& below, FuaMode mode) {
    Facts facts = below.facts();
    facts.fua = mode == FuaMode::kNone ? Support::kNone : Support::kNative;
    facts.fua_by_flush = mode == FuaMode::kEmulate;
    if (mode == FuaMode::kForce || mode == FuaMode::kDiscard) facts.flush = true;
    return facts;
  }
  Task<absl::Status> WithFlags(Request request, Call call, bool then_flush) {
    request.call = &call;
    BLK_CO_RETURN_IF_ERROR(co_await Perform(&below(), request));
    if (then_flush) co_return co_await below().Flush(call.With(0));
    co_return absl::OkStatus();
  }

  const FuaMode mode_;
};

absl::StatusOr<DevicePtr> MakeFua(DevicePtr below, FuaMode mode) {
  const Facts& facts = below->facts();
  if (mode == FuaMode::kEmulate && !facts.flush)
    return ErrnoErrorAsIs(EINVAL, "fuamode=emulate needs a disk below that can be flushed");
  if ((mode == FuaMode::kNative || mode == FuaMode::kForce) && facts.fua == Support::kNone)
    return ErrnoErrorAsIs(EINVAL, "fuamode=native and force need a disk below that knows FUA");
  if (mode == FuaMode::kPass) return below;
  return std::make_shared<Fua>(std::move(below), mode);
}

// ---- noparallel

struct NoParallelConfig {
  ThreadModel model = ThreadModel::kSerializeRequests;
};

// The stack enforces what is the least over all its layers.
class NoParallelLayer final : public FilterLayer {
 public:
  NoParallelLayer(LayerPtr below, ThreadModel model)
      : FilterLayer(std::move(below)), model_(model) {}
  ThreadModel thread_model() override { return std::min(model_, below().thread_model()); }

 private:
  const ThreadModel model_;
};

}  // namespace

const Spec& NoFilterSpec() {
  static const Spec& spec =
      *new Spec(FilterSpec<NoConfig>("nofilter", "nothing: shows what a filter costs")
                    .Example("nofilter+memory:64K")
                    .Make([](NoConfig, LayerPtr below) {
                      return MakeWrapLayer(std::move(below), [](DevicePtr device, const OpenArgs&) {
                        Facts facts = device->facts();
                        return WithFacts(std::move(device), std::move(facts));
                      });
                    }));
  return spec;
}

const Spec& ReadOnlySpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<ReadOnlyConfig>("readonly", "refuse to write")
          .Param("readonly-file", &ReadOnlyConfig::file,
                 {.help = "only while this file exists", .path = PathUse::kRead, .later = true})
          .Example("readonly+memory:64K")
          .Make([](ReadOnlyConfig config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<ReadOnlyLayer>(std::move(below), std::move(config));
          }));
  return spec;
}

const Spec& NoExtentsSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<NoConfig>("noextents", "the whole disk counts as data")
          .Example("noextents+memory:64K")
          .Make([](NoConfig, LayerPtr below) {
            return MakeWrapLayer(std::move(below), [](DevicePtr device, const OpenArgs&) {
              return absl::StatusOr<DevicePtr>(std::make_shared<NoExtents>(std::move(device)));
            });
          }));
  return spec;
}

const Spec& RotationalSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<RotationalConfig>("rotational", "say that the disk rotates, or does not")
          .Param("rotational", &RotationalConfig::rotational, {.help = "what to say"})
          .Example("rotational+memory:64K")
          .Make([](RotationalConfig config, LayerPtr below) {
            return MakeWrapLayer(std::move(below), [config](DevicePtr device, const OpenArgs&) {
              Facts facts = device->facts();
              facts.rotational = config.rotational;
              return WithFacts(std::move(device), std::move(facts));
            });
          }));
  return spec;
}

const Spec& NoCacheSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<NoCacheConfig>("nocache", "change how prefetches are done")
          .Param("cachemode", &NoCacheConfig::mode,
                 {{"none", CacheMode::kNone},
                  {"emulate", CacheMode::kEmulate},
                  {"nop", CacheMode::kNop}},
                 {.help = "not offered, done by reading, or accepted and ignored"})
          .Example("nocache+memory:64K")
          .Make([](NoCacheConfig config, LayerPtr below) {
            return MakeWrapLayer(std::move(below), [config](DevicePtr device, const OpenArgs&) {
              return absl::StatusOr<DevicePtr>(
                  std::make_shared<NoCache>(std::move(device), config.mode));
            });
          }));
  return spec;
}

const Spec& NoZeroSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<NoZeroConfig>("nozero", "change how zeroes are written")
          .Param("zeromode", &NoZeroConfig::mode,
                 {{"none", ZeroMode::kNone},
                  {"emulate", ZeroMode::kEmulate},
                  {"notrim", ZeroMode::kNoTrim},
                  {"plugin", ZeroMode::kPlugin}},
                 {.help = "not offered, done by writing, without making holes, or as below"})
          .Param("fastzeromode", &NoZeroConfig::fast,
                 {{"default", FastZeroMode::kDefault},
                  {"none", FastZeroMode::kNone},
                  {"slow", FastZeroMode::kSlow},
                  {"ignore", FastZeroMode::kIgnore}},
                 {.help = "fast zeroes: as zeromode suggests, not offered, refused, or done at any "
                          "speed"})
          .Example("nozero(zeromode=emulate)+memory:64K")
          .Make([](NoZeroConfig config, LayerPtr below) {
            return MakeWrapLayer(std::move(below), [config](DevicePtr device, const OpenArgs&) {
              return MakeNoZero(std::move(device), config);
            });
          }));
  return spec;
}

const Spec& FuaSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<FuaConfig>("fua", "change how FUA and flushes are done")
          .Param("fuamode", &FuaConfig::mode,
                 {{"none", FuaMode::kNone},
                  {"emulate", FuaMode::kEmulate},
                  {"native", FuaMode::kNative},
                  {"force", FuaMode::kForce},
                  {"pass", FuaMode::kPass},
                  {"discard", FuaMode::kDiscard}},
                 {.help = "FUA not offered, done by flushing, passed down, or on every write; all "
                          "unchanged; or FUA and flushes ignored, which is not safe"})
          .Example("fua(fuamode=force)+memory:64K")
          .Make([](FuaConfig config, LayerPtr below) {
            return MakeWrapLayer(std::move(below), [config](DevicePtr device, const OpenArgs&) {
              return MakeFua(std::move(device), config.mode);
            });
          }));
  return spec;
}

const Spec& NoParallelSpec() {
  static const Spec& spec =
      *new Spec(FilterSpec<NoParallelConfig>("noparallel", "do one thing at a time")
                    .Param("serialize", &NoParallelConfig::model,
                           {{"requests", ThreadModel::kSerializeRequests},
                            {"all-requests", ThreadModel::kSerializeAllRequests},
                            {"connections", ThreadModel::kSerializeConnections}},
                           {.help = "one request of each client, one of all, or one client"})
                    .Example("noparallel+memory:64K")
                    .Make([](NoParallelConfig config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
                      return std::make_shared<NoParallelLayer>(std::move(below), config.model);
                    }));
  return spec;
}

}  // namespace blk
