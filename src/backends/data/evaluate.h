// From the tree of a data expression to the image it describes.
//
// Evaluation is driven by need: a slice, or the size of the disk, tells how many bytes matter, and
// files and scripts are read only as far. `<( while :; do echo x; done )[:10]` reads ten bytes,
// once.
//
// Owner: the backend, while it gets ready. Threads: runs on the caller's; the functions in the
// options are called from there and may block.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "src/backends/data/image.h"
#include "src/backends/data/parse.h"

namespace blk {

// Something that bytes are read from, once and in order: a file, or the output of a script.
// Destroying it closes it; a script that still runs is ended.
class DataInput {
 public:
  virtual ~DataInput() = default;
  // Fills the front of `buffer` (never empty) with one or more bytes and tells how many; 0 at the
  // end.
  virtual absl::StatusOr<size_t> Read(std::span<char> buffer) = 0;
  // Called once, when Read has returned 0. For a script: waits for its end and says how it failed.
  virtual absl::Status Finish() = 0;
  // Moves over `bytes` that are not needed. False: cannot, and did not move; they must be read.
  virtual bool Skip(uint64_t bytes) { return bytes == 0; }
};

struct DataOptions {
  using Open = std::function<absl::StatusOr<std::unique_ptr<DataInput>>(std::string)>;
  Open open_file;    // Given the name after <.
  Open open_script;  // Given what is between <( and ).

  // Only so many bytes of the image matter; the image may end there or later.
  uint64_t need = kDataEnd;

  // Bounds: what files and scripts give together, what of it must be held in memory because it is
  // not zero, and steps of the evaluation (a small expression with many names inside each other can
  // stand for any number of them).
  uint64_t input_bytes_max = uint64_t{1} << 42;
  uint64_t held_bytes_max = uint64_t{8} << 30;
  uint64_t steps_max = 50'000'000;
};

// The image that the program describes: exact if it is smaller than options.need, and otherwise at
// least as large. Errors name the place in the expression; those of inputs are passed on with it.
absl::StatusOr<ImagePtr> EvaluateData(const DataProgram& program, const DataOptions& options);

}  // namespace blk
