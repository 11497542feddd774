// Content that is a pure function of (key, offset), made and compared at memory speed.
//
// Purpose: the synthetic backends (random, sparse-random, pattern) hold no data; what they serve is
//   computed here for any byte range. The disk is an endless row of 64-bit little-endian words and
//   word number i depends on nothing but its kind, its key and i, so that every offset is reached
//   in constant time and any range can be made by any thread.
// Owner: nobody; there are no objects. Spans belong to the caller and are used during the call
// only. Threads: every function may be called from any thread at once. Nothing allocates or blocks.
// Cost: one pass over the span. AVX-512 or AVX2 is chosen at run time; all choices give equal
// bytes.
//
// The bytes are a promise: a seed written down today must give the same disk in every later
// version. test/backends/generate_test.cc holds digests of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace blk::generate {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__,
              "the words are stored as the processor holds them");

// Returned by the Compare functions when all bytes are equal.
inline constexpr size_t kEqual = static_cast<size_t>(-1);

// The step between the counters of neighbouring words: 2^64 / golden ratio, made odd.
inline constexpr uint64_t kWordStep = 0x9e3779b97f4a7c15;

// A bijection of 64-bit values in which every input bit reaches every output bit (the finaliser of
// SplitMix64). Distinct inputs give distinct outputs.
constexpr uint64_t Mix(uint64_t value) {
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

// A key for one `purpose` of a disk with this `seed`. Keys of different seeds differ.
constexpr uint64_t MakeKey(uint64_t seed, uint64_t purpose) {
  return Mix(Mix(seed + kWordStep) ^ (purpose * kWordStep));
}

// Fills `out` with the random bytes that stand at `offset` of the disk keyed `key`. Two keys differ
// in every word.
void FillRandom(uint64_t key, uint64_t offset, std::span<char> out);

// Returns the index in `data` of the first byte that differs from what FillRandom would have put
// there, or kEqual.
size_t CompareRandom(uint64_t key, uint64_t offset, std::span<const char> data);

// Fills `out` with the pattern at `offset`: each aligned group of 8 bytes holds its own offset,
// big-endian.
void FillPattern(uint64_t offset, std::span<char> out);

// As CompareRandom, for the pattern.
size_t ComparePattern(uint64_t offset, std::span<const char> data);

// Returns the index of the first byte of `data` that is not `value`, or kEqual.
size_t CompareByte(char value, std::span<const char> data);

// Which instructions are used. kPortable runs on every machine the product runs on.
enum class InstructionSet { kPortable, kAvx2, kAvx512 };

// The best one this processor has.
InstructionSet BestInstructionSet();

// For tests and benchmarks: makes every later call use `set`, which the processor must have.
void UseInstructionSet(InstructionSet set);

}  // namespace blk::generate
