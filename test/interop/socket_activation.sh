#!/bin/bash
# Servers started by socket activation: blk started by libnbd, and other servers started by blk.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed nbdcopy nbdinfo nbdkit qemu-nbd qemu-img
skip_unless_python_has nbd python3-libnbd

# libnbd passes a listening socket; blk serves it, and ends when it is told to.
head -c 1M /dev/urandom >source.img
nbdcopy -- [ blk serve file source.img ] - | cmp - source.img
expect_equal "$(nbdinfo --size -- [ blk serve memory 5M ])" 5242880 'nbdinfo [ blk serve ]'
nbdcopy -- [ blk serve -r file source.img ] copied.img
expect_same source.img copied.img 'nbdcopy [ blk serve ]'
/usr/bin/python3 - <<'END'
import nbd
h = nbd.NBD()
h.connect_systemd_socket_activation(['blk', 'serve', 'memory', '3M'])
assert h.get_size() == 3 << 20
h.pwrite(b'x' * 4096, 4096)
assert h.pread(4096, 4096) == b'x' * 4096
h.shutdown()
END
expect_status 1 nbdinfo -- [ blk serve -p 1 memory 1M ] 2>error.txt

qemu-img create -q -f qcow2 disk.qcow2 100M
qemu-io -f qcow2 disk.qcow2 -c 'write -P 1 1M 1M' -c 'write -P 2 50M 64k' >/dev/null
qemu-img convert -O raw disk.qcow2 expected.img
# Servers that blk starts and ends itself.
blk copy -- [ qemu-nbd -f qcow2 disk.qcow2 ] captive.img
expect_same expected.img captive.img '[ qemu-nbd ]'
blk copy -- [ nbdkit file expected.img ] [ nbdkit file captive.img ]
expect_equal "$(blk info --size -- [ nbdkit memory 12345 ])" 12345 '[ nbdkit ]'
expect_status 1 blk copy -- [ qemu-nbd -f qcow2 missing.qcow2 ] null: 2>error.txt
expect_match "$(cat error.txt)" 'missing.qcow2'
sleep 0.2
if pgrep -f "qemu-nbd -f qcow2 disk.qcow2" >left.txt; then fail "left running: $(cat left.txt)"; fi

