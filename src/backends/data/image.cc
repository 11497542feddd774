#include "src/backends/data/image.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "src/core/error.h"
#include "src/core/zeroes.h"

namespace blk {

struct ImageMaker {
  static std::shared_ptr<Image> Make(Image::Kind kind, uint64_t size) {
    auto image = std::make_shared<Image>();
    image->kind_ = kind;
    image->size_ = size;
    return image;
  }
  static ImagePtr Bytes(std::shared_ptr<const std::string> storage, std::string_view bytes);
  static ImagePtr BytesSlice(const Image& image, uint64_t begin, uint64_t end) {
    return Bytes(image.storage_, image.bytes_.substr(begin, end - begin));
  }
  static ImagePtr Based(Image::Kind kind, ImagePtr base, uint64_t base_offset, uint64_t size) {
    auto image = Make(kind, size);
    image->base_ = std::move(base);
    image->base_offset_ = base_offset;
    return image;
  }
  static ImagePtr List(std::vector<Image::Piece> pieces, uint64_t size) {
    auto image = Make(Image::Kind::kList, size);
    image->pieces_ = std::move(pieces);
    return image;
  }
};

namespace {

// Images up to this size are kept as plain bytes, whatever they were made of: repeating and slicing
// them is then a copy and not a walk.
constexpr uint64_t kFlatBytesMax = 4096;

// Literals longer than this are not worth copying into the tail of a builder.
constexpr uint64_t kTailPieceBytesMax = 256;

absl::Status TooLarge() {
  return absl::OutOfRangeError("the image would be larger than 2^63-1 bytes");
}

// Calls emit(offset, bytes) for the non-zero images below; offsets ascend, zeroes in the bytes of a
// literal are passed on. Stops at the first failure.
template <typename Emit>
class Walker {
 public:
  explicit Walker(Emit emit) : emit_(std::move(emit)) {}

  // Bytes [begin, end) of the image go to `offset`.
  absl::Status Walk(const Image& image, uint64_t begin, uint64_t end, uint64_t offset) {
    if (begin == end) return absl::OkStatus();
    switch (image.kind()) {
      case Image::Kind::kZero:
        return absl::OkStatus();
      case Image::Kind::kBytes:
        return emit_(offset, image.bytes().substr(begin, end - begin));
      case Image::Kind::kSlice:
        return Walk(*image.base(), image.base_offset() + begin, image.base_offset() + end, offset);
      case Image::Kind::kList:
        return WalkList(image, begin, end, offset);
      case Image::Kind::kRepeat:
        return WalkRepeat(image, begin, end, offset);
    }
    return absl::OkStatus();
  }

 private:
  absl::Status WalkList(const Image& image, uint64_t begin, uint64_t end, uint64_t offset) {
    auto piece =
        std::partition_point(image.pieces().begin(), image.pieces().end(),
                             [&](const auto& p) { return p.offset + p.image->size() <= begin; });
    for (; piece != image.pieces().end() && piece->offset < end; ++piece) {
      const uint64_t from = std::max(begin, piece->offset);
      const uint64_t to = std::min(end, piece->offset + piece->image->size());
      BLK_RETURN_IF_ERROR(
          Walk(*piece->image, from - piece->offset, to - piece->offset, offset + (from - begin)));
    }
    return absl::OkStatus();
  }

  absl::Status WalkRepeat(const Image& image, uint64_t begin, uint64_t end, uint64_t offset) {
    const Image& unit = *image.base();
    if (unit.kind() == Image::Kind::kBytes && unit.size() <= kFlatBytesMax &&
        end - begin > 2 * unit.size()) {
      return WalkTiles(unit.bytes(), begin, end, offset);
    }
    while (begin < end) {
      const uint64_t from = begin % unit.size();
      const uint64_t length = std::min(unit.size() - from, end - begin);
      BLK_RETURN_IF_ERROR(Walk(unit, from, from + length, offset));
      begin += length;
      offset += length;
    }
    return absl::OkStatus();
  }

  // A short unit is first copied often enough to fill a page, so that a repeat runs at the speed of
  // memory and not of function calls.
  absl::Status WalkTiles(std::string_view unit, uint64_t begin, uint64_t end, uint64_t offset) {
    const uint64_t copies =
        std::min(kImagePageBytes / unit.size() + 1, (end - begin) / unit.size() + 2);
    std::string tile;
    tile.reserve(copies * unit.size());
    for (uint64_t i = 0; i < copies; ++i) tile.append(unit);
    while (begin < end) {
      const uint64_t from = begin % unit.size();
      const uint64_t length = std::min(tile.size() - from, end - begin);
      BLK_RETURN_IF_ERROR(emit_(offset, std::string_view(tile).substr(from, length)));
      begin += length;
      offset += length;
    }
    return absl::OkStatus();
  }

  Emit emit_;
};

// The bytes of a small image.
ImagePtr Flatten(const Image& image) {
  std::string flat(image.size(), '\0');
  Walker walker([&](uint64_t offset, std::string_view bytes) {
    flat.replace(offset, bytes.size(), bytes);
    return absl::OkStatus();
  });
  walker.Walk(image, 0, image.size(), 0).IgnoreError();  // The lambda cannot fail.
  return BytesImage(std::move(flat));
}

ImagePtr MakeRepeat(const ImagePtr& unit, uint64_t size) {
  auto image = ImageMaker::Based(Image::Kind::kRepeat, unit, 0, size);
  return size <= kFlatBytesMax ? Flatten(*image) : image;
}

// A slice of a list shares the list when it holds a whole piece, which proves it non-zero.
// Otherwise at most two partial pieces are in it and they are sliced themselves, to find out
// whether they are.
ImagePtr SliceList(const ImagePtr& image, uint64_t begin, uint64_t end) {
  const auto& pieces = image->pieces();
  auto piece = std::partition_point(pieces.begin(), pieces.end(), [&](const auto& p) {
    return p.offset + p.image->size() <= begin;
  });
  const auto second_end = piece + std::min<ptrdiff_t>(2, pieces.end() - piece);
  for (auto whole = piece; whole != second_end; ++whole) {
    if (whole->offset >= begin && whole->offset + whole->image->size() <= end) {
      auto slice = ImageMaker::Based(Image::Kind::kSlice, image, begin, end - begin);
      return slice->size() <= kFlatBytesMax ? Flatten(*slice) : slice;
    }
  }
  ImageBuilder builder;
  builder.Extend(end - begin);
  for (; piece != pieces.end() && piece->offset < end; ++piece) {
    const uint64_t from = std::max(begin, piece->offset);
    const uint64_t to = std::min(end, piece->offset + piece->image->size());
    // Cannot fail: the slice is no larger than the image it is taken from.
    builder.Write(from - begin, SliceImage(piece->image, from - piece->offset, to - piece->offset))
        .IgnoreError();
  }
  return builder.Build();
}

// At most three parts: the end of a copy, whole copies, the beginning of one.
ImagePtr SliceRepeat(const ImagePtr& image, uint64_t begin, uint64_t end) {
  const ImagePtr& unit = image->base();
  const uint64_t unit_size = unit->size();
  const uint64_t first = begin / unit_size * unit_size;
  if (end - first <= unit_size) return SliceImage(unit, begin - first, end - first);
  const uint64_t head_end = begin == first ? begin : first + unit_size;
  const uint64_t tail_begin = end / unit_size * unit_size;
  ImageBuilder builder;
  builder.Write(0, SliceImage(unit, begin - first, begin - first + (head_end - begin)))
      .IgnoreError();  // None of these can fail: the slice fits where the image did.
  if (tail_begin > head_end) {
    const uint64_t whole = tail_begin - head_end;
    builder.Write(head_end - begin, whole == unit_size ? unit : MakeRepeat(unit, whole))
        .IgnoreError();
  }
  builder.Write(tail_begin - begin, SliceImage(unit, 0, end - tail_begin)).IgnoreError();
  return builder.Build();
}

}  // namespace

ImagePtr ImageMaker::Bytes(std::shared_ptr<const std::string> storage, std::string_view bytes) {
  if (IsZero(bytes.data(), bytes.size())) return ZeroImage(bytes.size());
  auto image = Make(Image::Kind::kBytes, bytes.size());
  image->storage_ = std::move(storage);
  image->bytes_ = bytes;
  return image;
}

ImagePtr ZeroImage(uint64_t size) { return ImageMaker::Make(Image::Kind::kZero, size); }

ImagePtr BytesImage(std::string bytes) {
  auto storage = std::make_shared<const std::string>(std::move(bytes));
  const std::string_view view = *storage;
  return ImageMaker::Bytes(std::move(storage), view);
}

absl::StatusOr<ImagePtr> RepeatImage(const ImagePtr& image, uint64_t count) {
  if (count == 0 || image->size() == 0) return ZeroImage(0);
  if (count == 1) return image;
  if (image->size() > kImageSizeMax / count) return TooLarge();
  const uint64_t size = image->size() * count;
  if (image->zero()) return ZeroImage(size);
  return MakeRepeat(image->kind() == Image::Kind::kRepeat ? image->base() : image, size);
}

ImagePtr SliceImage(const ImagePtr& image, uint64_t begin, uint64_t end) {
  if (begin == 0 && end == image->size()) return image;
  if (begin == end) return ZeroImage(0);
  switch (image->kind()) {
    case Image::Kind::kZero:
      return ZeroImage(end - begin);
    case Image::Kind::kBytes:
      return ImageMaker::BytesSlice(*image, begin, end);
    case Image::Kind::kSlice:
      return SliceImage(image->base(), image->base_offset() + begin, image->base_offset() + end);
    case Image::Kind::kList:
      return SliceList(image, begin, end);
    case Image::Kind::kRepeat:
      return SliceRepeat(image, begin, end);
  }
  return ZeroImage(end - begin);
}

absl::Status ImageBuilder::Write(uint64_t offset, const ImagePtr& image) {
  const uint64_t length = image->size();
  if (length == 0) return absl::OkStatus();
  if (offset > kImageSizeMax || length > kImageSizeMax - offset) return TooLarge();
  if (Append(offset, *image)) return absl::OkStatus();
  FlushTail();
  Clear(offset, offset + length);
  if (!image->zero()) parts_.emplace(offset, Part{image, 0, length});
  Extend(offset + length);
  return absl::OkStatus();
}

void ImageBuilder::Extend(uint64_t size) { size_ = std::max(size_, size); }

// True when the image was a short literal at the very end of what is there, and was gathered.
bool ImageBuilder::Append(uint64_t offset, const Image& image) {
  const bool literal = image.kind() == Image::Kind::kBytes || image.zero();
  if (!literal || image.size() > kTailPieceBytesMax || offset != size_) return false;
  if (tail_offset_ + tail_.size() != offset || tail_.size() >= kImagePageBytes) FlushTail();
  if (tail_.empty()) {
    if (image.zero()) return false;
    tail_offset_ = offset;
  }
  image.zero() ? tail_.append(image.size(), '\0') : tail_.append(image.bytes());
  Extend(offset + image.size());
  return true;
}

void ImageBuilder::FlushTail() {
  if (tail_.empty()) return;
  const uint64_t length = tail_.size();
  parts_.insert_or_assign(tail_offset_, Part{BytesImage(std::exchange(tail_, {})), 0, length});
}

// Takes [begin, end) out of the parts; one that covers both ends is left in two.
void ImageBuilder::Clear(uint64_t begin, uint64_t end) {
  auto next = parts_.lower_bound(begin);
  if (next != parts_.begin()) {
    auto& [offset, part] = *std::prev(next);
    const uint64_t part_end = offset + part.length;
    if (part_end > begin) {
      if (part_end > end) {
        parts_.emplace(end, Part{part.image, part.skip + (end - offset), part_end - end});
      }
      part.length = begin - offset;
    }
  }
  while (next != parts_.end() && next->first < end) {
    const auto [offset, part] = *next;
    next = parts_.erase(next);
    if (offset + part.length > end) {
      parts_.emplace(end, Part{part.image, part.skip + (end - offset), offset + part.length - end});
      break;
    }
  }
}

ImagePtr ImageBuilder::Build() {
  FlushTail();
  std::vector<Image::Piece> pieces;
  pieces.reserve(parts_.size());
  for (auto& [offset, part] : parts_) {
    ImagePtr image = SliceImage(part.image, part.skip, part.skip + part.length);
    if (!image->zero()) pieces.push_back({offset, std::move(image)});
  }
  parts_.clear();
  if (pieces.empty()) return ZeroImage(size_);
  if (pieces.size() == 1 && pieces[0].image->size() == size_) return std::move(pieces[0].image);
  ImagePtr list = ImageMaker::List(std::move(pieces), size_);
  return size_ <= kFlatBytesMax ? Flatten(*list) : list;
}

namespace {

// Gathers what a walk emits into pages and counts them.
class PageWriter {
 public:
  PageWriter(uint64_t size, uint64_t stored_bytes_max, DataSink& sink)
      : size_(size), stored_bytes_max_(stored_bytes_max), sink_(sink), page_(kImagePageBytes, 0) {}

  absl::Status Write(uint64_t offset, std::string_view bytes) {
    while (!bytes.empty()) {
      const uint64_t at = offset % kImagePageBytes;
      if (offset - at != page_offset_) {
        BLK_RETURN_IF_ERROR(Flush());
        page_offset_ = offset - at;
      }
      const uint64_t length = std::min<uint64_t>(bytes.size(), kImagePageBytes - at);
      std::memcpy(page_.data() + at, bytes.data(), length);
      written_ = true;
      bytes.remove_prefix(length);
      offset += length;
    }
    return absl::OkStatus();
  }

  absl::Status Flush() {
    if (!std::exchange(written_, false)) return absl::OkStatus();
    if (IsZero(page_.data(), page_.size())) return absl::OkStatus();
    stored_bytes_ += kImagePageBytes;
    if (stored_bytes_ > stored_bytes_max_) return Full();
    const uint64_t length = std::min(kImagePageBytes, size_ - page_offset_);
    BLK_RETURN_IF_ERROR(sink_.Put(page_offset_, std::string_view(page_).substr(0, length)));
    std::memset(page_.data(), 0, page_.size());
    return absl::OkStatus();
  }

 private:
  absl::Status Full() const {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the data fills more than ", stored_bytes_max_, " bytes of memory (reached at byte ",
        page_offset_, " of the image): use fewer repeats, or cut it with a slice such as [:1M]"));
  }

  const uint64_t size_;
  const uint64_t stored_bytes_max_;
  DataSink& sink_;
  std::string page_;
  uint64_t page_offset_ = 0;
  bool written_ = false;
  uint64_t stored_bytes_ = 0;
};

}  // namespace

absl::Status RenderImage(const Image& image, uint64_t stored_bytes_max, DataSink& sink) {
  PageWriter writer(image.size(), stored_bytes_max, sink);
  Walker walker(
      [&](uint64_t offset, std::string_view bytes) { return writer.Write(offset, bytes); });
  BLK_RETURN_IF_ERROR(walker.Walk(image, 0, image.size(), 0));
  return writer.Flush();
}

}  // namespace blk
