#pragma once
// blk under the names of libnbd's programs: their command lines, output and exit statuses, over the
// engines of `blk copy`, `blk info`, `blk map` and `blk dump`.
#include <span>
#include <string>

#include "src/tools/endpoint.h"

namespace blk {

int NbdcopyMain(std::span<const std::string> arguments);
int NbdinfoMain(std::span<const std::string> arguments);
int NbddumpMain(std::span<const std::string> arguments);

// The one server that nbdinfo and nbddump are given: a URI, or all words from `[` to the last `]`.
// Nothing when the words are neither.
std::optional<absl::StatusOr<Endpoint>> LibnbdServer(std::span<const std::string> words);

}  // namespace blk
