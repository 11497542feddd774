// The nearest name to a misspelt one, for every "did you mean".
//
// Owner: core. Pure functions; any thread.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace blk {

// The candidate nearest to `word` by insertions, deletions, replacements and swaps of neighbours,
// where upper and lower case, and `-` and `_`, are the same; failing that, the first candidate of
// which `word` is the beginning. "" when nothing is near: a wild guess misleads more than it helps.
// The result is a view of a candidate's characters.
std::string_view Nearest(std::string_view word, std::span<const std::string_view> candidates);

// ", did you mean `NAME`?" with the nearest candidate, written after `prefix` (such as "--"), or
// "".
std::string DidYouMean(std::string_view word, std::span<const std::string_view> candidates,
                       std::string_view prefix = "");

}  // namespace blk
