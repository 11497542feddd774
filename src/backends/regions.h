#pragma once
// A disk put together from regions: bytes in memory, parts of devices, files by name, and zeroes
// between them. Used by the backends that make disks up around other things.
//
// Threads: parallel-safe; regions are fixed before the device is made.
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "src/core/device.h"

namespace blk {

struct Region {
  enum class Kind { kZeroes, kBytes, kDevice, kFile };
  Kind kind = Kind::kZeroes;
  uint64_t start = 0, length = 0;
  std::string bytes = {};  // kBytes: `length` of them
  DevicePtr device = {};   // kDevice: its first `length` bytes; what it lacks reads as zeroes
  std::string path = {};   // kFile: opened for each read, so that there may be any number
  uint64_t end() const { return start + length; }
};

// Regions one after the other, from 0 on.
class RegionList {
 public:
  uint64_t size() const { return regions_.empty() ? 0 : regions_.back().end(); }
  void AddBytes(std::string bytes);
  void AddZeroes(uint64_t length);
  // Zeroes up to the next multiple of `alignment`.
  void Align(uint64_t alignment);
  void AddDevice(DevicePtr device, uint64_t length);
  void AddFile(std::string path, uint64_t length);
  // Replaces the content of a bytes region, which keeps its length.
  void SetBytes(size_t index, std::string bytes);
  size_t count() const { return regions_.size(); }
  const std::vector<Region>& regions() const { return regions_; }

 private:
  Region& Add(Region::Kind kind, uint64_t length);
  std::vector<Region> regions_;
};

// The device; `facts` but for size and what follows from the regions. Writes go to the regions that
// are devices; elsewhere only what is there already may be written, anything else is EIO.
DevicePtr MakeRegionsDevice(std::shared_ptr<const RegionList> regions, Facts facts);

}  // namespace blk
