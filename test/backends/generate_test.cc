// The generators of random, sparse-random and pattern: equal bytes from every instruction set and
// at every alignment, the shape of sparse disks, and digests that keep the content from ever
// changing.
#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "src/backends/generate/sparse_layout.h"
#include "src/backends/generate/words.h"

namespace blk::generate {
namespace {

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;
constexpr uint64_t kGiB = 1024 * kMiB;
constexpr uint64_t kSizeMax = (uint64_t{1} << 63) - 1;

using Bytes = std::vector<char>;

constexpr char kGuard = 0x5a;  // around what may be written

// Calls `body` once for every instruction set this processor has.
void WithEachInstructionSet(const std::function<void()>& body) {
  const InstructionSet best = BestInstructionSet();
  for (InstructionSet set :
       {InstructionSet::kPortable, InstructionSet::kAvx2, InstructionSet::kAvx512}) {
    if (set > best) continue;
    UseInstructionSet(set);
    CAPTURE(static_cast<int>(set));
    body();
  }
  UseInstructionSet(best);
}

// FNV-1a with 64 bits: enough to notice a change, and nobody's library.
uint64_t Digest(std::span<const char> bytes) {
  uint64_t hash = 0xcbf29ce484222325;
  for (char byte : bytes) hash = (hash ^ static_cast<unsigned char>(byte)) * 0x100000001b3;
  return hash;
}

// The slow twins of the generators: one byte at a time, straight from the definition.
char RandomByteAt(uint64_t key, uint64_t offset) {
  uint64_t value = key + offset / 8 * 0x9e3779b97f4a7c15;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  value = value ^ (value >> 31);
  return static_cast<char>(value >> (8 * (offset % 8)));
}

char PatternByteAt(uint64_t offset) {
  return static_cast<char>((offset - offset % 8) >> (8 * (7 - offset % 8)));
}

// A kind of content behind one interface, so that each check is written once.
struct Kind {
  std::string name;
  uint64_t size;
  std::function<char(uint64_t)> byte_at;
  std::function<void(uint64_t, std::span<char>)> fill;
  std::function<size_t(uint64_t, std::span<const char>)> compare;
};

Kind SparseKind(const std::string& name, SparseLayout::Config config) {
  const SparseLayout layout(config);
  const uint64_t layout_key = MakeKey(config.seed, 1);
  const uint64_t content_key = MakeKey(config.seed, 2);
  CHECK(layout_key != content_key);
  return {
      name, config.size,
      [=](uint64_t offset) {
        if (!layout.RunAt(offset).data) return char{0};
        if (config.random_content) return RandomByteAt(content_key, offset);
        const uint64_t block = offset / 4096;
        const auto draw = static_cast<unsigned __int128>(Mix(content_key + block * kWordStep));
        return static_cast<char>(1 + 2 * static_cast<uint64_t>((draw * 127) >> 64) + block % 2);
      },
      [=](uint64_t offset, std::span<char> out) { layout.Fill(offset, out); },
      [=](uint64_t offset, std::span<const char> data) { return layout.Compare(offset, data); }};
}

std::vector<Kind> AllKinds() {
  const uint64_t key = MakeKey(42, 0);
  return {
      {"random", kSizeMax, [=](uint64_t offset) { return RandomByteAt(key, offset); },
       [=](uint64_t offset, std::span<char> out) { FillRandom(key, offset, out); },
       [=](uint64_t offset, std::span<const char> data) {
         return CompareRandom(key, offset, data);
       }},
      {"pattern", kSizeMax, PatternByteAt, FillPattern, ComparePattern},
      SparseKind("sparse", {kSizeMax, 42, 50, 8 * kKiB, false}),
      SparseKind("sparse, random content", {kSizeMax, 42, 50, 8 * kKiB, true}),
  };
}

TEST_CASE("every kind fills and compares like its slow twin at all alignments") {
  const auto check = [](const Kind& kind, uint64_t offset, size_t length, size_t misaligned) {
    Bytes buffer(length + misaligned + 8, kGuard);
    const std::span<char> out(buffer.data() + misaligned, length);
    kind.fill(offset, out);
    for (size_t i = 0; i < length; ++i) {
      if (out[i] != kind.byte_at(offset + i)) FAIL(kind.name, " at ", offset + i);
    }
    for (size_t i = 0; i < misaligned; ++i) REQUIRE(buffer[i] == kGuard);
    for (size_t i = misaligned + length; i < buffer.size(); ++i) {
      REQUIRE(buffer[i] == kGuard);
    }
    REQUIRE(kind.compare(offset, out) == kEqual);
  };
  WithEachInstructionSet([&] {
    for (const Kind& kind : AllKinds()) {
      for (uint64_t base : {uint64_t{0}, 4096 - uint64_t{20}, 3 * kGiB + 1000}) {
        for (uint64_t shift = 0; shift < 9; ++shift) {
          for (size_t length = 0; length < 80; ++length)
            check(kind, base + shift, length, shift % 5);
          for (size_t length : {511, 512, 513, 4095, 4096, 4097, 20000}) {
            check(kind, base + shift, length, (shift * 3) % 8);
          }
        }
      }
      for (size_t length : {1, 7, 8, 9, 4096, 10000}) {
        check(kind, kSizeMax - length, length, 0);
        check(kind, kSizeMax - length - 3, length, 1);
      }
    }
  });
}

TEST_CASE("comparing finds every single flipped bit and names its byte") {
  WithEachInstructionSet([&] {
    for (const Kind& kind : AllKinds()) {
      for (uint64_t offset : {uint64_t{3}, uint64_t{8192 - 700}}) {
        Bytes data(1500);
        kind.fill(offset, data);
        for (size_t i = 0; i < data.size(); ++i) {
          const auto flip = static_cast<char>(1 << (i % 8));
          data[i] ^= flip;
          if (kind.compare(offset, data) != i) FAIL(kind.name, " missed a flip at ", i);
          data[i] ^= flip;
        }
        data[200] ^= 1;
        data[1400] ^= 1;
        CHECK(kind.compare(offset, data) == 200);
        CHECK(kind.compare(offset + 201, std::span(data).subspan(201)) == 1400 - 201);
        CHECK(kind.compare(offset + 1401, std::span(data).subspan(1401)) == kEqual);
      }
    }
  });
}

TEST_CASE("the content never changes") {
  WithEachInstructionSet([] {
    const auto digest = [](const Kind& kind, uint64_t offset) {
      Bytes data(300 * kKiB);
      kind.fill(offset, data);
      return Digest(data);
    };
    const std::vector<Kind> kinds = AllKinds();
    CHECK(digest(kinds[0], 0) == 0x911c6b1e3bb2f947);
    CHECK(digest(kinds[0], kSizeMax - 300 * kKiB) == 0xcbfe9f53255eaa40);
    CHECK(digest(kinds[1], 5) == 0xe4863b7907468025);
    CHECK(digest(kinds[2], 0) == 0x70c0d3f046006325);
    CHECK(digest(kinds[2], kSizeMax - 300 * kKiB) == 0xcde0da440f30433f);
    CHECK(digest(kinds[3], 12345) == 0x3a77b2fa2cbf637);
  });
}

// The runs of a whole disk as numbers, so that one digest covers the shape.
uint64_t ShapeDigest(const SparseLayout::Config& config) {
  const SparseLayout layout(config);
  std::vector<uint64_t> ends;
  layout.ForEachRun(0, layout.size(), [&](const Run& run) {
    ends.push_back(run.end * 2 + run.data);
    return true;
  });
  return Digest({reinterpret_cast<const char*>(ends.data()), ends.size() * sizeof(uint64_t)});
}

TEST_CASE("the layout never changes") {
  CHECK(ShapeDigest({kGiB, 1, 10, 16 * kMiB, false}) == 0x3a263926a953ec3e);
  CHECK(ShapeDigest({10 * kMiB, 1, 10, 16 * kMiB, false}) == 0x7b2bbe97bcf3e920);
  CHECK(ShapeDigest({kGiB, 7, 10, 16 * kKiB, false}) == 0xd50b968fa743eb24);
  CHECK(ShapeDigest({kGiB + 1, 7, 90, 64 * kKiB, false}) == 0xb8c7517a40c637a0);
  CHECK(ShapeDigest({kGiB, 7, 0.37, 1, false}) == 0x72a378d4c1587eef);
}

TEST_CASE("random bytes are even, and seeds, purposes and offsets differ") {
  Bytes data(4 * kMiB);
  FillRandom(MakeKey(0, 0), 0, data);
  std::vector<double> histogram(256);
  for (char byte : data) histogram[static_cast<unsigned char>(byte)] += 1;
  double chi_square = 0;
  const double expected = static_cast<double>(data.size()) / 256;
  for (double count : histogram) chi_square += (count - expected) * (count - expected) / expected;
  CHECK(chi_square > 170);  // 255 degrees of freedom: 255 +- 22.6, so this is within 3.8 sigma
  CHECK(chi_square < 340);

  // Each bit is set half of the time, and independent of its neighbour and of the word before.
  std::vector<uint64_t> words(data.size() / 8);
  std::memcpy(words.data(), data.data(), data.size());
  double ones = 0, neighbours = 0, words_differ = 0;
  for (size_t i = 1; i < words.size(); ++i) {
    ones += __builtin_popcountll(words[i]);
    neighbours += __builtin_popcountll(words[i] ^ (words[i] >> 1));
    words_differ += __builtin_popcountll(words[i] ^ words[i - 1]);
  }
  const double bits = static_cast<double>(words.size() - 1) * 64;
  for (double count : {ones, neighbours, words_differ}) {
    CHECK(std::abs(count / bits - 0.5) < 4.5 * 0.5 / std::sqrt(bits));
  }

  Bytes other(4096);
  FillRandom(MakeKey(1, 0), 0, other);
  CHECK(CompareRandom(MakeKey(0, 0), 0, other) < 8);
  CHECK(CompareRandom(MakeKey(1, 1), 0, other) < 8);
  CHECK(CompareRandom(MakeKey(1, 0), 8, other) < 8);
}

struct Statistics {
  double fraction = 0;
  double mean_run = 0;
  uint64_t runs = 0;
};

// Walks the disk and checks on the way what must hold of every layout.
Statistics Measure(const SparseLayout::Config& config) {
  const SparseLayout layout(config);
  Statistics result;
  double data_bytes = 0;
  uint64_t at = 0;
  bool last_data = false;
  layout.ForEachRun(0, config.size, [&](const Run& run) {
    // Not REQUIRE, which is far slower than the walk.
    if (run.begin != at || run.end <= run.begin) FAIL("a gap at ", at);
    if (run.end % SparseLayout::kBlockBytes != 0 && run.end != config.size) FAIL("unaligned");
    if (at != 0 && run.data == last_data) FAIL("two of a kind at ", at);
    if (run.data) {
      data_bytes += static_cast<double>(run.end - run.begin);
      ++result.runs;
    }
    at = run.end;
    last_data = run.data;
    return true;
  });
  REQUIRE(at == config.size);
  result.fraction = data_bytes / static_cast<double>(config.size);
  result.mean_run = result.runs == 0 ? 0 : data_bytes / static_cast<double>(result.runs);
  return result;
}

TEST_CASE("the fraction of data and the mean run are as asked") {
  for (double percent : {0.5, 3.0, 10.0, 12.5, 25.0, 30.0, 50.0, 51.0, 75.0, 90.0}) {
    for (uint64_t run_length : {4 * kKiB, 16 * kKiB, 100 * kKiB, kMiB}) {
      CAPTURE(percent);
      CAPTURE(run_length);
      // A cell, the place of one run, is a whole number of blocks, at least one of them data and
      // one hole in the mean: so the mean run is rounded by up to one part in cell_blocks.
      const double share = percent / 100;
      const double run_blocks = static_cast<double>(run_length) / 4096;
      const double cell_blocks = std::max({run_blocks / share, 1 / share, 1 / (1 - share)});
      const auto size = static_cast<uint64_t>(cell_blocks * 4096 * 40000);
      const Statistics got = Measure({size, 5, percent, run_length, false});
      const double sigmas = 4.5 * 1.15 / std::sqrt(static_cast<double>(got.runs));
      CHECK(got.runs > 20000);
      CHECK(std::abs(got.fraction / share - 1) < sigmas);
      CHECK(std::abs(got.mean_run / (cell_blocks * share * 4096) - 1) < sigmas + 1 / cell_blocks);
    }
  }
}

TEST_CASE("the fraction wins over the run length where both cannot be had") {
  const Statistics got = Measure({kGiB, 5, 99, 4096, false});
  CHECK(got.fraction == doctest::Approx(0.99).epsilon(0.005));
  CHECK(got.mean_run == doctest::Approx(99 * 4096).epsilon(0.05));
}

TEST_CASE("runs vary, even between holes of a single block") {
  for (double percent : {10.0, 50.0, 90.0}) {
    const SparseLayout layout({64 * kMiB, 5, percent, 16 * kKiB, false});
    std::vector<uint64_t> lengths;
    layout.ForEachRun(0, layout.size(), [&](const Run& run) {
      if (run.data) lengths.push_back(run.end - run.begin);
      return true;
    });
    std::sort(lengths.begin(), lengths.end());
    const uint64_t median = lengths[lengths.size() / 2];
    CHECK(lengths[lengths.size() / 10] * 2 <= median);
    CHECK(lengths[lengths.size() * 9 / 10] * 2 >= median * 3);
  }
}

TEST_CASE("no data, all data, and the ends of percent") {
  CHECK(Measure({kGiB, 1, 0, kMiB, false}).runs == 0);
  CHECK(Measure({kGiB, 1, -5, kMiB, false}).runs == 0);
  CHECK(Measure({kGiB, 1, NAN, kMiB, false}).runs == 0);
  const SparseLayout full({12345, 1, 100, kMiB, false});
  CHECK(full.RunAt(12344) == Run{0, 12345, true});
  CHECK(full.FirstNonZero(77, 100) == 77);
  CHECK(Measure({12345, 1, 1000, kMiB, false}).fraction == 1.0);
  CHECK(Measure({kGiB, 1, 1e-12, kMiB, false}).runs == 0);
  CHECK(Measure({0, 1, 10, kMiB, false}).runs == 0);
}

TEST_CASE("disks of a few blocks keep every promise and have data now and then") {
  uint64_t with_data = 0;
  double blocks = 0, data_blocks = 0;
  for (uint64_t size = 1; size < 9 * 4096; size += 411) {
    for (uint64_t seed = 0; seed < 40; ++seed) {
      for (double percent : {10.0, 50.0, 90.0}) {
        const Statistics got = Measure({size, seed, percent, 16 * kMiB, false});
        with_data += got.runs > 0;
        blocks += static_cast<double>(size) * percent / 100;
        data_blocks += static_cast<double>(size) * got.fraction;
      }
    }
  }
  CHECK(with_data > 3000);
  CHECK(data_blocks / blocks == doctest::Approx(1).epsilon(0.05));
}

TEST_CASE("a disk shorter than one run still has its fraction of data") {
  double sum = 0;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    sum += Measure({10 * kMiB, seed, 10, 16 * kMiB, false}).fraction;
  }
  CHECK(sum / 300 == doctest::Approx(0.10).epsilon(0.3));
}

TEST_CASE("a run is the same from wherever it is asked for") {
  for (const SparseLayout::Config& config :
       {SparseLayout::Config{20 * kMiB + 77, 3, 40, 24 * kKiB, false},
        SparseLayout::Config{20 * kMiB, 3, 97, 24 * kKiB, false},
        SparseLayout::Config{3 * 4096 + 1, 3, 30, kMiB, false}}) {
    const SparseLayout layout(config);
    layout.ForEachRun(0, config.size, [&](const Run& run) {
      for (uint64_t at : {run.begin, run.begin + 1, (run.begin + run.end) / 2, run.end - 1}) {
        if (at < run.end) REQUIRE(layout.RunAt(at) == run);
      }
      return true;
    });
    // A cut walk tells the same runs, clipped.
    for (uint64_t offset = 0; offset < config.size; offset += config.size / 97 + 1) {
      const uint64_t length = std::min<uint64_t>(config.size - offset, config.size / 13 + 5);
      uint64_t at = offset;
      layout.ForEachRun(offset, length, [&](const Run& run) {
        const Run whole = layout.RunAt(at);
        REQUIRE(run == Run{at, std::min(whole.end, offset + length), whole.data});
        at = run.end;
        return true;
      });
      REQUIRE(at == offset + length);
    }
  }
}

TEST_CASE("a walk stops when it is told to") {
  const SparseLayout layout({kGiB, 1, 50, 64 * kKiB, false});
  for (int limit = 1; limit < 6; ++limit) {
    int calls = 0;
    layout.ForEachRun(0, kGiB, [&](const Run&) { return ++calls < limit; });
    CHECK(calls == limit);
  }
  layout.ForEachRun(5, 0, [](const Run&) {
    FAIL("nothing to tell");
    return false;
  });
}

TEST_CASE("the far end of the largest disk works like the near one") {
  const SparseLayout layout({kSizeMax, 9, 10, 16 * kKiB, false});
  uint64_t runs = 0, data_bytes = 0, at = kSizeMax - kGiB;
  layout.ForEachRun(at, kGiB, [&](const Run& run) {
    REQUIRE(run.begin == at);
    at = run.end;
    runs += run.data;
    if (run.data) data_bytes += run.end - run.begin;
    return true;
  });
  CHECK(at == kSizeMax);
  CHECK(runs == doctest::Approx(kGiB * 0.1 / (16 * kKiB)).epsilon(0.1));
  CHECK(data_bytes == doctest::Approx(kGiB * 0.1).epsilon(0.1));
  CHECK(layout.RunAt(kSizeMax - 1).end == kSizeMax);
  const SparseLayout one_run({kSizeMax, 9, 10, kSizeMax, false});
  CHECK(one_run.RunAt(kSizeMax - 1).end <= kSizeMax);
  CHECK(Measure({kSizeMax, 9, 50, kSizeMax / 8, false}).fraction ==
        doctest::Approx(0.5).epsilon(0.9));
}

TEST_CASE("a data block is never zero and never like its neighbour") {
  const SparseLayout layout({64 * kMiB, 11, 80, kMiB, false});
  Bytes data(64 * kMiB);
  layout.Fill(0, data);
  std::vector<bool> seen(256);
  for (size_t block = 0; block < data.size() / 4096; ++block) {
    const auto bytes = std::span(data).subspan(block * 4096, 4096);
    REQUIRE(CompareByte(bytes[0], bytes) == kEqual);
    const bool is_data = layout.RunAt(block * 4096).data;
    REQUIRE((bytes[0] != 0) == is_data);
    if (is_data) seen[static_cast<unsigned char>(bytes[0])] = true;
    if (block > 0 && is_data) REQUIRE(bytes[0] != data[block * 4096 - 1]);
  }
  for (size_t value = 1; value <= 254; ++value) CHECK(seen[value]);
}

TEST_CASE("the first byte that is not zero is found over any length") {
  for (bool random_content : {false, true}) {
    const SparseLayout layout({16 * kMiB, 2, 10, 32 * kKiB, random_content});
    Bytes data(16 * kMiB);
    layout.Fill(0, data);
    for (uint64_t offset = 0; offset < data.size(); offset += 20011) {
      for (uint64_t length : {uint64_t{0}, uint64_t{1}, uint64_t{5000}, 700 * kKiB}) {
        length = std::min<uint64_t>(length, data.size() - offset);
        uint64_t expected = offset;
        while (expected < offset + length && data[expected] == 0) ++expected;
        REQUIRE(layout.FirstNonZero(offset, length) == expected);
      }
    }
  }
  const SparseLayout empty({kSizeMax, 2, 0, kMiB, false});
  CHECK(empty.FirstNonZero(0, kSizeMax) == kSizeMax);
}

TEST_CASE("disks of different seeds differ") {
  Bytes data(16 * kMiB);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SparseLayout({data.size(), seed, 10, kMiB, false}).Fill(0, data);
    for (uint64_t other = 0; other < 20; ++other) {
      const SparseLayout layout({data.size(), other, 10, kMiB, false});
      REQUIRE((layout.Compare(0, data) == kEqual) == (seed == other));
    }
  }
}

}  // namespace
}  // namespace blk::generate
