#!/bin/bash
# Captive servers, `[ COMMAND … ]`: nbdkit, qemu-nbd and blk itself by socket activation; and what is said of commands that
# are none.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed nbdkit qemu-nbd qemu-img

head -c 3000000 /dev/urandom >disk.raw
truncate -s 4M disk.raw
qemu-img convert -f raw -O qcow2 disk.raw disk.qcow2

blk copy -- [ qemu-nbd -f qcow2 "$tmp/disk.qcow2" ] out.raw
cmp disk.raw out.raw

blk copy -- [ nbdkit file "$tmp/disk.raw" ] out2.raw
cmp disk.raw out2.raw

# Both sides; what the target server wrote is there when it has ended.
qemu-img create -q -f qcow2 target.qcow2 4M
blk copy -- [ nbdkit file "$tmp/disk.raw" ] [ qemu-nbd -f qcow2 "$tmp/target.qcow2" ]
qemu-img compare -f raw -F qcow2 disk.raw target.qcow2 >compare.txt

# The disk goes to standard output, and nothing that the server prints does.
blk copy -- [ sh -c 'echo noise; exec nbdkit file "$0"' "$tmp/disk.raw" ] - >out3.raw
cmp disk.raw out3.raw

# Commands that are no server: an error at once, which names the command and how it ended.
expect_failure() {
  local wanted=$1 text status=0
  shift
  text=$(timeout 20 blk copy -- "$@" null: 2>&1) || status=$?
  expect_equal "$status" 1 "the exit status of $*"
  expect_match "$text" "$wanted" "what is said of $*"
}
expect_failure '\[ sh -c exit 7 \]: .*exit status 7' [ sh -c 'exit 7' ]
expect_failure '\[ true \]: .*exit status 0' [ true ]
expect_failure '\[ sh -c kill -9 \$\$ \]: .*killed by SIGKILL' [ sh -c "kill -9 \$\$" ]
expect_failure 'no-such-server: there is no such program on the PATH' [ no-such-server ]
expect_failure '\[ nbdkit file /no/such/file \]: .*exit status 1' [ nbdkit file /no/such/file ]
