#pragma once
// Plugins and filters as nbdkit names and shows them: built-in backends and filters by name or by
// the path of the shared library that they are in nbdkit.
//
// Threads: any; pure but for what is printed.
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "src/backends/registry.h"
#include "src/backends/stack.h"

namespace blk {

// `nbdkit-NAME-plugin.so` in any folder means NAME, any other path and name means itself.
std::string NbdkitPluginName(std::string_view word);
std::string NbdkitFilterName(std::string_view word);

// What nbdkit calls it, which is not always the name on the command line.
std::string NbdkitShownName(const Spec& spec);

// A stack whose names were found.
struct NbdkitStack {
  std::vector<const Spec*> filters;  // the first is nearest the client
  const Spec* plugin = nullptr;
  std::string plugin_name;           // as it was asked for
  std::vector<std::string> presets;  // configuration that comes before that of the command line
};

// NotFound with nbdkit's words about a name that there is not.
absl::StatusOr<NbdkitStack> FindNbdkitStack(std::span<const std::string> filters,
                                            const std::string& plugin);

// `nbdkit PLUGIN --help`, `--version` and `--dump-plugin`; `configured` is null where no parameters
// were given.
std::string NbdkitHelp(const NbdkitStack& stack);
std::string NbdkitVersions(const NbdkitStack& stack);
std::string NbdkitDump(const NbdkitStack& stack, const StackDump* configured);

// The flags that -D has for a plugin, a filter or nbdkit itself, separated by spaces.
std::string_view NbdkitDebugFlags(std::string_view name);

}  // namespace blk
