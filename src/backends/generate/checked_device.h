#pragma once
// A device whose content is a function of the offset: reads make it, writes are compared with it.
//
// Purpose: random, sparse-random and pattern hold no data, so a write cannot change them; it is
//   compared instead, and a difference is EIO. A disk can so be copied onto itself, with its own
//   parameters, to test whatever did the copying. Zero and trim are writes of zeroes: fine where
//   the content is zero, EIO elsewhere.
// Threads: Content is constant, so any number of calls may run on any threads.
//
// Content has, for ranges inside the disk (see words.h and sparse_layout.h):
//   void Fill(uint64_t offset, std::span<char> out) const;
//   size_t Compare(uint64_t offset, std::span<const char> data) const;  // the first that differs
//   uint64_t FirstNonZero(uint64_t offset, uint64_t length) const;      // offset + length if none
#include <cerrno>
#include <cstdint>
#include <span>
#include <utility>

#include "absl/strings/str_format.h"
#include "src/backends/generate/words.h"
#include "src/core/device.h"

namespace blk {

template <typename Content>
class CheckedDevice : public Device {
 public:
  CheckedDevice(Facts facts, Content content)
      : Device(std::move(facts)), content_(std::move(content)) {}

 protected:
  const Content& content() const { return content_; }

  Task<absl::Status> DoRead(const Call&, uint64_t offset, std::span<char> into) override {
    content_.Fill(offset, into);
    return absl::OkStatus();
  }

  Task<absl::Status> DoWrite(const Call&, uint64_t offset, std::span<const char> from) override {
    const size_t at = content_.Compare(offset, from);
    if (at == generate::kEqual) return absl::OkStatus();
    return Mismatch(offset + at, from[at]);
  }

  Task<absl::Status> DoZero(const Call&, uint64_t offset, uint64_t length) override {
    const uint64_t at = content_.FirstNonZero(offset, length);
    if (at == offset + length) return absl::OkStatus();
    return Mismatch(at, 0);
  }

  Task<absl::Status> DoTrim(const Call& call, uint64_t offset, uint64_t length) override {
    return CheckedDevice::DoZero(call, offset, length);
  }

 private:
  absl::Status Mismatch(uint64_t offset, char written) const {
    char expected;
    content_.Fill(offset, {&expected, 1});
    return ErrnoErrorAsIs(
        EIO, absl::StrFormat("the byte written at offset %d is 0x%02x, but this disk has 0x%02x "
                             "there: writes are compared, and the copy is not equal",
                             offset, static_cast<unsigned char>(written),
                             static_cast<unsigned char>(expected)));
  }

  const Content content_;
};

}  // namespace blk
