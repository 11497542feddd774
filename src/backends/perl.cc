// perl: an nbdkit plugin written in Perl. See script/host.h and script/bridges/perl.pl.
#include "src/backends/script/host.h"

namespace blk {
namespace {

BLK_EMBEDDED_BEGIN
constexpr char kBridge[] = {
#embed "src/backends/script/bridges/perl.pl"
};
BLK_EMBEDDED_END

}  // namespace

const Spec& PerlSpec() {
  static const auto& language = *new script::Language{
      .name = "perl",
      .summary = "a plugin written in Perl",
      .description =
          "A script as nbdkit-perl-plugin(3) has them: open, get_size and pread are needed; die is "
          "an error, "
          "and Nbdkit::set_error says which. Beyond nbdkit's, extents, block_size, list_exports, "
          "default_export, export_description, can_fua, can_cache and cache may be there.",
      .example = "perl:./disk.pl",
      .interpreters = {"/usr/bin/perl", "perl"},
      .arguments =
          {"-e",
           "open(my $file, '<&=', 4); my $code = do { local $/; <$file> }; close $file; eval "
           "$code; die $@ if $@"},
      .bridge = {kBridge, sizeof kBridge}};
  static const Spec& spec = *new Spec(script::MakeHostSpec(language));
  return spec;
}

}  // namespace blk
