#pragma once
// Disks that a program makes: mkfs, or a command of the user's. Used by tmpdisk, ondemand, iso and
// linuxdisk.
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "src/core/device.h"
#include "src/core/units.h"

namespace blk {

// How the disk is made: `command`, or mkfs without one. All of these are shell variables of it.
struct DiskRecipe {
  Size size;
  std::string type = "ext4";
  std::string label = {};
  std::optional<std::string> command = {};
  std::vector<std::pair<std::string, std::string>> variables = {};
};

// Runs the recipe, whose $disk is `path`. Errors: EIO with the command's last words. What it has
// made until then stays.
Task<absl::Status> MakeDisk(const DiskRecipe& recipe, std::string path);

// Runs a shell script that must succeed. `name` is how messages call it.
Task<absl::Status> RunRecipe(std::string script, std::string name,
                             std::vector<std::pair<std::string, std::string>> variables);

// The same device, which says of itself that another connection would see another disk.
DevicePtr ForOneConnection(DevicePtr device);

}  // namespace blk
