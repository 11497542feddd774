#!/bin/bash
# blk serve in the background, opened by a superserver, and ending with its parent.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed nbdinfo nbdcopy

head -c 1000000 /dev/urandom >disk.raw
truncate -s 2M disk.raw

# --fork: back when clients may come, and nobody who reads its output waits for more. Its files are named relatively.
said=$(timeout 20 blk serve --fork -U socket -P pid file disk.raw 2>&1)
expect_equal "$said" '' 'what --fork says'
expect_equal "$(nbdinfo --size 'nbd+unix:///?socket=socket')" 2097152 'the size at once after --fork'
pid=$(cat pid)
background_pids+=("$pid")
expect_equal "$(readlink "/proc/$pid/cwd")" / 'where it works'
nbdcopy 'nbd+unix:///?socket=socket' out.raw
cmp disk.raw out.raw

# What goes wrong is said before it returns, with the status.
expect_status 1 blk serve --fork -U socket memory 1M 2>error.txt
expect_match "$(cat error.txt)" 'socket.*in use'
expect_status 1 blk serve --fork -U socket2 file /no/such/file 2>error.txt
expect_match "$(cat error.txt)" '/no/such/file'
expect_status 1 blk serve --fork -U socket2 -P /no/such/folder/pid memory 1M 2>error.txt
expect_match "$(cat error.txt)" 'pidfile'
expect_status 1 blk serve --fork memory 1M --run true 2>error.txt
expect_match "$(cat error.txt)" '^blk serve: error: --fork excludes'

kill "$pid"
timeout 10 tail --pid="$pid" -f /dev/null || fail 'SIGTERM does not end it'
test ! -e socket || fail 'the socket is left'
test ! -e pid || fail 'the pidfile is left'

# Socket activation, by libnbd's tools and by our own (a shell in between, or it would be opened without a server).
nbdcopy -- [ blk serve file disk.raw ] out2.raw
cmp disk.raw out2.raw
blk copy -- [ sh -c "exec blk serve file '$tmp/disk.raw'" ] out3.raw
cmp disk.raw out3.raw
expect_status 1 nbdcopy -- [ blk serve -p 0 file disk.raw ] out4.raw 2>error.txt
expect_match "$(cat error.txt)" 'socket activation.*excludes'
LISTEN_PID=1 LISTEN_FDS=1 blk serve memory 1M --run 'blk info --size "$uri"' >size.txt 2>error.txt
expect_equal "$(cat size.txt)" 1048576 'with the sockets of somebody else'
expect_match "$(cat error.txt)" 'LISTEN_PID was not for us'

# --exit-with-parent, also when the parent is killed.
# shellcheck disable=SC2016  # for the inner shell
{
  bash -c 'blk serve --exit-with-parent -U socket3 -P pid3 memory 1M &
    until [ -s pid3 ]; do sleep 0.05; done; kill -KILL $$' || true
} 2>killed.txt
wait_until 5 test ! -e socket3
