#include "test/conformance/subject.h"

#include <algorithm>
#include <map>
#include <random>

#include "src/backends/inline_spec.h"

namespace blk::test {
namespace {

// Few enough for all pairs of offset and length; a page and a byte; several pages, nothing round.
constexpr uint64_t kSmallSizes[] = {0, 97, 4097, 12345, 150001};
constexpr uint64_t kLargestSize = limits::kDiskBytesMax;
constexpr std::string_view kStackBase = "memory:3000001";

// Every difference from "what was written is read back", by name of the backend or filter. A filter
// speaks for the stack, the outermost first.
const std::map<std::string, Traits, std::less<>>& TraitsTable() {
  static const auto& table = *new std::map<std::string, Traits, std::less<>>({
      {"null", {.writes = Writes::kForget}},
      {"ones", {.writes = Writes::kForget}},
      {"full", {.writes = Writes::kNoSpace}},
      {"sparse-random", {.writes = Writes::kCompare}},
      {"random", {.writes = Writes::kCompare}},
      {"pattern", {.writes = Writes::kCompare}},
      {"file", {.hides_reserved = true}},
      {"split", {.hides_reserved = true}},
      {"cow", {.writes = Writes::kKeep}},
      {"delay", {.slow = true}},
      {"eval", {.slow = true}},
      {"sh", {.slow = true}},
      {"rate", {.slow = true}},
      {"spinning", {.slow = true}},
  });
  return table;
}

bool ChangesWrites(std::string_view filter) { return filter == "cow"; }

// Filters that refuse some writes by their purpose, depending on where they go: they are tried
// read-only here, and written to in test/backends/filters.
bool RefusesSomeWrites(std::string_view filter) {
  return filter == "protect" || filter == "truncate" || filter == "checkwrite";
}

// `text` with its backend's size replaced; "" if the backend has none.
std::string WithSize(const std::string& text, uint64_t size) {
  absl::StatusOr<InlineSpec> parsed = ParseInlineSpec(text);
  BLK_CHECK(parsed.ok());
  const Spec* backend = AllSpecs().FindBackend(parsed->source.name);
  const ParamRow* row = backend ? backend->params().Find("size") : nullptr;
  if (row == nullptr || row->type != "size" || parsed->form != InlineSpec::Form::kName) return "";
  std::string value = absl::StrCat(size);
  auto& params = parsed->source.params;
  std::erase_if(params, [](const auto& param) { return param.first == "size"; });
  if (row->info.magic) {
    parsed->source.value = value;
  } else {
    params.emplace_back("size", value);
  }
  return FormatInlineSpec(*parsed);
}

Subject MakeSubject(std::string spec, std::string export_name = "") {
  Subject subject{.spec = std::move(spec), .export_name = std::move(export_name)};
  subject.traits = TraitsOf(subject.spec);
  return subject;
}

// The words `filter(params)` of all filters with an example that opens.
std::vector<SpecWord> FilterWords() {
  std::vector<SpecWord> words;
  for (const Spec* spec : AllSpecs().specs()) {
    if (!spec->is_filter() || RefusesSomeWrites(spec->name())) continue;
    for (const Example& example : spec->examples()) {
      if (!example.opens) continue;
      absl::StatusOr<InlineSpec> parsed = ParseInlineSpec(example.spec);
      BLK_CHECK(parsed.ok());
      auto word = std::find_if(parsed->filters.begin(), parsed->filters.end(),
                               [&](const SpecWord& each) { return each.name == spec->name(); });
      BLK_CHECK(word != parsed->filters.end());
      words.push_back(*word);
      break;
    }
  }
  return words;
}

std::string StackText(std::vector<SpecWord> filters) {
  absl::StatusOr<InlineSpec> base = ParseInlineSpec(kStackBase);
  BLK_CHECK(base.ok());
  base->filters = std::move(filters);
  return FormatInlineSpec(*base);
}

}  // namespace

Traits TraitsOf(const std::string& spec) {
  absl::StatusOr<InlineSpec> parsed = ParseInlineSpec(spec);
  BLK_CHECK(parsed.ok());
  const auto& table = TraitsTable();
  Traits traits;
  if (auto found = table.find(parsed->source.name); found != table.end()) traits = found->second;
  for (auto word = parsed->filters.rbegin(); word != parsed->filters.rend(); ++word) {
    auto found = table.find(word->name);
    if (found == table.end()) continue;
    if (ChangesWrites(word->name)) traits.writes = found->second.writes;
    traits.hides_reserved |= found->second.hides_reserved;
    traits.lossy |= found->second.lossy;
    traits.slow |= found->second.slow;
  }
  return traits;
}

std::vector<Subject> SubjectsOf(const Spec& spec) {
  std::vector<Subject> subjects;
  for (const Example& example : spec.examples()) {
    if (!example.opens) continue;
    const std::string read_only = RefusesSomeWrites(spec.name()) ? "readonly+" : "";
    subjects.push_back(MakeSubject(read_only + example.spec, "an export with a name"));
    if (spec.is_filter()) continue;  // its parameters need not fit another disk
    for (uint64_t size : kSmallSizes) {
      std::string small = WithSize(example.spec, size);
      if (!small.empty()) subjects.push_back(MakeSubject(small));
    }
    std::string large = WithSize(example.spec, kLargestSize);
    if (large.empty()) continue;
    subjects.push_back(MakeSubject(large));
    subjects.back().may_lack_memory = true;
  }
  return subjects;
}

std::vector<Subject> FilterStacks(uint64_t seed) {
  std::mt19937_64 random(seed);
  const std::vector<SpecWord> words = FilterWords();
  std::vector<Subject> stacks;
  if (AllSpecs().FindBackend("memory") == nullptr) return stacks;
  if (words.size() < 2) return stacks;
  for (const SpecWord& word : words) {
    for (size_t place = 0; place < 3; ++place) {
      // The filter itself and one to three others, each at most once.
      std::vector<SpecWord> filters;
      std::vector<SpecWord> others = words;
      std::erase(others, word);
      std::shuffle(others.begin(), others.end(), random);
      for (size_t i = 0; i < 1 + random() % 3 && i < others.size(); ++i)
        filters.push_back(others[i]);
      size_t at = place == 0 ? 0 : place == 1 ? filters.size() / 2 : filters.size();
      filters.insert(filters.begin() + at, word);
      stacks.push_back(MakeSubject(StackText(filters)));
      stacks.back().may_not_fit = true;
    }
  }
  return stacks;
}

}  // namespace blk::test
