#include "src/backends/data/evaluate.h"

#include <algorithm>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "src/core/error.h"

namespace blk {
namespace {

using Kind = DataExpression::Kind;

// Inputs are read in pieces of this size. A piece of zeroes costs nothing afterwards.
constexpr uint64_t kReadBytes = 64 << 10;

uint64_t SaturatingAdd(uint64_t a, uint64_t b) { return a > kDataEnd - b ? kDataEnd : a + b; }

// What has been read of one file or script so far. It is opened once however often it is used, so
// that every use sees the same bytes.
struct InputState {
  std::unique_ptr<DataInput> input;  // Null before the first use and after the end.
  std::vector<ImagePtr> pieces;
  uint64_t size = 0;
  bool ended = false;
};

ImagePtr Join(const InputState& state) {
  ImageBuilder builder;
  uint64_t offset = 0;
  for (const ImagePtr& piece : state.pieces) {
    builder.Write(offset, piece)
        .IgnoreError();  // Fits: the bound on inputs is below that of disks.
    offset += piece->size();
  }
  return builder.Build();
}

// The contract of every function here: the returned image is exact if it is smaller than `need`;
// otherwise its first `need` bytes are right and it may have been cut anywhere behind them.
class Evaluator {
 public:
  explicit Evaluator(const DataOptions& options) : options_(options) {}

  absl::StatusOr<ImagePtr> Evaluate(const DataExpression& expression, uint64_t need);

 private:
  // A finished evaluation of a shared expression.
  struct Memo {
    uint64_t need;
    ImagePtr image;
  };

  absl::StatusOr<ImagePtr> EvaluateKind(const DataExpression& expression, uint64_t need);
  absl::StatusOr<ImagePtr> EvaluateList(const DataExpression& list, uint64_t need);
  absl::StatusOr<ImagePtr> EvaluateRepeat(const DataExpression& repeat, uint64_t need);
  absl::StatusOr<ImagePtr> EvaluateSlice(const DataExpression& slice, uint64_t need);
  absl::StatusOr<ImagePtr> EvaluateFileRange(const DataExpression& slice, uint64_t end);
  absl::StatusOr<ImagePtr> EvaluateInput(const DataExpression& expression, uint64_t need);

  absl::StatusOr<std::unique_ptr<DataInput>> Open(const DataExpression& expression);
  absl::Status Read(const DataExpression& expression, uint64_t need, InputState& state);
  absl::Status CountInput(const DataExpression& expression, const Image& piece);
  absl::StatusOr<uint64_t> Move(const DataExpression& move, uint64_t offset);
  // The same failure, errno included, with the place in the expression.
  absl::Status At(const DataExpression& expression, const absl::Status& status,
                  std::string_view advice) const {
    absl::Status here =
        DataError(status.code(), *expression.source, expression.position, status.message(), advice);
    status.ForEachPayload(
        [&](std::string_view type, const absl::Cord& value) { here.SetPayload(type, value); });
    return here;
  }
  absl::Status Fail(const DataExpression& expression, std::string_view what,
                    std::string_view advice) const {
    return At(expression, absl::InvalidArgumentError(what), advice);
  }

  const DataOptions& options_;
  std::unordered_map<const DataExpression*, Memo> memos_;
  std::unordered_map<const DataExpression*, InputState> inputs_;
  uint64_t steps_ = 0;
  uint64_t input_bytes_ = 0;
  uint64_t held_bytes_ = 0;
};

absl::StatusOr<ImagePtr> Evaluator::Evaluate(const DataExpression& expression, uint64_t need) {
  if (++steps_ > options_.steps_max) {
    return Fail(expression, absl::StrCat("more than ", options_.steps_max, " steps to evaluate"),
                "use fewer names inside each other");
  }
  const bool remember = expression.shared && !expression.children.empty();
  if (remember) {
    if (auto memo = memos_.find(&expression);
        memo != memos_.end() &&
        (memo->second.need >= need || memo->second.image->size() < memo->second.need)) {
      return memo->second.image;
    }
  }
  auto image = EvaluateKind(expression, need);
  if (image.ok() && remember) memos_.insert_or_assign(&expression, Memo{need, *image});
  return image;
}

absl::StatusOr<ImagePtr> Evaluator::EvaluateKind(const DataExpression& expression, uint64_t need) {
  switch (expression.kind) {
    case Kind::kBytes:
      return BytesImage(expression.text);
    case Kind::kFile:
    case Kind::kScript:
      return EvaluateInput(expression, need);
    case Kind::kRepeat:
      return EvaluateRepeat(expression, need);
    case Kind::kSlice:
      return EvaluateSlice(expression, need);
    default:
      return EvaluateList(expression, need);  // Moves are handled inside their list.
  }
}

// Where the next byte goes after a move.
absl::StatusOr<uint64_t> Evaluator::Move(const DataExpression& move, uint64_t offset) {
  const uint64_t number = move.number;
  switch (move.kind) {
    case Kind::kSeek:
      offset = number;
      break;
    case Kind::kForward:
      offset = SaturatingAdd(offset, number);
      break;
    case Kind::kBack:
      if (number > offset) {
        return Fail(move,
                    absl::StrCat("data parameter @-", number,
                                 " must not be larger than the current offset ", offset),
                    "move back by less");
      }
      offset -= number;
      break;
    default:
      offset = SaturatingAdd(offset, number - 1) & ~(number - 1);
      break;
  }
  if (offset > kImageSizeMax) {
    return Fail(move, "the image would be larger than 2^63-1 bytes", "move to a smaller offset");
  }
  return offset;
}

// An item that is cut at `need` has an unknown length, and so has the offset behind it: unknown,
// but behind everything that matters. Only @-N could bring it back, so items before one are not
// cut; an absolute @OFFSET makes it known again.
absl::StatusOr<ImagePtr> Evaluator::EvaluateList(const DataExpression& list, uint64_t need) {
  const auto& items = list.children;
  std::vector<bool> exact(need == kDataEnd ? 0 : items.size());
  bool back_ahead = false;
  for (size_t i = exact.size(); i-- > 0;) {
    exact[i] = back_ahead;
    if (items[i]->kind == Kind::kBack) back_ahead = true;
    if (items[i]->kind == Kind::kSeek) back_ahead = false;
  }
  ImageBuilder builder;
  uint64_t offset = 0;
  bool known = true;
  for (size_t i = 0; i < items.size(); ++i) {
    const DataExpression& item = *items[i];
    if (item.kind == Kind::kSeek) known = true;
    if (!known) continue;
    if (item.IsMove()) {
      BLK_ASSIGN_OR_RETURN(offset, Move(item, offset));
      builder.Extend(offset);
      continue;
    }
    uint64_t item_need = kDataEnd;
    if (need != kDataEnd && !exact[i]) {
      known = offset < need;
      if (!known) continue;
      item_need = need - offset;
    }
    BLK_ASSIGN_OR_RETURN(auto image, Evaluate(item, item_need));
    if (item_need != kDataEnd && image->size() >= item_need) {
      image = SliceImage(image, 0, item_need);
      known = false;
    }
    if (auto status = builder.Write(offset, image); !status.ok()) {
      return At(item, status, "use a smaller offset, or fewer or smaller repeats");
    }
    offset += image->size();
  }
  return builder.Build();
}

absl::StatusOr<ImagePtr> Evaluator::EvaluateRepeat(const DataExpression& repeat, uint64_t need) {
  uint64_t count = repeat.number;
  if (count == 0) return ZeroImage(0);
  BLK_ASSIGN_OR_RETURN(auto image, Evaluate(*repeat.children[0], need));
  const uint64_t size = image->size();
  if (need != kDataEnd && size > 0) {
    if (size >= need) return image;
    count = std::min(count, (need - 1) / size + 1);
  }
  auto repeated = RepeatImage(image, count);
  if (!repeated.ok()) return At(repeat, repeated.status(), "use fewer repeats, or slice it: [:N]");
  return repeated;
}

absl::StatusOr<ImagePtr> Evaluator::EvaluateSlice(const DataExpression& slice, uint64_t need) {
  const DataExpression& child = *slice.children[0];
  const uint64_t begin = slice.number;
  const uint64_t end = std::min(slice.end, SaturatingAdd(begin, need));
  if (begin == slice.end) return ZeroImage(0);  // of whatever it is
  if (child.kind == Kind::kFile && begin > 0) return EvaluateFileRange(slice, end);
  BLK_ASSIGN_OR_RETURN(auto image, Evaluate(child, end));
  const uint64_t size = image->size();
  // Files and scripts may end early. Of everything else a slice must be there.
  const bool may_be_short = child.kind == Kind::kFile || child.kind == Kind::kScript;
  if (!may_be_short && (size < begin || (slice.end != kDataEnd && size < end))) {
    return Fail(slice, "[N:M] does not describe a valid slice",
                absl::StrCat("the expression is ", size, " bytes long"));
  }
  return SliceImage(image, std::min(begin, size), std::min(end, size));
}

// The far part of a large file is sought, not read up to, when the file can do that.
absl::StatusOr<ImagePtr> Evaluator::EvaluateFileRange(const DataExpression& slice, uint64_t end) {
  const DataExpression& file = *slice.children[0];
  InputState state;
  BLK_ASSIGN_OR_RETURN(state.input, Open(file));
  if (state.input->Skip(slice.number)) {
    BLK_RETURN_IF_ERROR(Read(file, end == kDataEnd ? end : end - slice.number, state));
    return Join(state);
  }
  state.input.reset();
  BLK_ASSIGN_OR_RETURN(auto image, EvaluateInput(file, end));
  const uint64_t size = image->size();
  return SliceImage(image, std::min(slice.number, size), std::min(end, size));
}

absl::StatusOr<std::unique_ptr<DataInput>> Evaluator::Open(const DataExpression& expression) {
  const bool is_file = expression.kind == Kind::kFile;
  const DataOptions::Open& open = is_file ? options_.open_file : options_.open_script;
  if (!open) {
    return Fail(expression, is_file ? "<FILE is not allowed here" : "<(SCRIPT) is not allowed here",
                "write the data itself");
  }
  auto input = open(expression.text);
  if (!input.ok()) {
    return At(expression, input.status(),
              is_file ? "the name goes up to the next space, or one of *[)" : "check the script");
  }
  return input;
}

absl::StatusOr<ImagePtr> Evaluator::EvaluateInput(const DataExpression& expression, uint64_t need) {
  if (need == 0) return ZeroImage(0);
  InputState& state = inputs_[&expression];
  if (!state.input && !state.ended) {
    BLK_ASSIGN_OR_RETURN(state.input, Open(expression));
  }
  BLK_RETURN_IF_ERROR(Read(expression, need, state));
  ImagePtr image = Join(state);
  if (!expression.shared) inputs_.erase(&expression);  // Ends the script: nobody will ask again.
  return image;
}

// Reads on until `need` bytes are there, or the end.
absl::Status Evaluator::Read(const DataExpression& expression, uint64_t need, InputState& state) {
  std::string buffer;
  while (!state.ended && state.size < need) {
    const uint64_t wanted = std::min(kReadBytes, need - state.size);
    buffer.resize(wanted);
    uint64_t filled = 0;
    while (filled < wanted && !state.ended) {
      auto count = state.input->Read(std::span(&buffer[filled], wanted - filled));
      if (!count.ok()) return At(expression, count.status(), "check what is read here");
      state.ended = *count == 0;
      filled += *count;
    }
    buffer.resize(filled);
    state.pieces.push_back(BytesImage(std::exchange(buffer, {})));
    state.size += filled;
    BLK_RETURN_IF_ERROR(CountInput(expression, *state.pieces.back()));
  }
  if (!state.ended || !state.input) return absl::OkStatus();
  absl::Status status = std::exchange(state.input, nullptr)->Finish();
  return status.ok() ? status : At(expression, status, "check the script, or what it needs");
}

// Zeroes take time but no memory, so there are two bounds.
absl::Status Evaluator::CountInput(const DataExpression& expression, const Image& piece) {
  input_bytes_ += piece.size();
  if (!piece.zero()) held_bytes_ += piece.size();
  const bool too_much = input_bytes_ > options_.input_bytes_max;
  if (!too_much && held_bytes_ <= options_.held_bytes_max) return absl::OkStatus();
  return At(expression,
            absl::ResourceExhaustedError(absl::StrCat(
                "files and scripts give more than ",
                too_much ? options_.input_bytes_max : options_.held_bytes_max, " bytes")),
            "cut what does not end with a slice such as [:1M]");
}

}  // namespace

absl::StatusOr<ImagePtr> EvaluateData(const DataProgram& program, const DataOptions& options) {
  return Evaluator(options).Evaluate(*program.root, options.need);
}

}  // namespace blk
