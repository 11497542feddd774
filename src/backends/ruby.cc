// ruby: an nbdkit plugin written in Ruby. See script/host.h and script/bridges/ruby.rb.
#include "src/backends/script/host.h"

namespace blk {
namespace {

BLK_EMBEDDED_BEGIN
constexpr char kBridge[] = {
#embed "src/backends/script/bridges/ruby.rb"
};
BLK_EMBEDDED_END

}  // namespace

const Spec& RubySpec() {
  static const auto& language = *new script::Language{
      .name = "ruby",
      .summary = "a plugin written in Ruby",
      .description =
          "A script as nbdkit-ruby-plugin(3) has them: open, get_size and pread are needed; an "
          "exception is an "
          "error, and Nbdkit.set_error says which. Beyond nbdkit's, extents(h, count, offset) may "
          "return arrays of offset, length and type, and block_size, list_exports, default_export, "
          "export_description, can_fua, can_cache and cache may be there.",
      .example = "ruby:./disk.rb",
      .interpreters = {"/usr/bin/ruby", "ruby"},
      .arguments = {"-e", "eval(IO.for_fd(4).read, TOPLEVEL_BINDING, 'blk-bridge')"},
      .bridge = {kBridge, sizeof kBridge}};
  static const Spec& spec = *new Spec(script::MakeHostSpec(language));
  return spec;
}

}  // namespace blk
