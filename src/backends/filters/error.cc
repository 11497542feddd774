// error: lets some operations fail, at random or while a file exists. Parallel-safe: no state.
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "src/backends/filters/request.h"
#include "src/backends/filters/wrap_layer.h"
#include "src/core/loop.h"
#include "src/core/spec.h"
#include "src/core/trace.h"

namespace blk {
namespace {

// What goes for all operations, and, where set, for one.
template <int kIndex>
struct Rule {
  std::optional<int> error;
  std::optional<Probability> rate;
  std::string file;
};
constexpr int kForAll = kOperations;
struct Config : Rule<0>, Rule<1>, Rule<2>, Rule<3>, Rule<4>, Rule<5>, Rule<kForAll> {};

// One operation's rule, put together.
struct Chance {
  int error = EIO;
  double rate = 0;
  std::string file;
};
using Chances = std::array<Chance, kOperations>;

template <int kIndex>
void Combine(const Config& config, Chances* chances) {
  const Rule<kForAll>& all = config;
  const Rule<kIndex>& own = config;
  (*chances)[kIndex] = {own.error.value_or(all.error.value_or(EIO)),
                        own.rate.value_or(all.rate.value_or(Probability{})).value,
                        own.file.empty() ? all.file : own.file};
}

class ErrorDevice final : public RequestFilter {
 public:
  ErrorDevice(DevicePtr below, const Chances& chances)
      : RequestFilter(std::move(below)), chances_(chances) {}

 protected:
  Task<absl::Status> Handle(Request request) override {
    const Chance& chance = chances_[static_cast<int>(request.operation)];
    // A disk that knows no extents is not asked for them, so that question cannot fail.
    const bool unasked = request.operation == Operation::kExtents && !below().facts().extents;
    if (unasked || !Strikes(chance)) return Perform(&below(), request);
    std::string text = absl::StrCat("injecting ", strerrorname_np(chance.error), " error into ",
                                    OperationName(request.operation));
    LogDebug("error: ", text);
    return ErrnoErrorAsIs(chance.error, text);
  }

 private:
  static bool Strikes(const Chance& chance) {
    if (chance.rate <= 0) return false;
    constexpr double kRandomEnd = 18446744073709551616.0;  // 2^64
    if (chance.rate < 1 &&
        static_cast<double>(Loop::Current()->Random()) >= chance.rate * kRandomEnd)
      return false;
    return chance.file.empty() || access(chance.file.c_str(), F_OK) == 0;
  }

  const Chances& chances_;  // of the layer
};

template <int kIndex>
void AddRows(SpecBuilder<Config>* spec, const std::string& name, const std::string& what) {
  using R = Rule<kIndex>;
  spec->Param(name, &R::error,
              {{"EIO", EIO},
               {"EPERM", EPERM},
               {"ENOMEM", ENOMEM},
               {"EINVAL", EINVAL},
               {"ENOSPC", ENOSPC},
               {"ESHUTDOWN", ESHUTDOWN}},
              {.help = absl::StrCat("how ", what, " fail; EIO if not given"), .word = "ERRNO"})
      .Param(name + "-rate", &R::rate, {.help = absl::StrCat("share of ", what, " that fail")})
      .Param(name + "-file", &R::file,
             {.help = absl::StrCat("let ", what, " fail only while this file exists"),
              .path = PathUse::kRead,
              .later = true});
}

Spec MakeErrorSpec() {
  auto spec = FilterSpec<Config>("error", "let some operations fail");
  AddRows<kForAll>(&spec, "error", "operations");
  AddRows<0>(&spec, "error-pread", "reads");
  AddRows<1>(&spec, "error-pwrite", "writes");
  AddRows<2>(&spec, "error-trim", "trims");
  AddRows<3>(&spec, "error-zero", "zeroes");
  AddRows<4>(&spec, "error-extents", "questions about extents");
  AddRows<5>(&spec, "error-cache", "prefetches");
  spec.Description(
          "Without a rate nothing fails. What is given for one kind of operation goes before what "
          "is given for all. Flushes never fail.")
      .Example("error(error-rate=0)+memory:64K", "nothing fails yet")
      .PrintedExample("error(error=ENOSPC,error-pwrite-rate=10%25)+disk.img",
                      "every tenth write finds the disk full");
  return spec.Make([](Config config, LayerPtr below) {
    auto chances = std::make_shared<Chances>();
    Combine<0>(config, chances.get());
    Combine<1>(config, chances.get());
    Combine<2>(config, chances.get());
    Combine<3>(config, chances.get());
    Combine<4>(config, chances.get());
    Combine<5>(config, chances.get());
    return MakeWrapLayer(std::move(below), [chances](DevicePtr device, const OpenArgs&) {
      return absl::StatusOr<DevicePtr>(std::make_shared<ErrorDevice>(std::move(device), *chances));
    });
  });
}

}  // namespace

const Spec& ErrorSpec() {
  static const Spec& spec = *new Spec(MakeErrorSpec());
  return spec;
}

}  // namespace blk
