// The tree of a data expression as text, for who wants to see how it was understood: nbdkit's
// `-D data.AST=1`.
//
// What can be written shorter is: literals are joined and cut, repeats of nothing vanish,
// parentheses that hold no move are dropped, and a name is what it stands for. Nothing is read or
// run.
#pragma once

#include <string>
#include <vector>

#include "src/backends/data/parse.h"

namespace blk {

// One line an item, nested ones further in. Of a tree with very many items, the first ones.
std::vector<std::string> DescribeData(const DataProgram& program);

}  // namespace blk
