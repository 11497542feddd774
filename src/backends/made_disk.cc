#include "src/backends/made_disk.h"

#include <cerrno>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "src/core/process.h"
#include "src/core/trace.h"

namespace blk {
namespace {

// Each mkfs has words of its own for "a file will do" and for the label. $size is in bytes.
constexpr std::string_view kMakeFileSystem = R"(
PATH=$PATH:/usr/sbin:/sbin
label_option=-L
case $type in
  ext[234]) options='-q -F' ;;
  btrfs | xfs) options='-q -f' ;;
  f2fs) options='-q -f' label_option=-l ;;
  *fat | msdos) options=-I label_option=-n ;;
  ntfs) options='-Q -F' ;;
  *) options= ;;
esac
set -e
truncate -s "$size" "$disk"
if [ -n "$label" ]; then set -- "$label_option" "$label"; fi
exec "mkfs.$type" $options "$@" "$disk"
)";

std::string_view LastLine(std::string_view text) {
  text = absl::StripAsciiWhitespace(text);
  return text.substr(text.rfind('\n') + 1);  // npos + 1 is 0: the only line
}

class OneConnection final : public Filter {
 public:
  explicit OneConnection(DevicePtr below) : Filter(below, FactsOf(*below), /*passes_data=*/true) {}

 private:
  static Facts FactsOf(const Device& below) {
    Facts facts = below.facts();
    facts.multi_conn = false;
    return facts;
  }
};

}  // namespace

Task<absl::Status> RunRecipe(std::string script, std::string name,
                             std::vector<std::pair<std::string, std::string>> variables) {
  Command command = ShellCommand(std::move(script));
  command.environment = std::move(variables);
  BLK_CO_ASSIGN_OR_RETURN(CommandOutput output,
                          co_await RunCommand(std::move(command), "", RunLimits()));
  if (!output.output.empty()) LogDebug(name, ": ", output.output);
  if (output.status.ok()) co_return absl::OkStatus();
  std::string_view last = LastLine(output.errors.empty() ? output.output : output.errors);
  co_return ErrnoErrorAsIs(EIO, absl::StrCat(name, " failed, ", output.status.ToString(),
                                             last.empty() ? "" : ": ", last));
}

Task<absl::Status> MakeDisk(const DiskRecipe& recipe, std::string path) {
  std::vector<std::pair<std::string, std::string>> variables = recipe.variables;
  variables.emplace_back("type", recipe.type);
  variables.emplace_back("label", recipe.label);
  variables.emplace_back("size", absl::StrCat(recipe.size.bytes));
  variables.emplace_back("disk", std::move(path));
  std::string name = recipe.command ? "the command" : absl::StrCat("mkfs.", recipe.type);
  co_return co_await RunRecipe(recipe.command.value_or(std::string(kMakeFileSystem)),
                               std::move(name), std::move(variables));
}

DevicePtr ForOneConnection(DevicePtr device) {
  return std::make_shared<OneConnection>(std::move(device));
}

}  // namespace blk
