#!/bin/bash
# blk copy --resume: killed at random moments, it goes on where it was and reads little again. The source is slowed by
# the rate filter. BLK_KILLS=N: so many kills (6).
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed jq

kills=${BLK_KILLS-6}
size=$((24 << 20))
head -c $size /dev/urandom >source.img
# Holes too, a quarter of it.
for i in 1 5 9; do fallocate -p -o $((i << 21)) -l $((1 << 21)) source.img; done
data=$((size - 3 * (1 << 21)))
slow='rate(rate=150M,burstiness=0.05)+source.img'

# read_by JSON: how much a finished copy read, by the last line of its progress.
read_by() { tail -n 1 "$1" | jq .read; }

# kill_after SECONDS: runs the slow copy and kills it, unless it has ended before.
killed=0
kill_after() {
  blk copy --resume j --progress=json "$slow" target.img 2>progress &
  local pid=$!
  sleep "$1"
  if kill -KILL $pid 2>/dev/null; then killed=$((killed + 1)); fi
  wait $pid 2>/dev/null || true
}

worst=0
while [ $killed -lt "$kills" ]; do
  rm -f target.img j
  for _ in 1 2 3; do
    if [ ! -e j ]; then rm -f target.img; fi # a copy was too quick for us: begin anew
    kill_after "0.$((RANDOM % 9))$((RANDOM % 10))"
  done
  if [ ! -e j ]; then continue; fi
  there=$(($(stat -c %b target.img) * 512))
  blk copy --resume j --progress=json "$slow" target.img 2>progress
  expect_same source.img target.img "the resumed copy"
  if [ -e j ]; then fail "the journal is left behind"; fi
  again=$(($(read_by progress) - (data - there)))
  if [ $again -gt $worst ]; then worst=$again; fi
  if [ $again -gt $((data / 5)) ]; then fail "read $again bytes of $data again"; fi
done
echo "killed $killed times; read again at most $((worst * 100 / data)) % of the data"

# Killed between two copies of the same, with nothing missing: nothing is read.
interrupted() {
  rm -f target.img j
  blk copy --resume j "$slow" target.img &
  local pid=$!
  wait_until 10 test -s j
  sleep 0.4
  kill -KILL $pid
  wait $pid 2>/dev/null || true
}

# A source that has changed is refused, and the target left as it is.
interrupted
before=$(sha256sum <target.img)
printf x | dd of=source.img conv=notrunc status=none
expect_status 1 blk copy --resume j "$slow" target.img 2>errors
expect_match "$(cat errors)" "state of the source.*delete the journal"
expect_equal "$(sha256sum <target.img)" "$before" "the target"
# So is another target in the place of the one that was begun.
interrupted
mv target.img elsewhere.img
expect_status 1 blk copy --resume j "$slow" target.img 2>errors
expect_match "$(cat errors)" "state of the target"
mv elsewhere.img target.img

# A journal with one wrong byte is not believed: everything is copied again, and is right.
printf '\377' | dd of=j bs=1 seek=$(($(stat -c %s j) - 20)) conv=notrunc status=none
blk copy --resume j --progress=json source.img target.img 2>progress
expect_match "$(cat progress)" "damaged and not believed"
expect_same source.img target.img
expect_equal "$(read_by progress)" $data "the bytes read after a damaged journal"
# One that ends in the middle of a record is believed up to there.
interrupted
truncate -s -5 j
blk copy --resume j --progress=json "$slow" target.img 2>progress
expect_same source.img target.img
if [ "$(read_by progress)" -ge $data ]; then fail "a torn journal was worth nothing"; fi

# Nobody's file is overwritten, no stream resumed.
echo precious >letter
expect_status 1 blk copy --resume letter source.img target.img 2>errors
expect_match "$(cat errors)" "not the journal of a copy"
expect_equal "$(cat letter)" precious
expect_status 1 blk copy --resume j source.img - 2>errors
expect_match "$(cat errors)" "a stream cannot"

# From and to servers, the way over the wire included.
blk serve -U "$tmp/from.sock" --filter=rate file source.img rate=150M burstiness=0.05 &
background_pids+=($!)
blk serve -U "$tmp/to.sock" memory size=$size &
background_pids+=($!)
wait_for_socket "$tmp/from.sock"
wait_for_socket "$tmp/to.sock"
uris=("nbd+unix:///?socket=$tmp/from.sock" "nbd+unix:///?socket=$tmp/to.sock")
blk copy --resume j2 "${uris[@]}" &
pid=$!
sleep 0.8
kill -KILL $pid
wait $pid 2>/dev/null || true
blk copy --resume j2 --progress=json "${uris[@]}" 2>progress
blk copy "${uris[1]}" back.img
expect_same source.img back.img "the copy between servers"
if [ "$(read_by progress)" -ge $((data * 4 / 5)) ]; then fail "the copy between servers began anew"; fi
