// Registry: which backends and filters there are. The program's own is AllSpecs(), the list written
// in registry_list.h; tests make others.
//
// A Spec is made when it is first asked for: all of them together, with their rows and helps, would
// be a tenth of the time that a short command takes.
//
// Owner: backends. Read-only once made; any thread.
#pragma once

#include <string_view>
#include <vector>

#include "src/core/spec.h"

namespace blk {

class Registry {
 public:
  struct Entry {
    Spec::Kind kind;
    std::string_view name;  // lives as long as the program
    const Spec& (*make)();  // the same Spec every time
  };
  // A name used twice for one kind, or another than its Spec has, stops the program.
  explicit Registry(std::vector<Entry> entries);

  // Null if there is none.
  const Spec* FindBackend(std::string_view name) const { return Find(name, Spec::Kind::kBackend); }
  const Spec* FindFilter(std::string_view name) const { return Find(name, Spec::Kind::kFilter); }
  // In the order of the list, which is the order of help.
  std::vector<const Spec*> specs() const;
  // For suggestions.
  std::vector<std::string_view> Names(Spec::Kind kind) const;

 private:
  const Spec* Find(std::string_view name, Spec::Kind kind) const;
  static const Spec& Made(const Entry& entry);
  std::vector<Entry> entries_;
};

// All that this build has.
const Registry& AllSpecs();

}  // namespace blk
