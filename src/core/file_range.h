#pragma once
// FileRange: bytes of an open file, handed from a device to a stream, so that they are sent without
// passing through this program's memory. A plain value; whoever made it says how long it counts.
#include <cstdint>

namespace blk {

class FileIo;

struct FileRange {
  FileIo* file = nullptr;
  uint64_t offset = 0, length = 0;
};

}  // namespace blk
