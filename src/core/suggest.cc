#include "src/core/suggest.h"

#include <algorithm>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace blk {
namespace {

char Fold(char c) { return c == '_' ? '-' : absl::ascii_tolower(c); }

// Edit distance by three rows of the usual table; a swap of neighbours counts as one step, as it is
// one slip of the fingers.
size_t Distance(std::string_view a, std::string_view b) {
  std::vector<size_t> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      size_t replace = last[j - 1] + (Fold(a[i - 1]) == Fold(b[j - 1]) ? 0 : 1);
      row[j] = std::min({replace, last[j] + 1, row[j - 1] + 1});
      bool swapped =
          i > 1 && j > 1 && Fold(a[i - 1]) == Fold(b[j - 2]) && Fold(a[i - 2]) == Fold(b[j - 1]);
      if (swapped) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    before.swap(last);
    last.swap(row);
  }
  return last[b.size()];
}

}  // namespace

std::string_view Nearest(std::string_view word, std::span<const std::string_view> candidates) {
  constexpr size_t kWordBytesMax = 64;  // no name is longer, and the table is quadratic
  if (word.empty() || word.size() > kWordBytesMax) return {};
  // A third of the letters may be wrong, at most three: `sise` is size, but `abc` is not `size`.
  size_t best_distance = std::min<size_t>(3, (word.size() + 2) / 3) + 1;
  std::string_view best;
  for (std::string_view candidate : candidates) {
    size_t distance = Distance(word, candidate);
    if (distance < best_distance && distance < candidate.size()) {
      best = candidate;
      best_distance = distance;
    }
  }
  if (!best.empty() || word.size() < 3) return best;
  for (std::string_view candidate : candidates) {
    if (absl::StartsWithIgnoreCase(candidate, word)) return candidate;
  }
  return {};
}

std::string DidYouMean(std::string_view word, std::span<const std::string_view> candidates,
                       std::string_view prefix) {
  std::string_view nearest = Nearest(word, candidates);
  return nearest.empty() ? "" : absl::StrCat(", did you mean `", prefix, nearest, "`?");
}

}  // namespace blk
