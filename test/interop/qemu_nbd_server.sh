#!/bin/bash
# blk's tools as clients of qemu-nbd and of nbd-server: qcow2 with dirty bitmaps and depths, and the oldest server there is.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed qemu-nbd qemu-img qemu-io nbd-server jq

qemu-img create -q -f qcow2 disk.qcow2 100M
qemu-io -f qcow2 disk.qcow2 -c 'write -P 1 1M 1M' -c 'write -P 2 50M 64k' -c 'write -z 60M 1M' >/dev/null
qemu-img bitmap --add -g 65536 disk.qcow2 changes
qemu-io -f qcow2 disk.qcow2 -c 'write -P 3 70M 128k' >/dev/null
qemu-img convert -O raw disk.qcow2 expected.img

background server qemu-nbd -t -e 16 -r -A -B changes -f qcow2 -x 'an export' -D 'what it is' -k "$PWD/qemu.socket" disk.qcow2
wait_for_socket qemu.socket
uri='nbd+unix:///an%20export?socket=qemu.socket'
expect_equal "$(blk info --json "$uri" | jq -c '.exports[0] | [."export-size", .is_read_only, .contexts]')" \
  "$(nbdinfo --json "$uri" | jq -c '.exports[0] | [."export-size", .is_read_only, .contexts]')" 'blk info of qemu-nbd'
expect_equal "$(blk map "$uri" | awk '{$1=$1}1')" "$(nbdinfo --map "$uri" | awk '{$1=$1}1')" 'blk map of qcow2'
for context in qemu:dirty-bitmap:changes qemu:allocation-depth; do
  expect_equal "$(blk map -c $context "$uri" | awk '{print $1, $2, $3}')" "$(nbdinfo --map=$context "$uri" | awk '{print $1, $2, $3}')" \
    "blk map -c $context"
done
expect_equal "$(blk map -c qemu:dirty-bitmap:changes "$uri" | awk '$3 == 1 {print $1, $2}')" '73400320 131072' 'the dirty bitmap'
blk copy "$uri" copied.img
expect_same expected.img copied.img 'a copy of qcow2 through qemu-nbd'
expect_equal "$(blk hash "$uri")" "$(blk hash expected.img)" 'the digest of qcow2 and of raw'
expect_status 1 blk info 'nbd+unix:///other?socket=qemu.socket' 2>error.txt
expect_match "$(cat error.txt)" 'other'

# Written through qemu-nbd into a qcow2, which stays sparse.
qemu-img create -q -f qcow2 target.qcow2 100M
background target qemu-nbd -t -e 16 --discard=unmap -f qcow2 -k "$PWD/target.socket" target.qcow2
target=$background_pid
wait_for_socket target.socket
blk copy --verify expected.img 'nbd+unix:///?socket=target.socket'
kill "$target"
timeout 10 tail --pid="$target" -f /dev/null
qemu-img compare -f raw -F qcow2 expected.img target.qcow2 >/dev/null || fail 'qemu-img compare of what blk copy wrote'
if [ "$(stat -c %s target.qcow2)" -gt 8000000 ]; then fail "the qcow2 is not sparse: $(stat -c %s target.qcow2) bytes"; fi

# nbd-server: newstyle without structured replies, exports by name; and a read-only one.
port=$(free_port)
cp expected.img served.img
cat >nbd.conf <<END
[generic]
port = $port
listenaddr = 127.0.0.1
allowlist = true
[disk]
exportname = $PWD/served.img
flush = true
fua = true
trim = true
[fixed]
exportname = $PWD/expected.img
readonly = true
END
nbd-server -C nbd.conf -p "$PWD/old.pid" # it has no foreground that serves twice
wait_until 5 test -s old.pid
background_pids+=("$(cat old.pid)")
wait_for_port "$port"
expect_equal "$(blk info --list --json "nbd://127.0.0.1:$port" | jq -c '[.exports[]."export-name"] | sort')" '["disk","fixed"]' 'the exports of nbd-server'
blk copy "nbd://127.0.0.1:$port/fixed" old.img
expect_same expected.img old.img 'a copy from nbd-server'
blk info --is read-only "nbd://127.0.0.1:$port/fixed"
head -c 100M /dev/urandom >random.img
blk copy random.img "nbd://127.0.0.1:$port/disk"
expect_same random.img served.img 'a copy to nbd-server'
blk copy --verify expected.img "nbd://127.0.0.1:$port/disk"
expect_same expected.img served.img 'a sparse copy to nbd-server'
expect_status 1 blk copy random.img "nbd://127.0.0.1:$port/fixed" 2>error.txt
expect_match "$(cat error.txt)" 'read-only'
