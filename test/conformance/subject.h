#pragma once
// What the conformance suite opens: specs of the registry's examples, smaller and larger disks made
// from them, and stacks of filters. One thread.
#include <string>
#include <vector>

#include "src/backends/registry.h"
#include "src/core/layer.h"
#include "test/conformance/contract.h"

namespace blk::test {

struct Subject {
  std::string spec;
  std::string export_name = "";
  Traits traits = {};
  bool may_not_fit = false;      // its filters may not go together: EINVAL at opening is right too
  bool may_lack_memory = false;  // then ENOMEM is a right answer too
};

// The example itself; where its backend takes a size, disks of few and of the most bytes too.
std::vector<Subject> SubjectsOf(const Spec& spec);

// Stacks of two to four filters over memory with each filter as first, middle and last. The filters
// are those with an example that opens, with its parameters.
std::vector<Subject> FilterStacks(uint64_t seed);

// What writes do to the stack of this in-line spec; follows from its backend and filters.
Traits TraitsOf(const std::string& spec);

}  // namespace blk::test
