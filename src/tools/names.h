#pragma once
// Programs that blk is when it is called by their names (`ln -s blk nbdkit`): each has the command
// line, output and exit statuses of the program of that name.
//
// A tool `blk NAME` may have better habits; these keep the old ones.
#include <span>
#include <string>
#include <string_view>

namespace blk {

struct OldName {
  std::string_view name;
  // `arguments` as main() got them, the name first. The result is the exit status. The spawner runs
  // already.
  int (*run)(std::span<const std::string> arguments);
};

// The program that `argv0` names by its last part; null if blk is just blk.
const OldName* FindOldName(std::string_view argv0);

}  // namespace blk
