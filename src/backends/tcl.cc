// tcl: an nbdkit plugin written in Tcl. See script/host.h and script/bridges/tcl.tcl.
#include "src/backends/script/host.h"

namespace blk {
namespace {

BLK_EMBEDDED_BEGIN
constexpr char kBridge[] = {
#embed "src/backends/script/bridges/tcl.tcl"
};
BLK_EMBEDDED_END

}  // namespace

const Spec& TclSpec() {
  static const auto& language = *new script::Language{
      .name = "tcl",
      .summary = "a plugin written in Tcl",
      .description =
          "A script as nbdkit-tcl-plugin(3) has them: plugin_open, get_size and pread are needed, "
          "and error is "
          "one. What it puts goes to standard error. Beyond nbdkit's, extents {h count offset} may "
          "return a list of {offset length type}, and block_size, list_exports, default_export, "
          "export_description, can_fua, can_cache and cache may be there.",
      .example = "tcl:./disk.tcl",
      .interpreters = {"/usr/bin/tclsh", "tclsh"},
      .arguments = {"/dev/fd/4"},
      .bridge = {kBridge, sizeof kBridge},
      .channel = script::ConversationOptions::Channel::kStandard};
  static const Spec& spec = *new Spec(script::MakeHostSpec(language));
  return spec;
}

}  // namespace blk
