#pragma once
// What the methods of a program print, as nbdkit-sh-plugin(3) has it. Pure functions; any thread.
// Errors are EINVAL with what was expected and what came.
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "src/core/device.h"
#include "src/core/layer.h"

namespace blk::script {

// `text` without one end of line.
std::string_view WithoutNewline(std::string_view text);

// get_size: a size, `1M`.
absl::StatusOr<uint64_t> ReadSize(std::string_view text);
// block_size: minimum, preferred and maximum. Three zeroes say nothing: nullopt.
absl::StatusOr<std::optional<BlockSizes>> ReadBlockSizes(std::string_view text);
// can_fua, can_cache: none, emulate or native.
absl::StatusOr<Support> ReadSupport(std::string_view text);
// thread_model.
absl::StatusOr<ThreadModel> ReadThreadModel(std::string_view text);
// list_exports, default_export: names, alone or with descriptions.
absl::StatusOr<std::vector<ExportEntry>> ReadExports(std::string_view text);
// extents: lines `offset length type`. Fills `list` from its start as far as they go; they must
// begin at or before it, and follow one another without gaps.
absl::Status ReadExtents(std::string_view text, ExtentList* list);

}  // namespace blk::script
