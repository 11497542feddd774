// Registry: which backends and filters there are. The program's own is AllSpecs(), the list written
// in registry_list.h; tests make others.
//
// Owner: backends. Read-only once made; any thread.
#pragma once

#include <string_view>
#include <vector>

#include "src/core/spec.h"

namespace blk {

class Registry {
 public:
  // The Specs outlive the registry. A name used twice for one kind stops the program.
  explicit Registry(std::vector<const Spec*> specs);

  // Null if there is none.
  const Spec* FindBackend(std::string_view name) const { return Find(name, Spec::Kind::kBackend); }
  const Spec* FindFilter(std::string_view name) const { return Find(name, Spec::Kind::kFilter); }
  // In the order of the list, which is the order of help.
  const std::vector<const Spec*>& specs() const { return specs_; }
  // For suggestions.
  std::vector<std::string_view> Names(Spec::Kind kind) const;

 private:
  const Spec* Find(std::string_view name, Spec::Kind kind) const;
  std::vector<const Spec*> specs_;
};

// All that this build has.
const Registry& AllSpecs();

}  // namespace blk
