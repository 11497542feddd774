#pragma once
// A byte array as a Device, for tests: the slow oracle that others are compared with, and something
// simple to stand behind a session. Can be told to suspend in every operation.
#include <cstring>
#include <string>

#include "src/core/device.h"
#include "src/core/loop.h"

namespace blk::test {

inline Facts ArrayFacts(uint64_t size) {
  Facts facts;
  facts.size = size;
  facts.trim = facts.zero = facts.fast_zero = facts.extents = facts.multi_conn = true;
  facts.cache = Support::kNative;
  facts.fua = Support::kNative;
  return facts;
}

class ArrayDevice : public Device {
 public:
  explicit ArrayDevice(uint64_t size) : ArrayDevice(ArrayFacts(size)) {}
  explicit ArrayDevice(Facts facts)
      : Device(facts), bytes(facts.size, '\0'), holes(facts.size, true) {}

  bool suspend = false;      // every operation suspends once
  int flushes = 0, fua = 0;  // how often
  absl::Status failure;      // of every read and write, if not OK
  std::string bytes;
  std::vector<bool> holes;

 protected:
  Task<absl::Status> DoRead(const Call&, uint64_t offset, std::span<char> into) override {
    if (suspend) co_await Yield();
    BLK_CO_RETURN_IF_ERROR(failure);
    std::memcpy(into.data(), bytes.data() + offset, into.size());
    co_return absl::OkStatus();
  }
  Task<absl::Status> DoWrite(const Call& call, uint64_t offset,
                             std::span<const char> from) override {
    if (suspend) co_await Yield();
    BLK_CO_RETURN_IF_ERROR(failure);
    if (call.flags & kFua) ++fua;
    std::memcpy(bytes.data() + offset, from.data(), from.size());
    std::fill_n(holes.begin() + offset, from.size(), false);
    co_return absl::OkStatus();
  }
  Task<absl::Status> DoFlush(const Call&) override {
    if (suspend) co_await Yield();
    ++flushes;
    co_return absl::OkStatus();
  }
  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override {
    return DoZero(call, offset, length);
  }
  Task<absl::Status> DoZero(const Call& call, uint64_t offset, uint64_t length) override {
    if (suspend) co_await Yield();
    std::memset(bytes.data() + offset, 0, length);
    std::fill_n(holes.begin() + offset, length, !(call.flags & kNoHole));
    co_return absl::OkStatus();
  }
  Task<absl::Status> DoExtents(const Call& call, std::string_view, ExtentList* list) override {
    if (suspend) co_await Yield();
    for (uint64_t at = list->next(); !list->full(); ++at) {
      if ((call.flags & kRequestOne) && list->size() == 1 &&
          (list->extents()[0].flags == kExtentHoleZero) != holes[at])
        break;
      list->Append(1, holes[at] ? kExtentHoleZero : kExtentData);
    }
    co_return absl::OkStatus();
  }
};

// Holds these bytes, all of them data.
inline std::shared_ptr<ArrayDevice> ArrayOf(std::string bytes) {
  auto array = std::make_shared<ArrayDevice>(bytes.size());
  array->bytes = std::move(bytes);
  array->holes.assign(array->bytes.size(), false);
  array->suspend = true;
  return array;
}

// The same bytes each time, as good as random.
inline std::string Noise(size_t bytes) {
  std::string text(bytes, '\0');
  uint64_t random = 12345;
  for (char& c : text) c = static_cast<char>((random = random * 6364136223846793005 + 1) >> 40);
  return text;
}

}  // namespace blk::test
