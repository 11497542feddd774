#include "src/tools/nbdkit_plugins.h"

#include <climits>
#include <cstdlib>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "src/core/param_text.h"
#include "src/core/suggest.h"
#include "src/tools/nbdkit_options.h"

namespace blk {
namespace {

// What scripts that probe look for, beyond what every plugin has.
struct PluginFacts {
  std::string_view name;
  std::string_view callbacks;  // has_X=1
  std::string_view lines;
};

constexpr std::string_view kEverything =
    "load unload thread_model get_ready after_fork preconnect list_exports default_export close "
    "export_description block_size can_write can_flush is_rotational can_trim can_zero "
    "can_fast_zero can_extents can_fua can_multi_conn can_cache pwrite flush trim zero extents "
    "cache";
constexpr std::string_view kMemory =
    "get_ready can_fast_zero can_fua can_multi_conn can_cache pwrite flush trim zero extents";

constexpr PluginFacts kPluginFacts[] = {
    {"memory", kMemory, "mlock=yes zstd=yes"},
    {"data", kMemory, "data_base64=yes mlock=yes zstd=yes"},
    {"file",
     "list_exports close can_write can_trim can_extents can_fua can_multi_conn can_cache pwrite "
     "flush trim zero extents cache",
     "file_blksszget=yes file_blkzeroout=yes file_falloc_fl_punch_hole=yes "
     "file_falloc_fl_zero_range=yes"},
    {"nbd", kEverything,
     "libnbd_version=1.14.2 libnbd_tls=1 libnbd_uri=1 libnbd_vsock=1 "
     "libnbd_dynamic_list=1"},
    {"null", "can_fast_zero can_fua can_multi_conn can_cache pwrite flush trim zero extents", ""},
    {"full", "can_multi_conn can_cache pwrite trim extents", ""},
    {"split", "close can_cache pwrite extents cache", ""},
    {"random", "can_multi_conn can_cache pwrite trim zero", ""},
    {"sparse-random", "get_ready can_multi_conn can_cache pwrite flush trim zero extents", ""},
    {"pattern", "can_multi_conn can_cache pwrite", ""},
    {"info", "close can_multi_conn can_cache", "info_address=yes info_base64=yes"},
    {"zero", "can_multi_conn can_cache", ""},
    {"sh", kEverything, "max_known_status=8"},
    {"eval", kEverything, "max_known_status=8"},
    {"python", kEverything, "nbdkit_python_maximum_api_version=2"},
    {"perl", kEverything, ""},
    {"ruby", kEverything, ""},
    {"lua", kEverything, ""},
    {"tcl", kEverything, ""},
    {"floppy", "can_multi_conn can_cache", ""},
    {"iso", "get_ready can_multi_conn can_cache", ""},
    {"linuxdisk", "get_ready can_multi_conn can_cache", ""},
    {"partitioning", "can_multi_conn can_cache pwrite flush", ""},
    {"tmpdisk", "close can_trim can_fua can_multi_conn pwrite flush trim", ""},
    {"ondemand",
     "list_exports default_export close can_trim can_fua can_multi_conn pwrite flush trim", ""},
};

// nbdkit's plugins for teaching, which tests of other programs use: each is one of ours in a
// certain configuration.
struct TeachingPlugin {
  std::string_view name, plugin, preset;
  bool read_only;
};
constexpr TeachingPlugin kTeachingPlugins[] = {
    {"example1", "memory", "size=100M", true},
    {"example2", "file", "", true},
    {"example3", "memory", "size=100M", false},
};

PluginFacts FactsOf(std::string_view name) {
  for (const PluginFacts& facts : kPluginFacts)
    if (facts.name == name) return facts;
  return {name, "", ""};
}

std::string NameIn(std::string_view word, std::string_view kind) {
  if (!absl::StrContains(word, '/')) return std::string(word);
  std::string_view base = word.substr(word.rfind('/') + 1);
  const std::string suffix = absl::StrCat("-", kind);
  absl::ConsumeSuffix(&base, ".so");
  if (absl::ConsumePrefix(&base, "nbdkit-") && absl::ConsumeSuffix(&base, suffix))
    return std::string(base);
  return std::string(word);
}

std::string OwnPath() {
  char* path = realpath("/proc/self/exe", nullptr);
  std::string text = path ? path : "blk";
  std::free(path);
  return text;
}

absl::Status NotFound(Spec::Kind kind, const std::string& name) {
  const bool filter = kind == Spec::Kind::kFilter;
  std::string_view what = filter ? "filter" : "plugin";
  std::string why =
      absl::StrContains(name, '/')
          ? "shared libraries are not loaded; run it with the real nbdkit and serve its socket "
            "with the plugin nbd"
          : absl::StrCat("there is none of this name", DidYouMean(name, AllSpecs().Names(kind)));
  std::string text = absl::StrCat("error: cannot open ", what, " '", name, "': ", why);
  if (!filter)
    absl::StrAppend(&text,
                    "\nUse 'nbdkit --help' or read the nbdkit(1) manual page for documentation.");
  return absl::NotFoundError(text);
}

std::string_view ThreadModelName(ThreadModel model) {
  switch (model) {
    case ThreadModel::kSerializeConnections:
      return "serialize_connections";
    case ThreadModel::kSerializeAllRequests:
      return "serialize_all_requests";
    case ThreadModel::kSerializeRequests:
      return "serialize_requests";
    case ThreadModel::kParallel:
      return "parallel";
  }
  return "parallel";
}

// As far as it is known without configuration.
ThreadModel ThreadModelOf(const Spec& plugin) {
  auto layer = plugin.MakeLayer(plugin.NewConfig().get(), {});
  return layer.ok() ? (*layer)->thread_model() : ThreadModel::kParallel;
}

void AppendHelp(const Spec& spec, const std::string& name, std::string* text) {
  absl::StrAppend(text, "\n", spec.is_filter() ? "filter: " : "plugin: ", name, " (",
                  spec.summary(), ")\n(", OwnPath(), ")\n",
                  ParamHelp(spec.params(), ParamStyle::kKeyValue));
}

}  // namespace

std::string NbdkitPluginName(std::string_view word) { return NameIn(word, "plugin"); }
std::string NbdkitFilterName(std::string_view word) { return NameIn(word, "filter"); }

std::string NbdkitShownName(const Spec& spec) {
  return spec.is_filter() && spec.name() == "error" ? "error-inject" : spec.name();
}

absl::StatusOr<NbdkitStack> FindNbdkitStack(std::span<const std::string> filters,
                                            const std::string& plugin) {
  NbdkitStack stack;
  stack.plugin = AllSpecs().FindBackend(plugin);
  stack.plugin_name = plugin;
  for (const TeachingPlugin& example : kTeachingPlugins) {
    if (example.name != plugin) continue;
    stack.plugin = AllSpecs().FindBackend(example.plugin);
    if (!example.preset.empty()) stack.presets.emplace_back(example.preset);
    stack.read_only = example.read_only;
  }
  if (!stack.plugin) return NotFound(Spec::Kind::kBackend, plugin);
  for (const std::string& name : filters) {
    stack.filters.push_back(AllSpecs().FindFilter(name));
    if (!stack.filters.back()) return NotFound(Spec::Kind::kFilter, name);
  }
  return stack;
}

std::string NbdkitHelp(const NbdkitStack& stack) {
  std::string text = NbdkitUsage();
  for (const Spec* filter : stack.filters) AppendHelp(*filter, NbdkitShownName(*filter), &text);
  AppendHelp(*stack.plugin, stack.plugin_name, &text);
  return text;
}

std::string NbdkitVersions(const NbdkitStack& stack) {
  std::string text = absl::StrCat("nbdkit ", kNbdkitVersion, "\n");
  for (const Spec* filter : stack.filters)
    absl::StrAppend(&text, NbdkitShownName(*filter), " ", kNbdkitVersion, "\n");
  return absl::StrCat(text, stack.plugin_name, " ", kNbdkitVersion, "\n");
}

std::string NbdkitDump(const NbdkitStack& stack) {
  const Spec& plugin = *stack.plugin;
  const PluginFacts facts = FactsOf(plugin.name());
  const std::string_view model = ThreadModelName(ThreadModelOf(plugin));
  std::string text =
      absl::StrCat("path=", OwnPath(), "\nname=", stack.plugin_name, "\nversion=", kNbdkitVersion,
                   "\napi_version=2\nmax_thread_model=", model, "\nthread_model=", model,
                   "\nerrno_is_preserved=1\n");
  if (const ParamRow* magic = plugin.params().magic())
    absl::StrAppend(&text, "magic_config_key=", magic->name, "\n");
  absl::StrAppend(&text, "has_longname=1\n");
  if (!plugin.params().rows().empty() || plugin.params().takes_any_key())
    absl::StrAppend(&text, "has_config=1\nhas_config_complete=1\nhas_config_help=1\n");
  absl::StrAppend(&text, "has_open=1\nhas_get_size=1\nhas_pread=1\n");
  for (std::string_view callback : absl::StrSplit(facts.callbacks, ' ', absl::SkipEmpty()))
    absl::StrAppend(&text, "has_", callback, "=1\n");
  for (std::string_view line : absl::StrSplit(facts.lines, ' ', absl::SkipEmpty()))
    absl::StrAppend(&text, line, "\n");
  return text;
}

}  // namespace blk
