#!/bin/bash
# kill -9 of the server while fio writes and verifies. Alone: fio keeps account of what was answered, and finds it with
# the next server. Behind the retry filter: fio notices nothing. BLK_KILLS=N: so many kills of each kind (2).
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed fio jq
skip_unless "fio with the nbd engine" sh -c 'fio --enghelp | grep -qw nbd'
kills=${BLK_KILLS-2}
sock=$tmp/s.sock

# serve: a server on disk.img, as before the last kill.
serve() {
  rm -f "$sock"
  background server blk serve -U "$sock" file disk.img
  server=$background_pid
  wait_for_socket "$sock"
}

# fio_on SOCKET OPTION...
fio_on() {
  local socket=$1
  shift
  fio --output-format=json --output=fio.json --ioengine=nbd --uri="nbd+unix:///?socket=$socket" --name=kill \
    --bsrange=512-32k --blockalign=512 --size=64M --iodepth=16 --verify=crc32c --verify_fatal=1 "$@"
}

# What fio had been answered when the server was killed is there.
for _ in $(seq "$kills"); do
  rm -f disk.img ./*.state
  truncate -s 64M disk.img
  serve
  work=(--rw=randwrite --randseed=$RANDOM)
  # The server dies when fio has written down its account.
  fio_on "$sock" "${work[@]}" --do_verify=0 --fsync=32 --rate=40M --verify_state_save=1 --trigger-timeout=1 \
    --trigger="kill -KILL $server" >fio.log 2>&1 || true
  wait "$server" 2>/dev/null || true
  if kill -0 "$server" 2>/dev/null; then fail "fio did not kill the server: $(cat fio.log)"; fi
  written=$(jq '.jobs[0].write.total_ios' fio.json)
  if [ "$written" -lt 200 ]; then fail "only $written writes before the kill"; fi
  serve
  # One at a time: near the end of its account fio asks for each write whether it was answered, but counts from the reads
  # that it has finished, so that with 16 in flight it also verifies writes that the kill has left without an answer.
  fio_on "$sock" "${work[@]}" --do_verify=1 --verify_state_load=1 --verify_only=1 --iodepth=1 >fio.log 2>&1 || fail "$(cat fio.log)"
  expect_equal "$(jq '.jobs[0].error' fio.json)" 0 "what fio finds after a kill"
  verified=$(jq '.jobs[0].read.total_ios' fio.json)
  echo "killed after $written writes; $verified of them found"
  if [ "$verified" -lt $((written * 9 / 10)) ]; then fail "only $verified of $written writes were verified"; fi
  # That fio would notice.
  dd if=/dev/zero of=disk.img bs=64M count=1 conv=notrunc status=none
  if fio_on "$sock" "${work[@]}" --do_verify=1 --verify_state_load=1 --verify_only=1 >fio.log 2>&1; then fail 'fio verifies nothing'; fi
  kill "$server"
  wait "$server" 2>/dev/null || true
done

# Behind the retry filter the server is killed and started again, and fio goes on.
rm -f disk.img
truncate -s 64M disk.img
background proxy blk serve -U "$tmp/p.sock" --filter=retry nbd socket="$sock" retry-delay=50ms retry-exponential=no retries=100
serve
wait_for_socket "$tmp/p.sock"
fio_on "$tmp/p.sock" --rw=randrw --do_verify=1 --numjobs=2 --size=32M --offset_increment=32M --rate=8M --group_reporting >fio.log 2>&1 &
fio=$!
killed=0
while [ $killed -lt "$kills" ] && sleep "0.$((3 + RANDOM % 7))" && kill -0 $fio 2>/dev/null; do
  kill -KILL "$server"
  killed=$((killed + 1))
  wait "$server" 2>/dev/null || true
  serve
done
status=0
wait $fio || status=$?
expect_equal "$status $(jq -c '[.jobs[0].error, (.jobs[0].write.total_ios > 500)]' fio.json)" '0 [0,true]' "fio behind retry"
if [ $killed -lt 2 ]; then fail "fio ended after $killed kills"; fi
echo "fio behind retry did not notice $killed kills"
