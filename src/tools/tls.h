#pragma once
// `blk tls init DIR`: certificates or a pre-shared key, for people who have none.
#include "src/tools/tool.h"

namespace blk {

Tool TlsTool();

}  // namespace blk
