// A command line or an in-line spec becomes a stack of layers, in two steps: a plan (names found,
// parameters read, needs known) and the layers themselves.
//
// Owner: backends. Planning may block (a password asked for on the terminal) and building may too
// (Ready opens files): both run before loops do.
#pragma once

#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "src/backends/inline_spec.h"
#include "src/backends/registry.h"
#include "src/core/layer.h"
#include "src/core/spec.h"

namespace blk {

struct PlannedLayer {
  const Spec* spec;              // lives as long as the registry
  std::shared_ptr<void> config;  // the Spec's own Config, complete
};

struct StackPlan {
  std::vector<PlannedLayer> layers;                 // outermost filter first, the backend last
  InlineSpec::Form form = InlineSpec::Form::kName;  // how the source was written; a tool may create
                                                    // the file that a path names
  std::string path;                                 // for kPath, the path

  const Spec& backend() const { return *layers.back().spec; }
  std::string Name() const;  // `log+memory`, for messages
  // Of all layers, for the sandbox; with `read_only` no file that is there needs to be written.
  std::vector<Need> Needs(bool read_only = false) const;
};

// Plans an in-line spec. InvalidArgument or OutOfRange, as ParseInlineSpec, on unknown names and
// parameters (with suggestions) and on values that cannot be read.
absl::StatusOr<StackPlan> PlanSpec(const Registry& registry, std::string_view text);
absl::StatusOr<StackPlan> PlanSpec(const Registry& registry, const InlineSpec& spec);

// Plans `[--filter=F ...] BACKEND [[KEY=]VALUE ...]`. The first filter is nearest the client.
// `words[0]` is the name of a backend or any in-line spec, whose own filters come below those of
// `filters`. A KEY=VALUE goes to the first layer, from the outermost inward, that has the parameter
// and can take one more; a word that is not KEY=VALUE (param.h, SplitKeyValue) goes to the
// backend's magic parameter.
absl::StatusOr<StackPlan> PlanCommandLine(const Registry& registry,
                                          std::span<const std::string> filters,
                                          std::span<const std::string> words);

// The same with nbdkit's rules: `backend` and `filters` are names and nothing else, and a value
// that is given again replaces the one before. `words` does not hold the backend.
absl::StatusOr<StackPlan> PlanOldCommandLine(const Registry& registry,
                                             std::span<const std::string> filters,
                                             const std::string& backend,
                                             std::span<const std::string> words);

// Puts something over each layer as it is made, such as a log of its calls.
using LayerHook = std::function<LayerPtr(LayerPtr layer, const Spec& spec)>;

// Makes the layers from the backend outwards, then calls Ready on each in the same order. Returns
// the outermost, with the stack's thread model enforced above it. A layer's own error gets the
// layer's name before it, unless it begins with it already. The plan's configs are used up.
absl::StatusOr<LayerPtr> BuildStack(StackPlan plan, const LayerHook& hook = nullptr);

// What the layers of a plan have to say before they are used: lines of Layer::DumpPlugin() of the
// backend, and the thread model of all.
struct StackDump {
  std::string lines;
  ThreadModel model = ThreadModel::kParallel;
};
absl::StatusOr<StackDump> DumpStack(StackPlan plan);

// PlanSpec and BuildStack in one.
absl::StatusOr<LayerPtr> MakeStack(const Registry& registry, std::string_view text);

}  // namespace blk
