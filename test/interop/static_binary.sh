#!/bin/bash
# The product is one fully static, position-independent and hardened file that runs in a root with nothing else.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless "the product, not a sanitizer's build" test "$BLK_CONFIG" = product
skip_unless_installed readelf

blk=$(readlink -f "$(command -v blk)")
program=$(readelf -hlW "$blk")
dynamic=$(readelf -dW "$blk")
symbols=$(readelf -sW "$blk")

expect_match "$program" 'Type: +DYN \(Position-Independent Executable file\)'
expect_match "$program" '^ +GNU_RELRO '
expect_match "$program" '^ +GNU_STACK .* RW +0x'
expect_match "$dynamic" '\(FLAGS\) +BIND_NOW'
expect_match "$dynamic" '\(FLAGS_1\) +Flags: NOW PIE'
expect_match "$symbols" ' FUNC .* __stack_chk_fail$'
if grep -E '^ +INTERP ' <<<"$program"; then fail "asks for a dynamic loader"; fi
if grep -F '(NEEDED)' <<<"$dynamic"; then fail "asks for a shared library"; fi
if grep -F '(TEXTREL)' <<<"$dynamic"; then fail "relocates its code"; fi
if grep -E ' LOAD .* RWE ' <<<"$program"; then fail "has memory both writable and executable"; fi

# The functions that hold buffers must really be guarded, not only a few of the C library's.
guarded=$(objdump -d --no-show-raw-insn "$blk" | grep -c '__stack_chk_fail>$')
if [ "$guarded" -lt 100 ]; then fail "only $guarded functions have a stack protector"; fi

mkdir root
cp "$blk" root/blk
version=$(blk --version)
expect_match "$version" '^blk [0-9]+\.[0-9]+\.[0-9]+'
skip_unless "root, for chroot" test "$(id -u)" = 0
expect_equal "$(env -i "$(command -v chroot)" root /blk --version)" "$version" "the version told in an empty root"
