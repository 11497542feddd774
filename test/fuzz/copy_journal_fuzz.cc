// The journal of a copy: what is believed lies inside the disk and is no more than its records can
// say.
//
// Fuzzes: src/tools/copy_journal
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "src/core/error.h"
#include "src/tools/copy_journal.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace blk;
  constexpr uint64_t kDisk = 1'000'000;
  const ParsedJournal journal =
      ParseCopyJournal({reinterpret_cast<const char*>(data), size}, kDisk);
  const bool good = journal.kind == ParsedJournal::Kind::kGood;
  BLK_CHECK(good || journal.finished.empty());
  BLK_CHECK(journal.good_bytes <= size && journal.finished.bytes() <= kDisk);
  BLK_CHECK(journal.finished.ranges().size() <= size / 24);
  for (const auto& [from, to] : journal.finished.ranges()) BLK_CHECK(from < to && to <= kDisk);
  return 0;
}
