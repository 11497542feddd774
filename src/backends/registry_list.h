// The list of all backends and filters, a line each, in the order in which `blk list` shows them. A
// line BLK_SPEC(NameSpec) needs a function `const Spec& NameSpec()` in namespace blk; a missing one
// is a link error. Included twice by registry.cc, hence no #pragma once.
// clang-format off
// Backends
BLK_SPEC(FileSpec)
BLK_SPEC(SplitSpec)
BLK_SPEC(NbdSpec)

// Filters

// clang-format on
