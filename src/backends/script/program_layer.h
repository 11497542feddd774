#pragma once
// A disk that a program is: the life of nbdkit-plugin(3) (load, config ... open ... pread ...
// close, unload) told through a MethodCaller, whatever carries the calls.
//
// Threads: any loop.
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "src/backends/script/method.h"
#include "src/core/layer.h"

namespace blk::script {

struct ProgramSettings {
  // KEY=VALUE in the order given; "" for words without a key, which get the program's magic key.
  std::vector<std::pair<std::string, std::string>> config;
  bool has_load = true;  // eval has no such method
};

// `caller` was not started yet.
LayerPtr MakeProgramLayer(std::unique_ptr<MethodCaller> caller, ProgramSettings settings);

}  // namespace blk::script
