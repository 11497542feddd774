// eval: a disk whose methods are shell scripts on the command line.
// Its thread model is serialize_all_requests unless thread_model= says otherwise.
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "src/backends/script/program_layer.h"
#include "src/backends/script/program_per_call.h"
#include "src/core/spec.h"

namespace blk {
namespace {

struct Config {
  std::optional<std::string> after_fork, block_size, cache, can_cache, can_extents, can_fast_zero,
      can_flush, can_fua, can_multi_conn, can_trim, can_write, can_zero, close, config,
      config_complete, default_export, dump_plugin, export_description, extents, flush, get_ready,
      get_size, is_rotational, list_exports, magic_config_key, missing, open, pread, preconnect,
      pwrite, thread_model, trim, unload, zero;
  std::vector<std::pair<std::string, std::string>> others;
  std::optional<Nanoseconds> timeout;
};

struct Method {
  std::string_view name;
  std::optional<std::string> Config::* script;
};

#define BLK_METHOD(name) \
  Method { #name, &Config::name }
constexpr Method kMethods[] = {
    BLK_METHOD(after_fork),
    BLK_METHOD(block_size),
    BLK_METHOD(cache),
    BLK_METHOD(can_cache),
    BLK_METHOD(can_extents),
    BLK_METHOD(can_fast_zero),
    BLK_METHOD(can_flush),
    BLK_METHOD(can_fua),
    BLK_METHOD(can_multi_conn),
    BLK_METHOD(can_trim),
    BLK_METHOD(can_write),
    BLK_METHOD(can_zero),
    BLK_METHOD(close),
    BLK_METHOD(config),
    BLK_METHOD(config_complete),
    BLK_METHOD(default_export),
    BLK_METHOD(dump_plugin),
    BLK_METHOD(export_description),
    BLK_METHOD(extents),
    BLK_METHOD(flush),
    BLK_METHOD(get_ready),
    BLK_METHOD(get_size),
    BLK_METHOD(is_rotational),
    BLK_METHOD(list_exports),
    BLK_METHOD(magic_config_key),
    BLK_METHOD(open),
    BLK_METHOD(pread),
    BLK_METHOD(preconnect),
    BLK_METHOD(pwrite),
    BLK_METHOD(thread_model),
    BLK_METHOD(trim),
    BLK_METHOD(unload),
    BLK_METHOD(zero),
};
#undef BLK_METHOD

class EvalCaller final : public script::ProgramPerCall {
 public:
  EvalCaller(const Config& config, int64_t timeout_ns)
      : ProgramPerCall("eval", timeout_ns), missing_(config.missing) {
    for (const Method& method : kMethods) {
      if (config.*method.script) scripts_.emplace(method.name, *(config.*method.script));
    }
  }

  Known Has(std::string_view method) override {
    if (scripts_.contains(method)) return Known::kYes;
    return missing_ ? Known::kMaybe : Known::kNo;
  }

 protected:
  // $0 is the shell, $1 the method, as if the script were a program.
  std::vector<std::string> CommandFor(std::string_view method) override {
    auto found = scripts_.find(method);
    return {"/bin/sh", "-c", found == scripts_.end() ? *missing_ : found->second, "/bin/sh"};
  }

 private:
  std::map<std::string, std::string, std::less<>> scripts_;
  const std::optional<std::string> missing_;
};

absl::StatusOr<LayerPtr> MakeLayer(Config config) {
  const int64_t timeout_ns = config.timeout ? config.timeout->count() : INT64_MAX;
  return script::MakeProgramLayer(std::make_unique<EvalCaller>(config, timeout_ns),
                                  {.config = std::move(config.others), .has_load = false});
}

SpecBuilder<Config> AddMethods(SpecBuilder<Config> builder) {
  for (const Method& method : kMethods) {
    builder.Param(method.name, method.script,
                  {.help = absl::StrCat("script for ", method.name), .word = "SCRIPT"});
  }
  return builder;
}

}  // namespace

const Spec& EvalSpec() {
  static const Spec& spec = *new Spec(
      AddMethods(BackendSpec<Config>("eval", "shell scripts on the command line as a disk"))
          .Description(
              "Each method of the `sh` backend is a parameter whose value is run by /bin/sh: $1 is "
              "the method, $2 the handle, $3 the count and $4 the offset, where there are such; "
              "`blk help sh` has the rest. Where a method such as pwrite is given, can_write need "
              "not be.")
          .Param("missing", &Config::missing,
                 {.help = "script for every method that is not given", .word = "SCRIPT"})
          .Param("blk-timeout", &Config::timeout, {.help = "longest time that a method may take"})
          .AnyKey(&Config::others, "given to the config script")
          .Example("eval(get_size=echo 64K,pread=head -c $3 /dev/zero)", "64 kilobytes of zeroes")
          .Needs(Need::Kind::kProgram, "/bin/sh")
          .Needs(Need::Kind::kTemporaryFile, "/tmp")
          .Make(MakeLayer));
  return spec;
}

}  // namespace blk
