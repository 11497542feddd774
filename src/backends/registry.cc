#include "src/backends/registry.h"

#include <utility>

#include "src/core/error.h"

namespace blk {

#define BLK_SPEC(function) const Spec& function();
#include "src/backends/registry_list.h"
#undef BLK_SPEC

Registry::Registry(std::vector<const Spec*> specs) : specs_(std::move(specs)) {
  for (const Spec* spec : specs_) BLK_CHECK(Find(spec->name(), spec->kind()) == spec);
}

const Spec* Registry::Find(std::string_view name, Spec::Kind kind) const {
  for (const Spec* spec : specs_) {
    if (spec->kind() == kind && spec->name() == name) return spec;
  }
  return nullptr;
}

std::vector<std::string_view> Registry::Names(Spec::Kind kind) const {
  std::vector<std::string_view> names;
  for (const Spec* spec : specs_) {
    if (spec->kind() == kind) names.push_back(spec->name());
  }
  return names;
}

const Registry& AllSpecs() {
#define BLK_SPEC(function) &function(),
  static const Registry& registry = *new Registry({
#include "src/backends/registry_list.h"
  });
#undef BLK_SPEC
  return registry;
}

}  // namespace blk
