#!/bin/bash
# What goes wrong with a copy: status 1, a message that says where, no hang and no half truth.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed nbdkit jq

# refused REGEX COMMAND...: status 1 within 20 seconds, and a message like this.
refused() {
  local regex=$1
  shift
  expect_status 1 timeout 20 "$@" 2>error.txt
  expect_match "$(cat error.txt)" "$regex" "the message of $*"
}
head -c 8M /dev/urandom >source.img

# Too small, full, or not there.
refused 'too small.*524288.*8388608|8388608' blk copy source.img memory:512k
truncate -s 1M small.img
blk serve file small.img --run 'blk copy source.img "$uri"' 2>error.txt && fail 'copied into a smaller disk'
expect_match "$(cat error.txt)" 'too small'
refused 'offset 0 .*the disk is full' blk copy source.img full:8M
refused '.' blk serve full 8M --run 'blk copy source.img "$uri"'
expect_match "$(cat error.txt)" 'disk is full|No space left'
if mkdir tiny && mount -t tmpfs -o size=2M none tiny 2>error.txt; then
  trap 'umount -l tiny; end_background' EXIT
  refused 'No space left' blk copy source.img tiny/target.img
else
  echo "no full file system tried: $(cat error.txt)"
fi
refused 'File too large' bash -c 'ulimit -f 2048; exec blk copy source.img limited.img'
# A stream: both ways; a reader that leaves.
blk copy source.img - | cmp - source.img
blk copy - copied.img <source.img
expect_same source.img copied.img 'from standard input'
blk serve memory 8M --run 'blk copy - "$uri" <source.img && blk copy "$uri" -' | cmp - source.img
blk serve memory 8M --run 'cat source.img source.img | blk copy - "$uri"' 2>error.txt && fail 'a stream that is longer than the target'
refused 'Broken pipe' bash -c 'set -o pipefail; blk copy source.img - | head -c 100 >/dev/null'

# The server dies while it is read, and while it is written.
for direction in read write; do
  background server blk serve -U dying.socket --filter=rate memory 1G rate=80M
  server=$background_pid
  wait_for_socket dying.socket
  uri='nbd+unix:///?socket=dying.socket'
  if [ $direction = read ]; then
    timeout 20 blk copy --no-extents "$uri" null: 2>error.txt &
  else
    timeout 20 blk copy random:1G "$uri" 2>error.txt &
  fi
  copy=$!
  sleep 0.7
  kill -KILL "$server"
  status=0
  wait $copy || status=$?
  expect_equal $status 1 "the status when the server dies in a $direction"
  expect_match "$(cat error.txt)" 'blk copy: error: .*(offset|at) [0-9]+.*(closed|reset|left|pipe)' "the message when it dies in a $direction"
  rm -f dying.socket
done

# --verify notices a target that does not keep what it is given; without it nobody does.
blk copy source.img null:8M 2>/dev/null || blk serve null 8M --run 'blk copy source.img "$uri"'
refused 'differ|verif' blk serve null 8M --run 'blk copy --verify source.img "$uri"'
refused 'differ|verif' nbdkit -U - eval get_size='echo 8388608' pread='head -c $3 /dev/urandom' pwrite='cat >/dev/null' \
  --run 'blk copy --verify source.img "$uri"'

# Options: zeroes that are written, holes that are trusted, progress in JSON, one request at a time.
truncate -s 8M holes.img
printf x | dd of=holes.img bs=1 seek=5000000 conv=notrunc status=none
blk copy --allocated holes.img allocated.img
if [ "$(stat -c %b allocated.img)" -lt 16000 ]; then fail '--allocated left holes'; fi
expect_same holes.img allocated.img '--allocated'
blk copy holes.img sparse.img
if [ "$(stat -c %b sparse.img)" -gt 200 ]; then fail "no holes: $(stat -c %b sparse.img) blocks"; fi
expect_same holes.img sparse.img 'a copy with holes'
cp --sparse=never allocated.img zeroes.img
blk copy zeroes.img found.img
if [ "$(stat -c %b found.img)" -gt 200 ]; then fail 'zeroes within data were not found'; fi
blk copy -S 0 zeroes.img unsought.img
if [ "$(stat -c %b unsought.img)" -lt 16000 ]; then fail '-S 0 looked for zeroes'; fi
truncate -s 8M zero.img
nbdkit -U - --filter=log --filter=nozero file zero.img logfile=log.txt --run 'blk copy --destination-is-zero holes.img "$uri"'
expect_same holes.img zero.img '--destination-is-zero'
if grep -q 'Zero ' log.txt; then fail '--destination-is-zero writes zeroes'; fi
nbdkit -U - --filter=log memory 8M logfile=log.txt --run 'blk copy source.img "$uri"'
expect_equal "$(grep -cE ' Flush .*\{$|^[^.]* Flush [^.]*\.\.\.$|Flush id=[0-9]+ \{?' log.txt | sed 's/^[1-9][0-9]*$/yes/')" yes 'the flush at the end'
nbdkit -U - --filter=log memory 8M logfile=log.txt --run 'blk copy --no-flush source.img "$uri"'
if grep -q ' Flush ' log.txt; then fail '--no-flush flushes'; fi
for option in --synchronous --connections=1 --requests=1 --request-size=4096 --request-size=32M --threads=1 --no-extents; do
  rm -f copied.img
  blk serve memory 8M --run "blk copy $option source.img \"\$uri\" && blk copy $option \"\$uri\" copied.img"
  expect_same source.img copied.img "blk copy $option"
done
blk copy --progress=json source.img null: >json.txt 2>&1
jq -es 'length > 0 and all(type == "object")' json.txt >/dev/null || fail "--progress=json: $(cat json.txt)"

# The memory of a copy is bounded by the queue, not by the disk.
cat >memory.py <<'END'
import os, resource, subprocess, sys
subprocess.run(['blk', 'copy', '--no-extents', '-S', '0', '--queue-size=' + sys.argv[1], os.environ['uri'], os.environ['uri']], check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
END
small=$(blk serve sparse-random 2G --run '/usr/bin/python3 memory.py 1M')
large=$(blk serve sparse-random 2G --run '/usr/bin/python3 memory.py 64M')
if is_product && [ "$small" -gt 40000 ]; then fail "a copy with a queue of 1 MiB took $small KiB"; fi
if is_product && [ "$large" -gt 160000 ]; then fail "a copy with a queue of 64 MiB took $large KiB"; fi
