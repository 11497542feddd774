// Any text through the parser of data expressions, and what it accepts through the evaluator and
// the renderer, with bounds that keep one input quick. What came of it is checked: cut by need,
// the image must begin with the same bytes. The tree is printed as well.
//
// Fuzzes: src/backends/data/parse
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "src/backends/data/describe.h"
#include "src/backends/data/evaluate.h"
#include "src/backends/data/image.h"
#include "src/backends/data/parse.h"
#include "src/core/error.h"

namespace blk {
namespace {

constexpr uint64_t kStoredBytesMax = 1 << 20;
constexpr uint64_t kNeed = 5000;

// As much output as the length of its name says; a name with an 'e' never ends.
class FuzzInput : public DataInput {
 public:
  explicit FuzzInput(std::string name)
      : left_(name.find('e') == std::string::npos ? name.size() : SIZE_MAX) {}
  absl::StatusOr<size_t> Read(std::span<char> buffer) override {
    const size_t count = std::min(left_, buffer.size());
    std::fill_n(buffer.begin(), count, 'x');
    left_ -= count;
    return count;
  }
  absl::Status Finish() override { return absl::OkStatus(); }

 private:
  size_t left_;
};

// Keeps the first kNeed bytes, and insists on ascending offsets inside the image.
class FuzzSink : public DataSink {
 public:
  explicit FuzzSink(uint64_t size) : size_(size), start_(std::min(size, kNeed), '\0') {}
  absl::Status Put(uint64_t offset, std::string_view bytes) override {
    BLK_CHECK(offset >= end_ && !bytes.empty() && bytes.size() <= size_ - offset);
    end_ = offset + bytes.size();
    if (offset < start_.size()) {
      const uint64_t length = std::min<uint64_t>(bytes.size(), start_.size() - offset);
      start_.replace(offset, length, bytes.substr(0, length));
    }
    return absl::OkStatus();
  }
  const std::string& start() const { return start_; }

 private:
  const uint64_t size_;
  uint64_t end_ = 0;
  std::string start_;
};

std::optional<std::string> Start(const Image& image) {
  FuzzSink sink(image.size());
  if (!RenderImage(image, kStoredBytesMax, sink).ok()) return std::nullopt;
  return sink.start();
}

void TryText(std::string_view text) {
  auto variables = [&](std::string_view name) -> std::optional<std::string> {
    if (name == "all") return std::string(text);
    if (name == "half") return std::string(text.substr(text.size() / 2));
    return std::nullopt;
  };
  auto program = ParseData(text, variables, {.text_bytes_max = 100'000, .expressions_max = 20'000});
  if (!program.ok()) {
    BLK_CHECK(!program.status().message().empty());
    return;
  }
  BLK_CHECK(!DescribeData(*program).empty());
  auto open = [](std::string name) -> absl::StatusOr<std::unique_ptr<DataInput>> {
    return std::make_unique<FuzzInput>(std::move(name));
  };
  DataOptions options{.open_file = open,
                      .open_script = open,
                      .input_bytes_max = 1 << 20,
                      .held_bytes_max = 1 << 20,
                      .steps_max = 20'000};
  auto whole = EvaluateData(*program, options);
  options.need = kNeed;
  auto part = EvaluateData(*program, options);
  if (!whole.ok() || !part.ok()) return;
  BLK_CHECK((*part)->size() >= std::min((*whole)->size(), kNeed));
  const auto whole_start = Start(**whole);
  const auto part_start = Start(*SliceImage(*part, 0, std::min((*part)->size(), kNeed)));
  if (whole_start && part_start) BLK_CHECK(*whole_start == *part_start);
}

}  // namespace
}  // namespace blk

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  blk::TryText({reinterpret_cast<const char*>(data), size});
  return 0;
}
