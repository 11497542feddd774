#include "src/tools/nbdkit_plugins.h"

#include <algorithm>
#include <climits>
#include <cstdlib>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
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
  std::string_view models = "";  // max_thread_model and thread_model, where no layer can tell yet
};

constexpr std::string_view kEverything =
    "load unload thread_model get_ready after_fork preconnect list_exports default_export close "
    "export_description block_size can_write can_flush is_rotational can_trim can_zero "
    "can_fast_zero can_extents can_fua can_multi_conn can_cache pwrite flush trim zero extents "
    "cache";
constexpr std::string_view kMemory =
    "get_ready can_fast_zero can_fua can_multi_conn can_cache pwrite flush trim zero extents";

constexpr std::string_view kOneAtATime = "serialize_all_requests serialize_all_requests";

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
    {"sh", kEverything, "max_known_status=8", "parallel parallel"},
    {"eval", kEverything, "max_known_status=8", "parallel serialize_all_requests"},
    {"python", kEverything, "nbdkit_python_maximum_api_version=2",
     "parallel serialize_all_requests"},
    {"perl", kEverything, "", kOneAtATime},
    {"ruby", kEverything, "", kOneAtATime},
    {"lua", kEverything, "", kOneAtATime},
    {"tcl", kEverything, "", kOneAtATime},
    {"example2", "unload dump_plugin close", "example2_extra=hello"},
    {"example3", "dump_plugin close pwrite flush", "example3_extra=hello"},
    {"example4", "dump_plugin pwrite", "example4_extra=hello"},
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
};
constexpr TeachingPlugin kTeachingPlugins[] = {
    {"example3", "memory", "size=100M"},
    {"example4", "memory", ""},
};

// What -D knows in nbdkit. Those that say nothing here are taken, and do nothing.
constexpr std::pair<std::string_view, std::string_view> kDebugFlags[] = {
    {"nbdkit", "backend.controlpath backend.datapath environ gdb tls.log tls.session"},
    {"cache", "verbose"},
    {"cacheextents", "cache"},
    {"cow", "verbose"},
    {"curl", "scripts times verbose verbose.ids worker"},
    {"data", "AST dir"},
    {"example2", "extra"},
    {"extentlist", "lookup"},
    {"file", "zero"},
    {"ip", "rules"},
    {"luks", "ivs"},
    {"memory", "dir"},
    {"nbd", "verbose"},
    {"partitioning", "regions"},
    {"protect", "write"},
    {"rate", "bucket"},
    {"spinning", "verbose"},
    {"ssh", "log"},
    {"sparse-random", "dir"},
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

bool IsPlainName(std::string_view name) {
  return std::all_of(name.begin(), name.end(),
                     [](char c) { return absl::ascii_isalnum(c) || c == '-' || c == '_'; });
}

absl::Status NotFound(Spec::Kind kind, const std::string& name) {
  const std::string what = kind == Spec::Kind::kFilter ? "filter" : "plugin";
  const bool path = absl::StrContains(name, '/');
  std::string why =
      path ? "shared libraries are not loaded; run it with the real nbdkit and serve its socket "
             "with the plugin nbd"
           : absl::StrCat("there is none of this name", DidYouMean(name, AllSpecs().Names(kind)));
  std::string text =
      absl::StrCat("error: cannot open ", what, " '", absl::CEscape(name), "': ", why);
  if (!path && IsPlainName(name))
    absl::StrAppend(&text, "\nThe real nbdkit may have it in a package nbdkit-", name, "-", what,
                    " (Fedora) or nbdkit-", what, "-", name, " (Debian).");
  return absl::NotFoundError(absl::StrCat(
      text, "\nUse 'nbdkit --help' or read the nbdkit(1) manual page for documentation."));
}

// As far as it is known without configuration.
std::string ThreadModelsOf(const Spec& plugin, const PluginFacts& facts) {
  if (!facts.models.empty()) return std::string(facts.models);
  auto layer = plugin.MakeLayer(plugin.NewConfig().get(), {});
  const std::string_view model =
      ThreadModelName(layer.ok() ? (*layer)->thread_model() : ThreadModel::kParallel);
  return absl::StrCat(model, " ", model);
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

std::string NbdkitDump(const NbdkitStack& stack, const StackDump* configured) {
  const Spec& plugin = *stack.plugin;
  PluginFacts facts = FactsOf(stack.plugin_name);
  if (facts.callbacks.empty()) facts = FactsOf(plugin.name());
  auto [model_max, model] =
      std::pair<std::string, std::string>(absl::StrSplit(ThreadModelsOf(plugin, facts), ' '));
  if (configured) model = ThreadModelName(configured->model);
  std::string text =
      absl::StrCat("path=", OwnPath(), "\nname=", stack.plugin_name, "\nversion=", kNbdkitVersion,
                   "\napi_version=2\nmax_thread_model=", model_max, "\nthread_model=", model,
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
  if (configured) absl::StrAppend(&text, configured->lines);
  // Of the filters, the one nearest to the plugin first.
  for (auto filter = stack.filters.rbegin(); filter != stack.filters.rend(); ++filter) {
    const std::string name = NbdkitShownName(**filter);
    absl::StrAppend(&text, name, "_path=", OwnPath(), "\n", name, "_name=", name, "\n");
  }
  return text;
}

std::string_view NbdkitDebugFlags(std::string_view name) {
  for (const auto& [owner, flags] : kDebugFlags)
    if (owner == name) return flags;
  return "";
}

}  // namespace blk
