#include "src/backends/stack.h"

#include <deque>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "src/core/error.h"
#include "src/core/limits.h"
#include "src/core/suggest.h"
#include "src/core/trace.h"

namespace blk {
namespace {

absl::StatusOr<const Spec*> FindFilter(const Registry& registry, std::string_view name) {
  if (const Spec* spec = registry.FindFilter(name)) return spec;
  if (registry.FindBackend(name) != nullptr) {
    return absl::InvalidArgumentError(
        absl::StrCat("`", name, "` is a backend, not a filter: nothing can be below it"));
  }
  std::string suggestion = DidYouMean(name, registry.Names(Spec::Kind::kFilter));
  if (suggestion.empty()) suggestion = "; `blk list` shows those there are";
  return absl::InvalidArgumentError(absl::StrCat("unknown filter `", name, "`", suggestion));
}

absl::StatusOr<const Spec*> FindBackend(const Registry& registry, std::string_view name) {
  if (const Spec* spec = registry.FindBackend(name)) return spec;
  if (registry.FindFilter(name) != nullptr) {
    return absl::InvalidArgumentError(absl::StrCat(
        "`", name, "` is a filter, not a backend: put it before one, as in ", name, "+./disk.img"));
  }
  std::string suggestion = DidYouMean(name, registry.Names(Spec::Kind::kBackend));
  if (suggestion.empty()) suggestion = "; `blk list` shows those there are";
  return absl::InvalidArgumentError(absl::StrCat("unknown backend `", name, "`", suggestion));
}

// The source of a spec. A name that is none may be meant as a file: say how that is written.
absl::StatusOr<const Spec*> FindSource(const Registry& registry, const InlineSpec& spec) {
  absl::StatusOr<const Spec*> found = FindBackend(registry, spec.source.name);
  if (found.ok()) return found;
  if (spec.form != InlineSpec::Form::kName) {
    return absl::InvalidArgumentError(absl::StrCat(
        spec.source.params[0].second, ": this build has no backend `", spec.source.name, "`"));
  }
  if (registry.FindFilter(spec.source.name) != nullptr) return found;
  std::string word = FormatInlineSpec({.filters = {}, .source = spec.source});
  std::string_view separator = absl::EndsWith(found.status().message(), "?") ? " For" : "; for";
  return absl::InvalidArgumentError(
      absl::StrCat(found.status().message(), separator, " a file write ./", word));
}

// A plan in the making: layers, and a reader for each.
class Planner {
 public:
  explicit Planner(const Registry& registry, bool old_rules = false)
      : registry_(registry), old_rules_(old_rules) {}

  absl::Status AddFilter(const SpecWord& word) {
    BLK_ASSIGN_OR_RETURN(const Spec* spec, FindFilter(registry_, word.name));
    return Add(spec, word);
  }

  absl::Status AddSpec(const InlineSpec& spec) {
    for (const SpecWord& filter : spec.filters) BLK_RETURN_IF_ERROR(AddFilter(filter));
    BLK_ASSIGN_OR_RETURN(const Spec* source, FindSource(registry_, spec));
    plan_.form = spec.form;
    if (spec.form == InlineSpec::Form::kPath) plan_.path = spec.source.params[0].second;
    return Add(source, spec.source);
  }

  // A word of the command line.
  absl::Status Offer(std::string_view word) {
    auto pair = SplitKeyValue(word);
    if (!pair) return readers_.back().GiveBare(word);
    auto [key, value] = *pair;
    for (ParamReader& reader : readers_) {
      if (reader.HasRoomFor(key)) return reader.Give(key, value);
    }
    for (ParamReader& reader : readers_) {
      if (reader.Knows(key)) return reader.Give(key, value);  // says that it was given before
    }
    const Spec& backend = plan_.backend();
    if (backend.params().takes_any_key() || readers_.size() == 1) {
      return WithMagicHint(readers_.back().Give(key, value), word);
    }
    return UnknownEverywhere(key);
  }

  absl::StatusOr<StackPlan> Finish() {
    for (const ParamReader& reader : readers_) BLK_RETURN_IF_ERROR(reader.Finish());
    return std::move(plan_);
  }

 private:
  absl::Status Add(const Spec* spec, const SpecWord& word) {
    if (plan_.layers.size() >= limits::kStackLayersMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("more than ", limits::kStackLayersMax, " layers"));
    }
    plan_.layers.push_back({spec, spec->NewConfig()});
    readers_.emplace_back(spec->params(), plan_.layers.back().config.get(), spec->name());
    if (old_rules_) readers_.back().UseOldRules();
    if (word.value) BLK_RETURN_IF_ERROR(readers_.back().GiveBare(*word.value));
    for (const auto& [key, value] : word.params)
      BLK_RETURN_IF_ERROR(readers_.back().Give(key, value));
    return absl::OkStatus();
  }

  // `blk serve file a=b.img` means a file name that looks like a parameter.
  absl::Status WithMagicHint(absl::Status status, std::string_view word) const {
    const ParamRow* magic = plan_.backend().params().magic();
    bool suggested = absl::EndsWith(status.message(), "?");
    if (status.ok() || suggested || magic == nullptr) return status;
    return absl::InvalidArgumentError(absl::StrCat(
        status.message(), "; if \"", word, "\" is a value, write ", magic->name, "=", word));
  }

  absl::Status UnknownEverywhere(std::string_view key) const {
    std::vector<std::string_view> names;
    std::vector<std::string> lists;
    for (const PlannedLayer& layer : plan_.layers) {
      std::vector<std::string_view> own = layer.spec->params().names();
      names.insert(names.end(), own.begin(), own.end());
      lists.push_back(absl::StrCat(layer.spec->name(), " takes ",
                                   own.empty() ? "none" : absl::StrJoin(own, ", ")));
    }
    std::string suggestion = DidYouMean(key, names);
    if (suggestion.empty()) suggestion = absl::StrCat(": ", absl::StrJoin(lists, "; "));
    return absl::InvalidArgumentError(
        absl::StrCat(plan_.Name(), ": unknown parameter `", key, "`", suggestion));
  }

  const Registry& registry_;
  const bool old_rules_;
  StackPlan plan_;
  std::deque<ParamReader> readers_;  // parallel to plan_.layers; they point into its configs
};

// Context once: whoever wrote the layer may have named it.
absl::Status Named(const Spec& spec, const absl::Status& status) {
  if (absl::StartsWith(status.message(), absl::StrCat(spec.name(), ":"))) return status;
  return Annotate(status, spec.name());
}

// From the backend outwards. The plan's configs are used up.
using MadeLayers = std::vector<std::pair<LayerPtr, const Spec*>>;
absl::StatusOr<MadeLayers> MakeLayers(const StackPlan& plan, const LayerHook& hook) {
  MadeLayers made;
  LayerPtr top;
  for (auto layer = plan.layers.rbegin(); layer != plan.layers.rend(); ++layer) {
    absl::StatusOr<LayerPtr> next =
        layer->spec->MakeLayer(layer->config.get(), {.below = std::move(top), .named = {}});
    if (!next.ok()) return Named(*layer->spec, next.status());
    top = *std::move(next);
    if (hook) top = hook(std::move(top), *layer->spec);
    made.emplace_back(top, layer->spec);
  }
  return made;
}

}  // namespace

std::string StackPlan::Name() const {
  auto name = [](std::string* out, const PlannedLayer& layer) { *out += layer.spec->name(); };
  return absl::StrJoin(layers, "+", name);
}

std::vector<Need> StackPlan::Needs(bool read_only) const {
  std::vector<Need> needs;
  for (const PlannedLayer& layer : layers) {
    for (Need& need : layer.spec->NeedsOf(layer.config.get())) {
      if (read_only && need.kind == Need::Kind::kReadWritePath) need.kind = Need::Kind::kReadPath;
      needs.push_back(std::move(need));
    }
  }
  return needs;
}

absl::StatusOr<StackPlan> PlanSpec(const Registry& registry, const InlineSpec& spec) {
  Planner planner(registry);
  BLK_RETURN_IF_ERROR(planner.AddSpec(spec));
  return planner.Finish();
}

absl::StatusOr<StackPlan> PlanSpec(const Registry& registry, std::string_view text) {
  BLK_ASSIGN_OR_RETURN(InlineSpec spec, ParseInlineSpec(text));
  return PlanSpec(registry, spec);
}

absl::StatusOr<StackPlan> PlanCommandLine(const Registry& registry,
                                          std::span<const std::string> filters,
                                          std::span<const std::string> words) {
  if (words.empty())
    return absl::InvalidArgumentError("no backend was given; `blk list` shows those there are");
  Planner planner(registry);
  for (const std::string& filter : filters)
    BLK_RETURN_IF_ERROR(planner.AddFilter({.name = filter}));
  BLK_ASSIGN_OR_RETURN(InlineSpec spec, ParseInlineSpec(words[0]));
  BLK_RETURN_IF_ERROR(planner.AddSpec(spec));
  for (const std::string& word : words.subspan(1)) BLK_RETURN_IF_ERROR(planner.Offer(word));
  return planner.Finish();
}

absl::StatusOr<StackPlan> PlanOldCommandLine(const Registry& registry,
                                             std::span<const std::string> filters,
                                             const std::string& backend,
                                             std::span<const std::string> words) {
  Planner planner(registry, /*old_rules=*/true);
  for (const std::string& filter : filters)
    BLK_RETURN_IF_ERROR(planner.AddFilter({.name = filter}));
  BLK_RETURN_IF_ERROR(planner.AddSpec({.filters = {}, .source = {.name = backend}}));
  for (const std::string& word : words) BLK_RETURN_IF_ERROR(planner.Offer(word));
  return planner.Finish();
}

absl::StatusOr<LayerPtr> BuildStack(StackPlan plan, const LayerHook& hook) {
  BLK_ASSIGN_OR_RETURN(MadeLayers made, MakeLayers(plan, hook));
  for (const auto& [layer, spec] : made) {
    if (absl::Status ready = layer->Ready(); !ready.ok()) return Named(*spec, ready);
  }
  const LayerPtr& top = made.back().first;
  LogDebug("using thread model: ", ThreadModelName(top->thread_model()));
  return EnforceThreadModel(top);
}

absl::StatusOr<StackDump> DumpStack(StackPlan plan) {
  BLK_ASSIGN_OR_RETURN(MadeLayers made, MakeLayers(plan, nullptr));
  StackDump dump;
  BLK_ASSIGN_OR_RETURN(dump.lines, made.front().first->DumpPlugin());
  dump.model = made.back().first->thread_model();
  return dump;
}

absl::StatusOr<LayerPtr> MakeStack(const Registry& registry, std::string_view text) {
  BLK_ASSIGN_OR_RETURN(StackPlan plan, PlanSpec(registry, text));
  return BuildStack(std::move(plan));
}

}  // namespace blk
