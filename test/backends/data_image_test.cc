// Images against an array of bytes.
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "doctest/doctest.h"
#include "src/backends/data/image.h"

namespace blk {
namespace {

constexpr uint64_t kExabyte = uint64_t{1} << 60;

// A sink that keeps what it gets, and insists on what it was promised.
class Collector : public DataSink {
 public:
  absl::Status Put(uint64_t offset, std::string_view bytes) override {
    CHECK(offset >= end_);
    CHECK(offset % kImagePageBytes == 0);
    CHECK(bytes.size() <= kImagePageBytes);
    CHECK(bytes.find_first_not_of('\0') != std::string_view::npos);
    end_ = offset + bytes.size();
    puts_.emplace_back(offset, bytes);
    return absl::OkStatus();
  }

  std::string Bytes(uint64_t size) const {
    std::string all(size, '\0');
    for (const auto& [offset, bytes] : puts_) all.replace(offset, bytes.size(), bytes);
    return all;
  }
  const auto& puts() const { return puts_; }

 private:
  std::vector<std::pair<uint64_t, std::string>> puts_;
  uint64_t end_ = 0;
};

std::string Content(const ImagePtr& image) {
  Collector collector;
  REQUIRE(RenderImage(*image, uint64_t{1} << 30, collector).ok());
  return collector.Bytes(image->size());
}

ImagePtr Repeat(const ImagePtr& image, uint64_t count) {
  auto repeated = RepeatImage(image, count);
  REQUIRE(repeated.ok());
  return *repeated;
}

TEST_CASE("a repeat of zeroes is one node and a slice of a huge repeat is as small as the slice") {
  CHECK(Repeat(BytesImage(std::string(1, '\0')), kExabyte)->zero());
  const ImagePtr huge = Repeat(BytesImage("ab"), kExabyte);
  CHECK(huge->size() == 2 * kExabyte);
  const ImagePtr slice = SliceImage(huge, kExabyte + 1, kExabyte + 11);
  CHECK(slice->kind() == Image::Kind::kBytes);
  CHECK(Content(slice) == "bababababa");
  // A long slice is still three nodes: an end, whole copies, a beginning.
  const ImagePtr long_slice = SliceImage(huge, 1, kExabyte);
  CHECK(long_slice->size() == kExabyte - 1);
  CHECK(long_slice->pieces().size() == 2);
}

TEST_CASE("an image that is larger than a disk can be is refused") {
  CHECK(RepeatImage(BytesImage("ab"), kImageSizeMax / 2).ok());
  CHECK(RepeatImage(BytesImage("ab"), kImageSizeMax / 2 + 1).status().code() ==
        absl::StatusCode::kOutOfRange);
  ImageBuilder builder;
  CHECK(builder.Write(kImageSizeMax - 1, BytesImage("a")).ok());
  CHECK(builder.Write(kImageSizeMax, BytesImage("a")).code() == absl::StatusCode::kOutOfRange);
  CHECK(builder.Build()->size() == kImageSizeMax);
}

TEST_CASE("a slice of a non-zero image that holds only zeroes is a zero image") {
  ImageBuilder builder;
  REQUIRE(builder.Write(10, BytesImage("x")).ok());
  REQUIRE(builder.Write(kExabyte, BytesImage("y")).ok());
  const ImagePtr image = builder.Build();
  CHECK(SliceImage(image, 0, 10)->zero());
  CHECK(SliceImage(image, 11, kExabyte)->zero());
  CHECK_FALSE(SliceImage(image, 10, kExabyte)->zero());
  const ImagePtr repeat = Repeat(image, 4);
  CHECK(SliceImage(repeat, kExabyte + 12, 2 * kExabyte)->zero());
  CHECK(Content(SliceImage(repeat, kExabyte, kExabyte + 12)) ==
        std::string("y") + std::string(10, '\0') + "x");
}

TEST_CASE("pages without data are not given to the sink, the others are whole") {
  ImageBuilder builder;
  REQUIRE(builder.Write(kImagePageBytes, BytesImage("a")).ok());
  REQUIRE(builder.Write(2 * kImagePageBytes, BytesImage(std::string(40000, '\0'))).ok());
  REQUIRE(builder.Write(5 * kImagePageBytes - 1, BytesImage("bc")).ok());
  Collector collector;
  REQUIRE(RenderImage(*builder.Build(), 3 * kImagePageBytes, collector).ok());
  REQUIRE(collector.puts().size() == 3);
  const std::string hole(kImagePageBytes - 1, '\0');
  CHECK((collector.puts()[0] == std::pair(kImagePageBytes, "a" + hole)));
  CHECK((collector.puts()[1] == std::pair(4 * kImagePageBytes, hole + "b")));
  CHECK((collector.puts()[2] == std::pair(5 * kImagePageBytes, std::string("c"))));
}

TEST_CASE("rendering stops at the bound on memory") {
  Collector collector;
  const ImagePtr image = Repeat(BytesImage("x"), kExabyte);
  const absl::Status status = RenderImage(*image, 4 * kImagePageBytes, collector);
  CHECK(status.code() == absl::StatusCode::kResourceExhausted);
  CHECK(status.message().find("131072") != std::string_view::npos);
  CHECK(collector.puts().size() == 4);
}

TEST_CASE("a failing sink stops the rendering") {
  struct Failing : DataSink {
    absl::Status Put(uint64_t, std::string_view) override {
      ++calls;
      return absl::DataLossError("gone");
    }
    int calls = 0;
  } failing;
  const ImagePtr image = Repeat(BytesImage("x"), 10 * kImagePageBytes);
  CHECK(RenderImage(*image, kExabyte, failing).message() == "gone");
  CHECK(failing.calls == 1);
}

// Every image is made together with the string that it must equal.
struct Twin {
  ImagePtr image;
  std::string bytes;
};

class TwinMaker {
 public:
  explicit TwinMaker(uint64_t seed) : random_(seed) {}

  Twin Make(int depth) {
    switch (depth == 0 ? Below(3) : Below(6)) {
      case 0:
        return Literal(Below(8), 'a' + Below(26));
      case 1:
        return Literal(Below(6000), '\0');
      case 2:
        return Literal(Below(6000), 'A' + Below(26));
      case 3:
        return Repeated(Make(depth - 1));
      case 4:
        return Sliced(Make(depth - 1));
      default:
        return Written(depth);
    }
  }

 private:
  uint64_t Below(uint64_t bound) { return random_() % bound; }

  Twin Literal(uint64_t length, char c) {
    const std::string bytes(length, c);
    return {BytesImage(bytes), bytes};
  }
  Twin Repeated(const Twin& unit) {
    uint64_t count = Below(6);
    if (unit.bytes.size() > 100'000) count %= 2;
    Twin twin{Repeat(unit.image, count), ""};
    for (uint64_t i = 0; i < count; ++i) twin.bytes += unit.bytes;
    return twin;
  }
  Twin Sliced(const Twin& whole) {
    uint64_t begin = Below(whole.bytes.size() + 1);
    uint64_t end = Below(whole.bytes.size() + 1);
    if (begin > end) std::swap(begin, end);
    return {SliceImage(whole.image, begin, end), whole.bytes.substr(begin, end - begin)};
  }
  Twin Written(int depth) {
    ImageBuilder builder;
    std::string bytes;
    uint64_t offset = 0;
    for (uint64_t i = Below(7); i > 0; --i) {
      const Twin part = Make(depth - 1);
      if (Below(2) == 0) offset = Below(bytes.size() + 5000);
      REQUIRE(builder.Write(offset, part.image).ok());
      if (!part.bytes.empty()) {
        if (bytes.size() < offset + part.bytes.size()) bytes.resize(offset + part.bytes.size());
        bytes.replace(offset, part.bytes.size(), part.bytes);
      }
      offset += part.bytes.size();
    }
    if (Below(4) == 0) {
      bytes.resize(bytes.size() + Below(3000));
      builder.Extend(bytes.size());
    }
    return {builder.Build(), bytes};
  }

  std::mt19937_64 random_;
};

TEST_CASE("random images equal their arrays of bytes") {
  int zero = 0;
  for (uint64_t seed = 0; seed < 1500; ++seed) {
    CAPTURE(seed);
    const Twin twin = TwinMaker(seed).Make(4);
    REQUIRE(twin.image->size() == twin.bytes.size());
    REQUIRE((Content(twin.image) == twin.bytes));
    const bool all_zero = twin.bytes.find_first_not_of('\0') == std::string::npos;
    REQUIRE(twin.image->zero() == all_zero);
    zero += all_zero;
  }
  CHECK(zero < 1000);
}

}  // namespace
}  // namespace blk
