#include "src/backends/page_store.h"

#include <doctest/doctest.h>
#include <malloc.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "src/backends/page_store/stores.h"
#include "src/core/zeroes.h"

namespace blk {
namespace {

using page_store::kRegionBytes;
using page_store::StorePtr;

constexpr uint64_t kLargest = INT64_MAX;
const std::vector<std::string> kAllocators = {"sparse", "malloc", "zstd", "zstd,level=1", "dedup"};
const std::vector<std::string> kSparseOnes = {"sparse", "zstd", "dedup"};

#if defined(__has_feature)
constexpr bool kSanitized = __has_feature(address_sanitizer) || __has_feature(thread_sanitizer);
#else
constexpr bool kSanitized = false;
#endif

StorePtr Make(std::string_view allocator, uint64_t size) {
  absl::StatusOr<StorePtr> store = PageStore::Create(allocator, size);
  REQUIRE_MESSAGE(store.ok(), store.status().ToString());
  return *std::move(store);
}

std::string ReadAll(PageStore& store, uint64_t offset, size_t bytes) {
  std::string result(bytes, '?');
  REQUIRE(store.Read(offset, result).ok());
  return result;
}

std::string Borrowed(PageStore& store, uint64_t offset, size_t bytes) {
  Loan loan;
  std::string result;
  if (!store.Borrow(offset, bytes, &loan)) return ReadAll(store, offset, bytes);
  for (const iovec& part : loan.spans())
    result.append(static_cast<const char*>(part.iov_base), part.iov_len);
  return result;
}

// Some of it repeats, so that every packing happens.
std::string Content(std::mt19937_64& random, size_t bytes) {
  std::string content(bytes, static_cast<char>(random()));
  const int kind = random() % 3;
  if (kind == 0)
    for (char& c : content) c = static_cast<char>(random());
  if (kind == 1)
    for (size_t i = 0; i < bytes; ++i) content[i] = "some text, "[i % 11];
  return content;
}

// A window of a store beside a plain array that gets the same operations.
class Oracle {
 public:
  Oracle(PageStore& store, uint64_t base, uint64_t bytes, uint64_t seed)
      : store_(store), base_(base), bytes_(bytes, '\0'), random_(seed) {}

  void Step() {
    const uint64_t offset = Edge();
    const uint64_t length = std::min<uint64_t>(Length(), bytes_.size() - offset);
    switch (random_() % 5) {
      case 0:
      case 1: {
        const std::string content = Content(random_, length);
        REQUIRE(store_.Write(base_ + offset, content).ok());
        bytes_.replace(offset, length, content);
        break;
      }
      case 2:
        REQUIRE(store_.Zero(base_ + offset, length, random_() % 2).ok());
        bytes_.replace(offset, length, length, '\0');
        break;
      case 3:
        REQUIRE(ReadAll(store_, base_ + offset, length) == bytes_.substr(offset, length));
        break;
      default:
        REQUIRE(Borrowed(store_, base_ + offset, length) == bytes_.substr(offset, length));
    }
  }

  void CheckAll() {
    REQUIRE(ReadAll(store_, base_, bytes_.size()) == bytes_);
    ExtentList list(base_, bytes_.size());
    store_.Extents(&list);
    REQUIRE(list.full());
    uint64_t at = 0;
    for (const Extent& extent : list.extents()) {
      if (extent.flags == kExtentHoleZero) REQUIRE(IsZero(&bytes_[at], extent.length));
      at += extent.length;
    }
    REQUIRE(at == bytes_.size());
  }

 private:
  // Often at or beside the boundaries of blocks, pages and regions.
  uint64_t Edge() {
    uint64_t offset = random_() % bytes_.size();
    const uint64_t units[] = {4096, 32768, kRegionBytes, 1};
    const uint64_t unit = units[random_() % 4];
    offset = offset / unit * unit + random_() % 3 - 1;
    return std::min<uint64_t>(offset, bytes_.size() - 1);
  }
  uint64_t Length() {
    const uint64_t lengths[] = {1, 512, 4096, 4097, 32768, 100000, bytes_.size()};
    return random_() % 4 ? lengths[random_() % 7] : 1 + random_() % 70000;
  }

  PageStore& store_;
  const uint64_t base_;
  std::string bytes_;
  std::mt19937_64 random_;
};

uint64_t ResidentBytes() {
  std::ifstream file("/proc/self/statm");
  uint64_t total, resident;
  file >> total >> resident;
  return resident * 4096;
}

std::vector<Extent> Map(PageStore& store, uint64_t offset, uint64_t length) {
  ExtentList list(offset, length);
  store.Extents(&list);
  return list.extents();
}

TEST_CASE("page stores equal a byte array on a small disk") {
  for (const std::string& allocator : kAllocators) {
    for (uint64_t size : {1ull, 4095ull, 65536ull, 300001ull}) {
      CAPTURE(allocator);
      CAPTURE(size);
      StorePtr store = Make(allocator, size);
      Oracle oracle(*store, 0, size, size);
      for (int i = 0; i < 600; ++i) oracle.Step();
      oracle.CheckAll();
      REQUIRE(store->Zero(0, size, true).ok());
      if (allocator == "malloc") continue;
      CHECK(store->stats().logical_bytes == 0);
      CHECK(store->stats().stored_bytes == 0);
      CHECK(Map(*store, 0, size) == std::vector<Extent>{{size, kExtentHoleZero}});
    }
  }
}

TEST_CASE("page stores equal a byte array at both ends and in the midst of the largest disk") {
  for (const std::string& allocator : kSparseOnes) {
    StorePtr store = Make(allocator, kLargest);
    CAPTURE(allocator);
    const uint64_t window = 200001;
    std::vector<Oracle> oracles;
    uint64_t seed = 1;
    for (unsigned long long base : {0ull, kRegionBytes - 70000ull, (1ull << 35) - 100000,
                                    (1ull << 49) - 65536, 1ull << 62, kLargest - window + 0ull})
      oracles.emplace_back(*store, base, window, ++seed);
    for (int i = 0; i < 2400; ++i) oracles[i % oracles.size()].Step();
    for (Oracle& oracle : oracles) oracle.CheckAll();
  }
}

TEST_CASE("page stores skip emptiness at once") {
  for (const std::string& allocator : kSparseOnes) {
    CAPTURE(allocator);
    StorePtr store = Make(allocator, kLargest);
    const auto start = std::chrono::steady_clock::now();
    CHECK(Map(*store, 0, kLargest) == std::vector<Extent>{{kLargest, kExtentHoleZero}});
    const uint64_t far = 3ull << 60, end = kLargest;
    REQUIRE(store->Write(32768, std::string(1, 'x')).ok());
    REQUIRE(store->Write(far, std::string(8192, '\0')).ok());
    REQUIRE(store->Write(end - 1, std::string(1, 'y')).ok());
    CHECK(Map(*store, 0, kLargest) ==
          std::vector<Extent>{{32768, kExtentHoleZero},
                              {4096, kExtentData},
                              {far - 32768 - 4096, kExtentHoleZero},
                              {8192, kExtentData},
                              {end - far - 8192 - 4095, kExtentHoleZero},
                              {4095, kExtentData}});
    CHECK(Map(*store, 32769, 1) == std::vector<Extent>{{1, kExtentData}});
    REQUIRE(store->Zero(0, kLargest, false).ok());
    CHECK(Map(*store, 0, kLargest).size() == 6);
    CHECK(ReadAll(*store, end - 1, 1) == std::string(1, '\0'));
    REQUIRE(store->Zero(0, kLargest, true).ok());
    CHECK(Map(*store, 0, kLargest).size() == 1);
    CHECK(store->stats().logical_bytes == 0);
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(2));
  }
}

TEST_CASE("an extent list of one ends after one") {
  for (const std::string& allocator : kSparseOnes) {
    StorePtr store = Make(allocator, 8 * kRegionBytes);
    for (uint64_t i = 0; i < 8; ++i)
      REQUIRE(store->Write(i * kRegionBytes, std::string(4096, 'x')).ok());
    ExtentList list(0, 8 * kRegionBytes, 1);
    store->Extents(&list);
    CHECK(list.extents() == std::vector<Extent>{{4096, kExtentData}});
  }
}

TEST_CASE("malloc is all data, and a fully locked one still trims to zeroes") {
  StorePtr store = Make("malloc", 1 << 20);
  CHECK(Map(*store, 4096, 100000) == std::vector<Extent>{{100000, kExtentData}});
  absl::StatusOr<StorePtr> locked = PageStore::Create("malloc,mlock=true", 64 << 10);
  REQUIRE_MESSAGE(locked.ok(), locked.status().ToString());
  REQUIRE((*locked)->Write(0, std::string(64 << 10, 'x')).ok());
  REQUIRE((*locked)->Zero(1, (64 << 10) - 2, true).ok());
  CHECK(ReadAll(**locked, 0, 3) == std::string("x\0\0", 3));
  CHECK(ReadAll(**locked, (64 << 10) - 3, 3) == std::string("\0\0x", 3));
  CHECK(IsZero(ReadAll(**locked, 1, (64 << 10) - 2).data(), (64 << 10) - 2));
}

TEST_CASE("allocators that cannot be made say why") {
  for (std::string_view bad : {"", "spares", "sparse,x=1", "malloc,mlock", "malloc,lock=true",
                               "zstd,level=", "zstd,level=99", "zstd,level=1,level=2", "dedup,"}) {
    CAPTURE(bad);
    absl::StatusOr<StorePtr> store = PageStore::Create(bad, 1 << 20);
    REQUIRE(!store.ok());
    CHECK(ErrnoOf(store.status()) == EINVAL);
    CHECK(store.status().message().find("use sparse, malloc") != std::string::npos);
  }
  CHECK(ErrnoOf(PageStore::Create("malloc", kLargest).status()) == ENOMEM);
}

TEST_CASE("dedup stores equal pages once and counts references") {
  StorePtr store = Make("dedup", 64 << 20);
  const std::string page(4096, 'a');
  for (uint64_t i = 0; i < 100; ++i) REQUIRE(store->Write(i * 8192, page).ok());
  CHECK(store->stats().logical_bytes == 100 * 4096);
  CHECK(store->stats().stored_bytes == 4096);
  REQUIRE(store->Write(8192 + 7, std::string("b")).ok());  // a copy, the others stay
  CHECK(store->stats().stored_bytes == 2 * 4096);
  CHECK(ReadAll(*store, 0, 4096) == page);
  CHECK(ReadAll(*store, 8192 + 6, 3) == "aba");
  REQUIRE(store->Write(8192 + 7, std::string("a")).ok());  // and back to the shared one
  CHECK(store->stats().stored_bytes == 4096);
  REQUIRE(store->Zero(8192, 64 * 8192, true).ok());
  CHECK(store->stats().logical_bytes == 36 * 4096);
  CHECK(ReadAll(*store, 0, 4096) == page);
}

TEST_CASE("dedup loses nothing to a hash that always collides") {
  const auto weak = +[](const void* data, size_t) {
    return XXH128_hash_t{static_cast<const unsigned char*>(data)[0] % 2u, 0};
  };
  StorePtr store = *page_store::MakeDedup(2 << 20, weak);
  for (int i = 0; i < 256; ++i)
    REQUIRE(store->Write(i * 4096, std::string(4096, static_cast<char>(i))).ok());
  CHECK(store->stats().stored_bytes == 256 * 4096);
  for (int i = 0; i < 256; ++i)
    REQUIRE(ReadAll(*store, i * 4096, 4096) == std::string(4096, static_cast<char>(i)));
  Oracle oracle(*store, 1 << 20, 300001, 5);
  for (int i = 0; i < 1500; ++i) oracle.Step();
  oracle.CheckAll();
}

TEST_CASE("zstd shrinks what repeats, written large or small") {
  std::string text;
  for (int i = 0; text.size() < 1 << 20; ++i)
    text += "line " + std::to_string(i * 7919 % 10007) + " of a text like many others\n";
  text.resize(1 << 20);
  for (size_t step : {size_t{1} << 20, size_t{4096}, size_t{1000}}) {
    CAPTURE(step);
    StorePtr store = Make("zstd", 64 << 20);
    for (size_t at = 0; at < text.size(); at += step)
      REQUIRE(store->Write(at, std::string_view(text).substr(at, step)).ok());
    CHECK(ReadAll(*store, 0, text.size()) == text);
    CHECK(store->stats().logical_bytes == 1 << 20);
    CHECK(store->stats().stored_bytes < (1 << 20) / 4);
  }
}

TEST_CASE("trimmed memory goes back to the system") {
  if (kSanitized) return;  // they keep their own books
  constexpr uint64_t kBytes = 64 << 20;
  std::mt19937_64 random(1);
  for (const std::string& allocator : {"sparse", "zstd", "dedup", "malloc"}) {
    CAPTURE(allocator);
    StorePtr store = Make(allocator, kBytes);
    std::string content(1 << 20, '\0');
    malloc_trim(0);  // what other cases have freed is not ours to count
    const uint64_t before = ResidentBytes();
    for (uint64_t at = 0; at < kBytes; at += content.size()) {
      for (size_t i = 0; i < content.size(); i += 8) {
        const uint64_t word = random();
        std::memcpy(&content[i], &word, 8);
      }
      REQUIRE(store->Write(at, content).ok());
    }
    const uint64_t full = ResidentBytes();
    Loan loan;  // must not keep the memory, nor be harmed
    const bool lent = store->Borrow(kBytes / 2, 4096, &loan);
    REQUIRE(store->Zero(0, kBytes, true).ok());
    const uint64_t after = ResidentBytes();
    CHECK(full > before + kBytes * 9 / 10);
    CHECK(after < before + kBytes / 10);
    if (lent) CHECK(IsZero(static_cast<const char*>(loan.spans()[0].iov_base), 4096));
  }
}

// Exit status of a child in which `body` runs with little more address space than it has.
template <typename Body>
int InTightChild(Body body) {
  const pid_t child = fork();
  if (child == 0) {
    std::ifstream file("/proc/self/statm");
    uint64_t pages;
    file >> pages;
    const rlimit limit = {pages * 4096 + (96 << 20), pages * 4096 + (96 << 20)};
    setrlimit(RLIMIT_AS, &limit);
    _exit(body());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST_CASE("writes fail with ENOSPC when there is no memory, and nothing is lost") {
  if (kSanitized) return;  // they need all the address space there is
  for (const std::string& allocator : kSparseOnes) {
    CAPTURE(allocator);
    CHECK(InTightChild([&] {
            absl::StatusOr<StorePtr> store = PageStore::Create(allocator, kLargest);
            if (!store.ok()) return 2;
            std::mt19937_64 random(1);
            std::string content(32768, '\0');
            uint64_t written = 0;
            for (;; ++written) {
              if (written > 1 << 16) return 3;
              for (char& c : content) c = static_cast<char>(random());
              std::memcpy(content.data(), &written, 8);
              absl::Status status = (*store)->Write(written << 20, content);
              if (status.ok()) continue;
              if (ErrnoOf(status) != ENOSPC) return 4;
              break;
            }
            if (written < 16) return 5;
            for (uint64_t i = 0; i < written; ++i) {
              uint64_t found;
              if (!(*store)->Read(i << 20, {reinterpret_cast<char*>(&found), 8}).ok()) return 6;
              if (found != i) return 7;
            }
            return (*store)->Zero(0, kLargest, true).ok() ? 0 : 8;
          }) == 0);
  }
}

void RunThreads(std::vector<std::function<void()>> bodies) {
  std::vector<std::thread> threads;
  for (auto& body : bodies) threads.emplace_back(std::move(body));
  for (std::thread& thread : threads) thread.join();
}

TEST_CASE("writers of different bytes in one page all survive") {
  for (const std::string& allocator : kAllocators) {
    CAPTURE(allocator);
    constexpr int kThreads = 4;
    constexpr uint64_t kStripe = 100, kBytes = 96 << 10;
    StorePtr store = Make(allocator, kBytes);
    std::atomic<int> wrong{0};
    std::vector<std::function<void()>> bodies;
    for (int thread = 0; thread < kThreads; ++thread) {
      bodies.push_back([&, thread] {
        for (int round = 0; round < 20; ++round) {
          for (uint64_t at = thread * kStripe; at + kStripe <= kBytes; at += kThreads * kStripe) {
            const std::string content(kStripe, static_cast<char>('a' + (round + thread) % 26));
            std::string found(kStripe, '?');
            wrong += !store->Write(at, content).ok();
            wrong += !store->Read(at, found).ok() || found != content;
            if (round % 5 == 4) {
              wrong += !store->Zero(at, kStripe, true).ok();
              wrong += !store->Read(at, found).ok() || !IsZero(found.data(), kStripe);
            }
          }
        }
      });
    }
    RunThreads(std::move(bodies));
    CHECK(wrong == 0);
  }
}

TEST_CASE("trims race with writers, readers and loans") {
  for (const std::string& allocator : kAllocators) {
    CAPTURE(allocator);
    constexpr uint64_t kArea = 256 << 10;
    StorePtr store = Make(allocator, 4 * kArea);
    REQUIRE(store->Write(kArea, std::string(kArea, 'r')).ok());
    std::atomic<bool> done{false};
    std::atomic<int> wrong{0};
    const auto until_done = [&](std::function<void(uint64_t page)> step) {
      return [&done, step] {
        std::mt19937_64 random(1);
        while (!done) step(random() % (kArea / 4096));
      };
    };
    RunThreads({
        // One writes pages of the first area that another trims.
        until_done([&](uint64_t page) {
          wrong += !store->Write(page * 4096, std::string(4096, 'w')).ok();
        }),
        // The second area is read and lent while its pages are trimmed.
        until_done([&](uint64_t page) {
          std::string found(4096, '?');
          wrong += !store->Read(kArea + page * 4096, found).ok();
          wrong += found != std::string(4096, 'r') && !IsZero(found.data(), 4096);
          Loan loan;
          if (store->Borrow(kArea + page * 4096, 4096, &loan))
            found.assign(static_cast<const char*>(loan.spans()[0].iov_base), 4096);
          // A page that is zeroed meanwhile may be seen in the middle of it.
          wrong += found.find_first_not_of(std::string_view("r\0", 2)) != found.npos;
          Map(*store, 0, 4 * kArea);
        }),
        [&] {
          std::mt19937_64 random(2);
          for (int i = 0; i < 3000; ++i) {
            const uint64_t page = random() % (kArea / 4096);
            wrong += !store->Zero(page * 4096, 4096, true).ok();
            if (i % 100 == 0) wrong += !store->Zero(kArea + page * 4096, 4096, true).ok();
          }
          done = true;
        },
    });
    CHECK(wrong == 0);
    // Whatever won, what is called a hole is one.
    const std::string content = ReadAll(*store, 0, 4 * kArea);
    uint64_t at = 0;
    for (const Extent& extent : Map(*store, 0, 4 * kArea)) {
      if (extent.flags == kExtentHoleZero) CHECK(IsZero(&content[at], extent.length));
      at += extent.length;
    }
  }
}

}  // namespace
}  // namespace blk
