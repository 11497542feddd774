// The list of all backends and filters, a line each, in the order in which `blk list` shows them. A
// line BLK_SPEC(NameSpec) needs a function `const Spec& NameSpec()` in namespace blk; a missing one
// is a link error. Included twice by registry.cc, hence no #pragma once.
// clang-format off
// Backends
BLK_SPEC(MemorySpec)
BLK_SPEC(DataSpec)
BLK_SPEC(FileSpec)
BLK_SPEC(SplitSpec)
BLK_SPEC(NbdSpec)
BLK_SPEC(SparseRandomSpec)
BLK_SPEC(RandomSpec)
BLK_SPEC(PatternSpec)
BLK_SPEC(NullSpec)
BLK_SPEC(ZeroSpec)
BLK_SPEC(OnesSpec)
BLK_SPEC(FullSpec)
BLK_SPEC(InfoSpec)

// Filters
BLK_SPEC(OffsetSpec)
BLK_SPEC(PartitionSpec)
BLK_SPEC(CowSpec)
BLK_SPEC(DelaySpec)
BLK_SPEC(ErrorSpec)
BLK_SPEC(RateSpec)
BLK_SPEC(LogSpec)
BLK_SPEC(StatsSpec)
BLK_SPEC(ExportNameSpec)
BLK_SPEC(RetrySpec)
BLK_SPEC(RetryRequestSpec)

// clang-format on
