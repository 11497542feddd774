// The value of a data expression: an immutable disk image that costs memory for what was written
// down, not for what it stands for. `0*1E` is one node, `("ab"*1E)[:10]` is ten bytes.
//
// Owner: images are shared and never change, so parts of one are parts of another for free.
// Threads: an image may be read by any thread; a builder belongs to one.
//
// The invariant that keeps work bounded: an image that is all zeroes IS a zero image. Every other
// image holds at least one non-zero byte, so a walk never visits a subtree for nothing and its cost
// is that of the bytes it emits.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/core/limits.h"

namespace blk {

// No disk is larger than 2^63-1 bytes.
inline constexpr uint64_t kImageSizeMax = limits::kDiskBytesMax;

// The sparse stores of blk and nbdkit work in pages of this size; images are emitted page by page.
inline constexpr uint64_t kImagePageBytes = 32768;

class Image;
using ImagePtr = std::shared_ptr<const Image>;

// A node. Made only by the functions below, which keep the invariant.
class Image {
 public:
  enum class Kind { kZero, kBytes, kRepeat, kList, kSlice };
  struct Piece {
    uint64_t offset;
    ImagePtr image;
  };

  Kind kind() const { return kind_; }
  uint64_t size() const { return size_; }
  bool zero() const { return kind_ == Kind::kZero; }

  // kBytes: the content; lives as long as the image.
  std::string_view bytes() const { return bytes_; }
  // kRepeat: what is repeated to fill size(). kSlice: a list, seen from base_offset() on.
  const ImagePtr& base() const { return base_; }
  uint64_t base_offset() const { return base_offset_; }
  // kList: ascending, without overlaps, none of them zero; what lies between them is zero.
  const std::vector<Piece>& pieces() const { return pieces_; }

 private:
  friend struct ImageMaker;
  Kind kind_ = Kind::kZero;
  uint64_t size_ = 0;
  uint64_t base_offset_ = 0;
  ImagePtr base_;
  std::shared_ptr<const std::string> storage_;
  std::string_view bytes_;
  std::vector<Piece> pieces_;
};

// `size` bytes of zero. size <= kImageSizeMax.
ImagePtr ZeroImage(uint64_t size);

// A copy of nothing: takes the bytes over.
ImagePtr BytesImage(std::string bytes);

// `count` copies one after another. kOutOfRange when that is larger than a disk can be.
absl::StatusOr<ImagePtr> RepeatImage(const ImagePtr& image, uint64_t count);

// Bytes [begin, end) of the image; begin <= end <= image->size().
ImagePtr SliceImage(const ImagePtr& image, uint64_t begin, uint64_t end);

// Puts images at offsets; a later one hides what it covers of the earlier ones, its zeroes
// included.
class ImageBuilder {
 public:
  // kOutOfRange when the image would end beyond what a disk can be.
  absl::Status Write(uint64_t offset, const ImagePtr& image);
  // Makes the image at least `size` bytes long. size <= kImageSizeMax.
  void Extend(uint64_t size);
  uint64_t size() const { return size_; }
  // The finished image. The builder is spent.
  ImagePtr Build();

 private:
  // Part of an image: its bytes from skip on, length of them.
  struct Part {
    ImagePtr image;
    uint64_t skip;
    uint64_t length;
  };
  bool Append(uint64_t offset, const Image& image);
  void FlushTail();
  void Clear(uint64_t begin, uint64_t end);

  std::map<uint64_t, Part> parts_;
  // Literal bytes that follow each other are gathered here, at tail_offset_, before they become a
  // part.
  std::string tail_;
  uint64_t tail_offset_ = 0;
  uint64_t size_ = 0;
};

// Takes the content of an image in ascending order. Bytes never given are zero.
class DataSink {
 public:
  virtual ~DataSink() = default;
  // `bytes` lives only during the call. A failure stops the rendering and is returned by it.
  virtual absl::Status Put(uint64_t offset, std::string_view bytes) = 0;
};

// Gives each page that is not all zero to the sink, whole (cut at the end of the image), so that
// the others become holes and a map has the grain of nbdkit's. Stops with kResourceExhausted when
// more than `stored_bytes_max` bytes of pages are needed.
absl::Status RenderImage(const Image& image, uint64_t stored_bytes_max, DataSink& sink);

}  // namespace blk
