#include "src/backends/registry.h"

#include <utility>

#include "src/core/error.h"

namespace blk {

#define BLK_SPEC(kind, name, function) const Spec& function();
#include "src/backends/registry_list.h"
#undef BLK_SPEC

Registry::Registry(std::vector<Entry> entries) : entries_(std::move(entries)) {
  for (const Entry& entry : entries_) {
    for (const Entry* other = &entry + 1; other < entries_.data() + entries_.size(); ++other)
      BLK_CHECK(entry.kind != other->kind || entry.name != other->name);
  }
}

const Spec& Registry::Made(const Entry& entry) {
  const Spec& spec = entry.make();
  BLK_CHECK(spec.kind() == entry.kind && spec.name() == entry.name);
  return spec;
}

const Spec* Registry::Find(std::string_view name, Spec::Kind kind) const {
  for (const Entry& entry : entries_) {
    if (entry.kind == kind && entry.name == name) return &Made(entry);
  }
  return nullptr;
}

std::vector<const Spec*> Registry::specs() const {
  std::vector<const Spec*> specs;
  for (const Entry& entry : entries_) specs.push_back(&Made(entry));
  return specs;
}

std::vector<std::string_view> Registry::Names(Spec::Kind kind) const {
  std::vector<std::string_view> names;
  for (const Entry& entry : entries_) {
    if (entry.kind == kind) names.push_back(entry.name);
  }
  return names;
}

const Registry& AllSpecs() {
#define BLK_SPEC(kind, name, function) {Spec::Kind::kind, name, function},
  static const Registry& registry = *new Registry({
#include "src/backends/registry_list.h"
  });
#undef BLK_SPEC
  return registry;
}

}  // namespace blk
