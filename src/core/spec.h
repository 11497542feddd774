// Spec: what a backend or a filter says of itself: name, parameters, examples, what it needs at run
// time, and how its layer is made. A file of src/backends ends with one:
//
//   const Spec& MemorySpec() {
//     static const Spec& spec = *new Spec(
//         BackendSpec<Config>("memory", "RAM disk, sparse by default")
//             .Param("size", &Config::size, {.help = "size of the disk", .magic = true})
//             .Example("memory:1M")
//             .Make([](Config config) -> absl::StatusOr<LayerPtr> { ... }));
//     return spec;
//   }
//
// and has a line in registry_list.h. For a filter: FilterSpec<Config>, and Make takes (Config,
// LayerPtr below).
//
// Owner: core. A Spec is built once, then read by any thread.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "src/core/layer.h"
#include "src/core/param.h"

namespace blk {

// Something that a layer uses outside the process while it runs: what a sandbox must allow.
struct Need {
  enum class Kind { kReadPath, kReadWritePath, kCreatePath, kNetwork, kProgram, kTemporaryFile };
  Kind kind;
  std::string what;  // the path, the host, the program; "" when it is not known beforehand
  friend bool operator==(const Need&, const Need&) = default;
};
std::string_view NeedName(
    Need::Kind kind);  // "read", "read-write", "create", "network", "program", "temporary"

// The layers that a layer is made over.
struct Children {
  LayerPtr below;                         // null for a backend
  std::map<std::string, LayerPtr> named;  // others, such as "backing"; none yet
};

struct Example {
  std::string spec;   // an in-line spec
  std::string text;   // what it shows, one line; may be ""
  bool opens = true;  // the conformance suite opens it; false for those that need the world outside
};

class Spec {
 public:
  enum class Kind { kBackend, kFilter };

  const std::string& name() const { return name_; }
  Kind kind() const { return kind_; }
  bool is_filter() const { return kind_ == Kind::kFilter; }
  const std::string& summary() const { return summary_; }  // one line, no full stop
  const std::string& description() const {
    return description_;
  }  // paragraphs for the manual; may be ""
  const std::vector<Example>& examples() const { return examples_; }
  const ParamRows& params() const { return *params_; }

  // A Config with its defaults, to be filled through params() and given to MakeLayer or NeedsOf of
  // this Spec, and of no other.
  std::shared_ptr<void> NewConfig() const { return new_config_(); }
  // The layer; `config` is used up. Fails as the factory does.
  absl::StatusOr<LayerPtr> MakeLayer(void* config, Children children) const {
    return make_(config, std::move(children));
  }
  // What a layer with this config will use, from its paths and from what the Spec declares.
  std::vector<Need> NeedsOf(const void* config) const;

 private:
  template <typename Config>
  friend class SpecBuilder;
  Spec(std::string name, Kind kind, std::string summary)
      : name_(std::move(name)), kind_(kind), summary_(std::move(summary)) {}

  std::string name_;
  Kind kind_;
  std::string summary_;
  std::string description_;
  std::vector<Example> examples_;
  std::vector<Need> needs_;  // those of every config
  std::shared_ptr<const ParamRows> params_;
  std::function<std::shared_ptr<void>()> new_config_;
  std::function<absl::StatusOr<LayerPtr>(void* config, Children)> make_;
  std::function<std::vector<Need>(const void* config)> more_needs_;
};

// For layers without parameters.
struct NoConfig {};

template <typename Config>
class SpecBuilder {
 public:
  SpecBuilder(std::string_view name, Spec::Kind kind, std::string_view summary)
      : spec_(std::string(name), kind, std::string(summary)),
        table_(std::make_shared<ParamTable<Config>>()) {}

  // As ParamTable::Param: (name, member, info) or (name, member, {{"text", value} ...}, info).
  template <typename T, typename Owner>
  SpecBuilder& Param(std::string_view name, T Owner::* member, ParamInfo info) {
    table_->Param(name, member, std::move(info));
    return *this;
  }
  template <typename T, typename Owner>
  SpecBuilder& Param(
      std::string_view name, T Owner::* member,
      std::initializer_list<std::pair<std::string_view, param_internal::ElementOf<T>>> values,
      ParamInfo info) {
    table_->Param(name, member, values, std::move(info));
    return *this;
  }
  // Keys that the user makes up, in the order given.
  SpecBuilder& AnyKey(std::vector<std::pair<std::string, std::string>> Config::* member,
                      std::string_view help, bool takes_words = false) {
    table_->AnyKey(member, std::string(help), takes_words);
    return *this;
  }

  // Paragraphs for help and manual, separated by empty lines.
  SpecBuilder& Description(std::string_view text) {
    spec_.description_ = std::string(text);
    return *this;
  }
  // An in-line spec that docs print and the conformance suite opens. At least one for each Spec.
  SpecBuilder& Example(std::string_view spec, std::string_view text = "") {
    spec_.examples_.push_back(
        {.spec = std::string(spec), .text = std::string(text), .opens = true});
    return *this;
  }
  // One that is printed only: it needs a server, a device or a file that a test does not have.
  SpecBuilder& PrintedExample(std::string_view spec, std::string_view text = "") {
    spec_.examples_.push_back(
        {.spec = std::string(spec), .text = std::string(text), .opens = false});
    return *this;
  }

  // Run-time needs beyond the paths of rows with `.path`: for every config, or worked out from one.
  SpecBuilder& Needs(Need::Kind kind, std::string_view what = "") {
    spec_.needs_.push_back({kind, std::string(what)});
    return *this;
  }
  SpecBuilder& NeedsOf(std::function<std::vector<Need>(const Config&)> needs) {
    spec_.more_needs_ = [needs = std::move(needs)](const void* config) {
      return needs(*static_cast<const Config*>(config));
    };
    return *this;
  }

  // Last. `make` takes (Config), (Config, LayerPtr below) or (Config, Children) and returns
  // absl::StatusOr<LayerPtr>. It checks what can be checked without touching the world; opening
  // files is for Layer::Ready().
  template <typename Factory>
  Spec Make(Factory make) {
    spec_.params_ = table_;
    spec_.new_config_ = [] { return std::static_pointer_cast<void>(std::make_shared<Config>()); };
    spec_.make_ = [make = std::move(make)](void* config,
                                           Children children) -> absl::StatusOr<LayerPtr> {
      Config taken = std::move(*static_cast<Config*>(config));
      if constexpr (std::is_invocable_v<const Factory&, Config>) {
        return make(std::move(taken));
      } else if constexpr (std::is_invocable_v<const Factory&, Config, LayerPtr>) {
        return make(std::move(taken), std::move(children.below));
      } else {
        return make(std::move(taken), std::move(children));
      }
    };
    return std::move(spec_);
  }

 private:
  Spec spec_;
  std::shared_ptr<ParamTable<Config>> table_;
};

template <typename Config>
SpecBuilder<Config> BackendSpec(std::string_view name, std::string_view summary) {
  return SpecBuilder<Config>(name, Spec::Kind::kBackend, summary);
}
template <typename Config>
SpecBuilder<Config> FilterSpec(std::string_view name, std::string_view summary) {
  return SpecBuilder<Config>(name, Spec::Kind::kFilter, summary);
}

// ---- for `blk list` and `blk help NAME` ----

// Usage, description, parameters, needs and examples, for a terminal.
std::string SpecHelp(const Spec& spec);
// The same facts as a JSON object.
std::string SpecJson(const Spec& spec);
// A line each, `  name   summary`, backends and filters apart, in the order given.
std::string SpecList(const std::vector<const Spec*>& specs);

}  // namespace blk
