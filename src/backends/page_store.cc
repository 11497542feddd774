#include "src/backends/page_store.h"

#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_split.h"
#include "src/backends/page_store/stores.h"

namespace blk {
namespace {

using page_store::StorePtr;

absl::Status BadOption(std::string_view allocator, std::string_view why) {
  return ErrnoErrorAsIs(EINVAL,
                        absl::StrCat("allocator=", allocator, ": ", why,
                                     "; use sparse, malloc[,mlock=true], zstd[,level=N] or dedup"));
}

// The value of the one option `name` that may follow the allocator; `fallback` without it.
absl::StatusOr<std::string> OneOption(std::string_view allocator,
                                      const std::vector<std::string_view>& words,
                                      std::string_view name, std::string_view fallback) {
  if (words.size() == 1) return std::string(fallback);
  const std::pair<std::string_view, std::string_view> option =
      absl::StrSplit(words[1], absl::MaxSplits('=', 1));
  if (words.size() > 2 || name.empty() || option.first != name)
    return BadOption(allocator, absl::StrCat("unknown option ", words.back()));
  return std::string(option.second);
}

}  // namespace

bool PageStore::Borrow(uint64_t, uint64_t, Loan*) { return false; }

absl::StatusOr<StorePtr> PageStore::Create(std::string_view allocator, uint64_t size_bytes) {
  const std::vector<std::string_view> words = absl::StrSplit(allocator, ',');
  if (words[0] == "malloc") {
    BLK_ASSIGN_OR_RETURN(std::string text, OneOption(allocator, words, "mlock", "false"));
    bool lock;
    if (!absl::SimpleAtob(text, &lock)) return BadOption(allocator, "mlock is true or false");
    return page_store::MakeMalloc(size_bytes, lock);
  }
  if (words[0] == "zstd") {
    // nbdkit's level, which is also the library's own.
    BLK_ASSIGN_OR_RETURN(std::string text, OneOption(allocator, words, "level", "3"));
    int level;
    if (!absl::SimpleAtoi(text, &level) || level < -7 || level > 19)
      return BadOption(allocator, "level is a number from -7 to 19");
    return page_store::MakeZstd(size_bytes, level);
  }
  if (words[0] != "sparse" && words[0] != "dedup") return BadOption(allocator, "unknown allocator");
  BLK_RETURN_IF_ERROR(OneOption(allocator, words, "", "").status());
  return words[0] == "sparse" ? page_store::MakeSparse(size_bytes)
                              : page_store::MakeDedup(size_bytes);
}

}  // namespace blk
