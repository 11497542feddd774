// The parameters of every backend and filter: whatever text is given, it is taken or refused, and
// what is taken is printed as text that is taken again. The first line of the input is the name of
// the Spec (or begins with a byte that chooses one), each other line is KEY=VALUE. Secrets are left
// out, since they may be read from files.
//
// Fuzzes: src/core/param_text src/core/units
// Fuzzes: src/backends/filters/byte_range src/backends/filters/ip
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "absl/strings/str_split.h"
#include "src/backends/registry.h"
#include "src/core/spec.h"

namespace {

const blk::Spec& Choose(std::string_view first_line) {
  const blk::Registry& registry = blk::AllSpecs();
  if (const blk::Spec* spec = registry.FindFilter(first_line)) return *spec;
  if (const blk::Spec* spec = registry.FindBackend(first_line)) return *spec;
  const size_t byte = first_line.empty() ? 0 : static_cast<uint8_t>(first_line[0]);
  return *registry.specs()[byte % registry.specs().size()];
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace blk;
  if (size == 0) return 0;
  std::string_view text(reinterpret_cast<const char*>(data), size);
  const Spec& spec = Choose(text.substr(0, text.find('\n')));
  std::shared_ptr<void> config = spec.NewConfig(), again = spec.NewConfig();
  ParamReader reader(spec.params(), config.get(), spec.name());
  ParamReader second(spec.params(), again.get(), spec.name());
  for (std::string_view line : absl::StrSplit(text, '\n')) {
    auto pair = SplitKeyValue(line);
    if (!pair) continue;
    const ParamRow* row = spec.params().Find(pair->first);
    if (row != nullptr && row->is_secret) continue;
    if (!reader.Give(pair->first, pair->second).ok() || row == nullptr || !row->values) continue;
    const std::vector<std::string> values = row->values(config.get());
    BLK_CHECK(!values.empty());
    BLK_CHECK(second.Give(row->name, values.back()).ok());
    BLK_CHECK(row->values(again.get()).back() == values.back());
  }
  (void)reader.Finish();
  return 0;
}
