#include "src/backends/generate/words.h"

#include <algorithm>
#include <atomic>
#include <cstring>

namespace blk::generate {
namespace {

constexpr size_t kWordBytes = sizeof(uint64_t);

// Words compared before the first look at the result: long enough to hide the look, short enough
// that finding the exact byte afterwards costs little.
constexpr size_t kBatchWords = 64;

constexpr size_t kCacheLineBytes = 64;
constexpr size_t kPrefetchBytes =
    2048;  // ahead; doubles the comparing of memory that is not cached

#define BLK_INLINE inline __attribute__((always_inline))

// The three kinds of content. Each tells the value of word number `index`.
struct RandomWords {
  uint64_t key;
  BLK_INLINE uint64_t operator()(uint64_t index) const { return Mix(key + index * kWordStep); }
};
struct PatternWords {
  BLK_INLINE uint64_t operator()(uint64_t index) const {
    return __builtin_bswap64(index * kWordBytes);
  }
};
struct RepeatedByte {
  uint64_t word;
  BLK_INLINE uint64_t operator()(uint64_t) const { return word; }
};

// The two loops below are written for the compiler to vectorise: plain, counted, without calls.
// They are inlined into one function per instruction set, so that one source makes all the bytes.
template <typename Words>
BLK_INLINE void FillLoop(Words words, uint64_t index, char* out, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const uint64_t word = words(index + i);
    std::memcpy(out + i * kWordBytes, &word, kWordBytes);
  }
}

// Returns how many leading words are surely equal: `count`, or the start of the batch that differs.
template <typename Words>
BLK_INLINE size_t CompareLoop(Words words, uint64_t index, const char* data, size_t count) {
  size_t done = 0;
  for (; done + kBatchWords <= count; done += kBatchWords) {
    // The arithmetic fills the processor's window, so that it sees no cache miss coming.
    for (size_t i = 0; i < kBatchWords * kWordBytes; i += kCacheLineBytes) {
      __builtin_prefetch(data + done * kWordBytes + kPrefetchBytes + i);
    }
    uint64_t difference = 0;
    for (size_t i = 0; i < kBatchWords; ++i) {
      uint64_t word;
      std::memcpy(&word, data + (done + i) * kWordBytes, kWordBytes);
      difference |= word ^ words(index + done + i);
    }
    if (difference != 0) return done;
  }
  uint64_t difference = 0;
  for (size_t i = done; i < count; ++i) {
    uint64_t word;
    std::memcpy(&word, data + i * kWordBytes, kWordBytes);
    difference |= word ^ words(index + i);
  }
  return difference == 0 ? count : done;
}

#define BLK_PORTABLE __attribute__((noinline))
#if defined(__x86_64__)
#define BLK_AVX2 __attribute__((noinline, target("avx2")))
#define BLK_AVX512 __attribute__((noinline, target("avx512f,avx512dq,avx512bw,avx512vl")))
#else
#define BLK_AVX2 BLK_PORTABLE
#define BLK_AVX512 BLK_PORTABLE
#endif

template <typename Words>
BLK_PORTABLE void FillPortable(Words words, uint64_t index, char* out, size_t count) {
  FillLoop(words, index, out, count);
}
template <typename Words>
BLK_AVX2 void FillAvx2(Words words, uint64_t index, char* out, size_t count) {
  FillLoop(words, index, out, count);
}
template <typename Words>
BLK_AVX512 void FillAvx512(Words words, uint64_t index, char* out, size_t count) {
  FillLoop(words, index, out, count);
}
template <typename Words>
BLK_PORTABLE size_t ComparePortable(Words words, uint64_t index, const char* data, size_t count) {
  return CompareLoop(words, index, data, count);
}
template <typename Words>
BLK_AVX2 size_t CompareAvx2(Words words, uint64_t index, const char* data, size_t count) {
  return CompareLoop(words, index, data, count);
}
template <typename Words>
BLK_AVX512 size_t CompareAvx512(Words words, uint64_t index, const char* data, size_t count) {
  return CompareLoop(words, index, data, count);
}

// Found at the first use, later written by tests only. Relaxed, because every choice gives the same
// bytes and a race finds the same one twice.
constexpr int kNotYetKnown = -1;
constinit std::atomic<int> current_set{kNotYetKnown};

InstructionSet CurrentInstructionSet() {
  const int set = current_set.load(std::memory_order_relaxed);
  if (set != kNotYetKnown) [[likely]]
    return static_cast<InstructionSet>(set);
  const InstructionSet best = BestInstructionSet();
  UseInstructionSet(best);
  return best;
}

template <typename Words>
void FillWords(Words words, uint64_t index, char* out, size_t count) {
  switch (CurrentInstructionSet()) {
    case InstructionSet::kAvx512:
      return FillAvx512(words, index, out, count);
    case InstructionSet::kAvx2:
      return FillAvx2(words, index, out, count);
    case InstructionSet::kPortable:
      return FillPortable(words, index, out, count);
  }
}

template <typename Words>
size_t CompareWords(Words words, uint64_t index, const char* data, size_t count) {
  switch (CurrentInstructionSet()) {
    case InstructionSet::kAvx512:
      return CompareAvx512(words, index, data, count);
    case InstructionSet::kAvx2:
      return CompareAvx2(words, index, data, count);
    case InstructionSet::kPortable:
      break;
  }
  return ComparePortable(words, index, data, count);
}

// How many bytes of a range at `offset` come before the first whole word.
size_t HeadBytes(uint64_t offset, size_t length) {
  return std::min<size_t>((kWordBytes - offset % kWordBytes) % kWordBytes, length);
}

// A part of one word: the bytes of `word` from `from` on, as many as `out` has.
void FillPart(uint64_t word, size_t from, std::span<char> out) {
  char bytes[kWordBytes];
  std::memcpy(bytes, &word, kWordBytes);
  std::memcpy(out.data(), bytes + from, out.size());
}

template <typename Words>
void Fill(Words words, uint64_t offset, std::span<char> out) {
  const size_t head = HeadBytes(offset, out.size());
  if (head > 0) FillPart(words(offset / kWordBytes), offset % kWordBytes, out.first(head));
  const uint64_t index = (offset + head) / kWordBytes;
  const size_t count = (out.size() - head) / kWordBytes;
  FillWords(words, index, out.data() + head, count);
  const std::span<char> tail = out.subspan(head + count * kWordBytes);
  if (!tail.empty()) FillPart(words(index + count), 0, tail);
}

// Byte by byte: for the ends of a range and for naming the byte inside a batch that differs.
template <typename Words>
size_t CompareSlowly(Words words, uint64_t offset, std::span<const char> data) {
  for (size_t i = 0; i < data.size(); ++i) {
    const uint64_t at = offset + i;
    const auto expected = static_cast<char>(words(at / kWordBytes) >> (at % kWordBytes * 8));
    if (data[i] != expected) return i;
  }
  return kEqual;
}

template <typename Words>
size_t Compare(Words words, uint64_t offset, std::span<const char> data) {
  const size_t head = HeadBytes(offset, data.size());
  if (head > 0) {
    const size_t at = CompareSlowly(words, offset, data.first(head));
    if (at != kEqual) return at;
  }
  const size_t count = (data.size() - head) / kWordBytes;
  const size_t equal_words =
      CompareWords(words, (offset + head) / kWordBytes, data.data() + head, count);
  const size_t equal_bytes = head + equal_words * kWordBytes;
  // What remains is the odd tail, or a batch with a difference in it: the search ends soon.
  const size_t at = CompareSlowly(words, offset + equal_bytes, data.subspan(equal_bytes));
  return at == kEqual ? kEqual : equal_bytes + at;
}

}  // namespace

void FillRandom(uint64_t key, uint64_t offset, std::span<char> out) {
  Fill(RandomWords{key}, offset, out);
}

size_t CompareRandom(uint64_t key, uint64_t offset, std::span<const char> data) {
  return Compare(RandomWords{key}, offset, data);
}

void FillPattern(uint64_t offset, std::span<char> out) { Fill(PatternWords{}, offset, out); }

size_t ComparePattern(uint64_t offset, std::span<const char> data) {
  return Compare(PatternWords{}, offset, data);
}

size_t CompareByte(char value, std::span<const char> data) {
  const uint64_t word = uint64_t{static_cast<unsigned char>(value)} * 0x0101010101010101;
  return Compare(RepeatedByte{word}, 0, data);
}

InstructionSet BestInstructionSet() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) {
    return InstructionSet::kAvx512;
  }
  if (__builtin_cpu_supports("avx2")) return InstructionSet::kAvx2;
#endif
  return InstructionSet::kPortable;
}

void UseInstructionSet(InstructionSet set) {
  current_set.store(static_cast<int>(set), std::memory_order_relaxed);
}

}  // namespace blk::generate
