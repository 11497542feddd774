// The list of the other names of blk.
#include "src/tools/names.h"

#include "src/tools/libnbd_names.h"
#include "src/tools/nbdkit.h"

namespace blk {
namespace {

constexpr OldName kOldNames[] = {
    {"nbdkit", NbdkitMain},
    {"nbdcopy", NbdcopyMain},
    {"nbdinfo", NbdinfoMain},
    {"nbddump", NbddumpMain},
};

}  // namespace

const OldName* FindOldName(std::string_view argv0) {
  argv0.remove_prefix(argv0.rfind('/') + 1);
  for (const OldName& old : kOldNames)
    if (old.name == argv0) return &old;
  return nullptr;
}

}  // namespace blk
