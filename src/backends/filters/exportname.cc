// exportname: renames, lists, hides and describes the exports of the layer below. Parallel-safe: no
// state.
#include <algorithm>
#include <cerrno>

#include "src/core/limits.h"
#include "src/core/process.h"
#include "src/core/spec.h"
#include "src/core/trace.h"

namespace blk {
namespace {

constexpr int64_t kScriptTimeoutNs = 10'000'000'000;

enum class Listing { kKeep, kError, kEmpty, kDefaultOnly, kExplicit };

struct DescriptionRule {
  enum Kind { kKeep, kNone, kFixed, kScript } kind = kKeep;
  std::string text;  // the description, or the script that prints it
};

}  // namespace

template <>
struct ParamValue<DescriptionRule> {
  static constexpr std::string_view kType = "text", kWord = "keep|none|fixed:TEXT|script:SCRIPT";
  static absl::StatusOr<DescriptionRule> Parse(std::string_view text) {
    if (text == "keep") return DescriptionRule{};
    if (text == "none") return DescriptionRule{DescriptionRule::kNone, ""};
    if (text.starts_with("fixed:"))
      return DescriptionRule{DescriptionRule::kFixed, std::string(text.substr(6))};
    if (text.starts_with("script:"))
      return DescriptionRule{DescriptionRule::kScript, std::string(text.substr(7))};
    return absl::InvalidArgumentError(
        absl::StrCat("\"", text, "\" is none of keep, none, fixed:TEXT and script:SCRIPT"));
  }
  static std::string Format(const DescriptionRule& rule) {
    constexpr std::string_view kNames[] = {"keep", "none", "fixed:", "script:"};
    return absl::StrCat(kNames[rule.kind], rule.text);
  }
};

namespace {

struct Config {
  std::optional<std::string> default_export;
  Listing list = Listing::kKeep;
  bool strict = false;
  std::vector<std::string> names;
  DescriptionRule description;
};

class RenamedDevice final : public Filter {
 public:
  RenamedDevice(DevicePtr below, Facts facts)
      : Filter(std::move(below), std::move(facts), /*passes_data=*/true) {}
};

class ExportNameLayer final : public FilterLayer {
 public:
  ExportNameLayer(LayerPtr below, Config config)
      : FilterLayer(std::move(below)), config_(std::move(config)) {}

  Task<absl::StatusOr<ExportList>> ListExports(const OpenArgs& args) override {
    return List(&args);
  }

  Task<absl::StatusOr<DevicePtr>> Open(OpenArgs args) override {
    const std::vector<std::string>& names = config_.names;
    if (config_.strict && std::find(names.begin(), names.end(), args.export_name) == names.end())
      co_return ErrnoErrorAsIs(
          ENOENT, args.export_name.empty()
                      ? std::string("the default export (\"\") is not permitted")
                      : absl::StrCat("export \"", args.export_name, "\" is not permitted"));
    const bool renamed = args.export_name.empty() && config_.default_export;
    if (renamed) args.export_name = *config_.default_export;
    BLK_CO_ASSIGN_OR_RETURN(DevicePtr device, co_await below().Open(args));
    if (!renamed && config_.description.kind == DescriptionRule::kKeep) co_return device;
    Facts facts = device->facts();
    // An empty default is a name as well: the one that the layer below would give is not told.
    if (renamed && (facts.export_name.empty() || config_.default_export->empty()))
      facts.export_name = *config_.default_export;
    facts.description = co_await Describe(args.export_name, std::move(facts.description));
    co_return std::make_shared<RenamedDevice>(std::move(device), std::move(facts));
  }

 private:
  // The list itself; only where it needs them are the names of the layer below asked for.
  Task<absl::StatusOr<ExportList>> List(const OpenArgs* args) {
    ExportList list;
    if (config_.list == Listing::kError)
      co_return ErrnoErrorAsIs(EPERM, "the list of exports is restricted");
    const bool wants_default = !config_.default_export;
    if (config_.list == Listing::kKeep ||
        (config_.list == Listing::kDefaultOnly && wants_default)) {
      BLK_CO_ASSIGN_OR_RETURN(list, co_await below().ListExports(*args));
    }
    if (!wants_default) list.default_name = *config_.default_export;
    if (config_.list == Listing::kDefaultOnly) list.exports = {{list.default_name, ""}};
    if (config_.list == Listing::kExplicit)
      for (const std::string& name : config_.names) list.exports.push_back({name, ""});
    for (ExportEntry& entry : list.exports)
      entry.description = co_await Describe(entry.name, std::move(entry.description));
    co_return list;
  }

  Task<std::string> Describe(std::string name, std::string description) {
    switch (config_.description.kind) {
      case DescriptionRule::kKeep:
        co_return description;
      case DescriptionRule::kNone:
        co_return "";
      case DescriptionRule::kFixed:
        co_return config_.description.text;
      case DescriptionRule::kScript:
        break;
    }
    Command command = ShellCommand(config_.description.text);
    command.environment = {{"name", name}};
    auto output = co_await RunCommand(
        std::move(command), "",
        {.output_bytes_max = limits::kStringBytesMax, .timeout_ns = kScriptTimeoutNs});
    // An export without a description is better than none.
    if (!output.ok() || !output->status.ok()) {
      LogError(absl::StrCat(
          "exportname: the script cannot describe \"", name, "\": ",
          output.ok() ? output->status.ToString() : std::string(output.status().message())));
      co_return "";
    }
    std::string text = std::move(output->output);
    if (text.ends_with('\n')) text.pop_back();
    co_return text;
  }

  const Config config_;
};

}  // namespace

const Spec& ExportNameSpec() {
  static const Spec& spec = *new Spec(
      FilterSpec<Config>("exportname", "rename, list, hide and describe exports")
          .Param("default-export", &Config::default_export,
                 {.help = "what a client gets that names no export", .word = "NAME"})
          .Param("exportname", &Config::names, {.help = "a name for the list", .word = "NAME"})
          .Param("exportname-list", &Config::list,
                 {{"keep", Listing::kKeep},
                  {"error", Listing::kError},
                  {"empty", Listing::kEmpty},
                  {"defaultonly", Listing::kDefaultOnly},
                  {"explicit", Listing::kExplicit}},
                 {.help = "which exports a client that asks is told of"})
          .Param("exportname-strict", &Config::strict,
                 {.help = "serve no exports but those of exportname="})
          .Param("exportdesc", &Config::description,
                 {.help = "their descriptions; a script has $name set"})
          .Description(
              "What is listed and what can be opened are apart: a hidden export can still be "
              "opened "
              "by its name unless exportname-strict is set, which also refuses a client that names "
              "none unless exportname= (empty) is given.")
          .NeedsOf([](const Config& config) {
            std::vector<Need> needs;
            if (config.description.kind == DescriptionRule::kScript)
              needs.push_back({Need::Kind::kProgram, "sh"});
            return needs;
          })
          .Example("exportname(exportname-list=defaultonly,default-export=disk)+memory:64K")
          .PrintedExample("exportname(exportname-list=empty)+file(dir=/var/images)",
                          "images for those who know their names")
          .Make([](Config config, LayerPtr below) -> absl::StatusOr<LayerPtr> {
            return std::make_shared<ExportNameLayer>(std::move(below), std::move(config));
          }));
  return spec;
}

}  // namespace blk
