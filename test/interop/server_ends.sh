#!/bin/bash
# The end of a server under load. SIGTERM: requests in flight are answered, the disk is flushed, the socket goes, and the
# exit is quick. SIGKILL: what was flushed is there for the next server. A proxy whose own server says nothing ends too.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed nbdkit socat python3
skip_unless_python_has nbd python3-libnbd
sock=$tmp/s.sock
uri="nbd+unix:///?socket=$sock"

# now_ms: a clock.
now_ms() { echo $(($(date +%s%N) / 1000000)); }

# ends_within MILLISECONDS PID WHAT: and with status 0.
ends_within() {
  local begin status=0
  begin=$(now_ms)
  timeout 60 tail --pid="$2" -f /dev/null || fail "$3 does not end"
  local took=$(($(now_ms) - begin))
  wait "$2" || status=$?
  expect_equal "$status" 0 "the exit status of $3"
  if [ $took -gt "$1" ]; then fail "$3 took $took ms to end"; fi
  echo "$3 ended in $took ms"
}

# Four clients write numbers and flush now and then; each tells what the server has acknowledged.
cat >load.py <<'END'
import nbd, os, struct, sys
uri, number, out = sys.argv[1], int(sys.argv[2]), open(sys.argv[3], "w")
h = nbd.NBD()
h.connect_uri(uri)
base, i, flushed = number << 20, 0, 0
try:
    while True:
        at = base + (i % 256) * 4096
        h.pwrite(struct.pack("<Q", i + 1) * 512, at)
        i += 1
        if i % 16 == 0:
            h.flush()
            flushed = i
        if i == 64: print("running", file=out, flush=True)
except nbd.Error as e:
    print("acknowledged", i, "flushed", flushed, file=out, flush=True)
END

# start_load FILE...: a server on a file, with so many clients at work.
start_load() {
  background server blk serve -U "$sock" "$@"
  server=$background_pid
  wait_for_socket "$sock"
  rm -f load.*.txt
  for n in 0 1 2 3; do background "load$n" /usr/bin/python3 load.py "$uri" $n load.$n.txt; done
  for n in 0 1 2 3; do wait_until 20 grep -q running load.$n.txt; done
}

# check_disk FIELD: each client's last writes up to the count in that field are in the file.
cat >check.py <<'END'
import struct, sys
field, disk = sys.argv[1], open("disk.img", "rb").read()
for n in range(4):
    words = open("load.%d.txt" % n).read().split()
    count = int(words[words.index(field) + 1])
    assert count > 0, "client %d has done nothing" % n
    for slot in range(256):
        # The last write to this slot among those counted; a later one may have come, too.
        last = max((i + 1 for i in range(slot, count, 256)), default=0)
        (found,) = struct.unpack_from("<Q", disk, (n << 20) + slot * 4096)
        assert found >= last, "client %d slot %d: %d is there, %d was %s" % (n, slot, found, last, field)
        assert found == 0 or (found - 1) % 256 == slot
END

# check_disk FIELD
check_disk() {
  for n in 0 1 2 3; do wait_until 20 grep -q "$1" load.$n.txt; done
  /usr/bin/python3 check.py "$1" || fail "what was $1 is not in the file"
}

truncate -s 4M disk.img
start_load file disk.img
kill -TERM "$server"
ends_within 3000 "$server" "a server under load, on SIGTERM"
if [ -e "$sock" ]; then fail "the socket is left behind"; fi
check_disk acknowledged

for _ in 1 2 3; do
  truncate -s 0 disk.img
  truncate -s 4M disk.img
  start_load file disk.img
  sleep "0.$((RANDOM % 3))"
  kill -KILL "$server"
  wait "$server" 2>/dev/null || true
  check_disk flushed
  rm -f "$sock"
done

# Connections that are idle, and some that have never said a word.
background server blk serve -U "$sock" memory 64M
server=$background_pid
wait_for_socket "$sock"
for n in 1 2 3 4; do background "mute$n" socat -u "UNIX-CONNECT:$sock" OPEN:/dev/null; done
sleep 0.3
kill -TERM "$server"
ends_within 3000 "$server" "a server with silent clients, on SIGTERM"

# A request that takes for ever is cut off.
background server blk serve -U "$sock" --filter=delay memory 1M rdelay=3600
server=$background_pid
wait_for_socket "$sock"
background reader /usr/bin/python3 -c "
import nbd
h = nbd.NBD()
h.connect_uri('$uri')
h.pread(512, 0)"
sleep 0.5
kill -TERM "$server"
ends_within 15000 "$server" "a server with an endless request, on SIGTERM"

# A proxy for a server that has stopped answering, with requests on their way: it ends, and so does a copy from it.
background upstream blk serve -U "$tmp/up.sock" memory 64M
upstream=$background_pid
wait_for_socket "$tmp/up.sock"
background server blk serve -U "$sock" nbd socket="$tmp/up.sock"
server=$background_pid
wait_for_socket "$sock"
blk info "$uri" >/dev/null
background reader /usr/bin/python3 -c "
import nbd
h = nbd.NBD()
h.connect_uri('$uri')
print('connected', flush=True)
while True: h.pread(65536, 0)"
wait_until 10 grep -q connected reader.log
kill -STOP "$upstream"
sleep 0.3
kill -TERM "$server"
ends_within 15000 "$server" "a proxy for a silent server, on SIGTERM"
kill -CONT "$upstream"

# A copy whose target fails is not kept by reads that its source never answers.
background upstream nbdkit -f -U "$tmp/half.sock" eval thread_model='echo parallel' get_size='echo 8M' \
  pread='if [ $4 = 0 ]; then head -c $3 /dev/urandom; else exec sleep 30; fi'
wait_for_socket "$tmp/half.sock"
truncate -s 8M full.img
begin=$(now_ms)
expect_status 1 timeout 25 blk copy --no-extents "nbd+unix:///?socket=$tmp/half.sock" \
  'error(error=ENOSPC,error-pwrite-rate=1)+full.img' 2>error.txt
expect_match "$(cat error.txt)" 'write at offset 0 .*ENOSPC'
if [ $(($(now_ms) - begin)) -gt 5000 ]; then fail "the copy ended after $(($(now_ms) - begin)) ms"; fi
