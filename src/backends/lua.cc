// lua: an nbdkit plugin written in Lua. See script/host.h and script/bridges/lua.lua.
#include "src/backends/script/host.h"

namespace blk {
namespace {

BLK_EMBEDDED_BEGIN
constexpr char kBridge[] = {
#embed "src/backends/script/bridges/lua.lua"
};
BLK_EMBEDDED_END

}  // namespace

const Spec& LuaSpec() {
  static const auto& language = *new script::Language{
      .name = "lua",
      .summary = "a plugin written in Lua",
      .description =
          "A script as nbdkit-lua-plugin(3) has them: open, get_size and pread are needed, and "
          "error is one. What "
          "it prints goes to standard error. Beyond nbdkit's, nbdkit.debug(text) is there, "
          "extents(h, count, offset) may return a table of {offset, length, type}, and so may be "
          "block_size, list_exports, default_export, export_description, can_fua, can_cache and "
          "cache.",
      .example = "lua:./disk.lua",
      .interpreters = {"/usr/bin/lua5.4", "/usr/bin/lua5.3", "lua"},
      .arguments = {"/dev/fd/4"},
      .bridge = {kBridge, sizeof kBridge},
      .channel = script::ConversationOptions::Channel::kStandard};
  static const Spec& spec = *new Spec(script::MakeHostSpec(language));
  return spec;
}

}  // namespace blk
