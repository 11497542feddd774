#!/bin/bash
# The sandbox of `blk serve`: every backend and filter works inside it, and what a stack did not declare is refused.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed jq nbdcopy

report=$(blk serve -v memory 1M --run true 2>&1)
if [[ $report == *'built with a sanitizer'* || $report == *'not bounded'* ]]; then
  echo "needs a kernel with Landlock and seccomp, and no sanitizer"
  exit 77
fi
expect_match "$report" 'sandbox: files by Landlock [0-9]+.*, no network, no programs; [0-9]+ system calls by seccomp'
expect_equal "$(blk serve -v --sandbox=off memory 1M --run true 2>&1 | grep -c 'sandbox:' || true)" 0 'lines about a sandbox that is off'

# Each example of each backend and filter, as `blk list --json` has them, serves its disk as it does without a sandbox.
# Those that need something of the world outside say so themselves, with or without.
truncate -s 1M disk.img
printf 'x' >error-file
tar cf archive.tar disk.img
count=0
while IFS=$'\t' read -r name spec; do
  for sandbox in off on; do
    status=0
    timeout 20 blk serve --sandbox=$sandbox "$spec" --run 'blk bench -w 50 -n 40 -b 512 --length=64K "$uri" || blk dump -n 64K "$uri"' \
      >"out.$sandbox" 2>&1 </dev/null || status=$?
    echo "$status" >"status.$sandbox"
  done
  if grep -qE 'Permission denied|Operation not permitted' out.on && ! grep -qE 'Permission denied|Operation not permitted' out.off; then
    fail "$name is hindered by the sandbox: $spec: $(cat out.on)"
  fi
  expect_equal "$(cat status.on)" "$(cat status.off)" "the status of $spec in the sandbox"
  count=$((count + 1))
done < <(blk list --json | jq -r '.[] | .name as $name | .examples[] | [$name, .spec] | @tsv')
if [ $count -lt 40 ]; then fail "only $count examples were tried"; fi

# Files of a folder, opened for each client; a link out of the folder leads nowhere.
mkdir folder outside
truncate -s 1M folder/one.img folder/two.img outside/secret.img
ln -s "$PWD/outside/secret.img" folder/link.img
get='blk info --size "nbd+unix:///$name?socket=$unixsocket"'
for name in one.img two.img; do
  expect_equal "$(name=$name blk serve file dir=folder --run "$get")" 1048576 "folder/$name"
done
expect_status 1 env name=link.img blk serve file dir=folder --run "$get" 2>error.txt
expect_equal "$(name=link.img blk serve --sandbox=off file dir=folder --run "$get")" 1048576 'the link, without a sandbox'

# Filters with files, sockets, programs and temporary files of their own.
confined() { timeout 20 blk serve --sandbox=on "$@"; }
use='blk bench -w 50 -n 40 --length=64K "$uri"'
expect_equal "$(confined --filter=pause memory 1M "pause-control=$PWD/control" \
  --run "$use >&2; printf p | socat - UNIX-CONNECT:control | head -c 1")" P 'the answer of pause'
if [ -e control ]; then fail 'the socket of pause stayed'; fi
confined --filter=log --filter=stats memory 1M logfile="$PWD/log.txt" statsfile="$PWD/stats.txt" --run "$use" >/dev/null
expect_match "$(cat log.txt)" 'Write'
expect_match "$(cat stats.txt)" 'write'
confined --filter=log memory 1M logscript="echo \$act >>$PWD/script.txt" --run "$use" >/dev/null
expect_match "$(cat script.txt)" 'Write'
before=$(sha256sum disk.img)
TMPDIR=$PWD confined --filter=cow disk.img --run "$use" >/dev/null
expect_equal "$(sha256sum disk.img)" "$before" 'the disk below cow'

# Events that a filter watches for from inside: a process that ends, a file that comes.
sleep 1 &
timeout 20 blk serve --sandbox=on -U "$PWD/gone" "exitwhen(exit-when-process-exits=$!,exit-when-poll=50ms)+memory:1M"
(sleep 1 && touch come) &
timeout 20 blk serve --sandbox=on -U "$PWD/gone" "exitwhen(exit-when-file-created=$PWD/come,exit-when-poll=50ms)+memory:1M"
# A rate that is read again from a file that comes later.
(sleep 0.5 && echo 100M >rate) &
blk serve --sandbox=on "rate(rate-file=$PWD/rate)+memory:1M" --run 'for i in 1 2 3 4; do blk dump -n 512 "$uri"; sleep 0.3; done' >/dev/null 2>error.txt
expect_equal "$(cat error.txt)" '' 'complaints of a filter with a file that comes later'

# What ends up beside the server is removed, in the background too.
blk serve --fork -P "$PWD/pid" -U "$PWD/socket" file disk.img
wait_until 5 test -s pid
blk info "nbd+unix:///?socket=$PWD/socket" >/dev/null
expect_match "$(cat "/proc/$(cat pid)/status")" 'Seccomp:[[:space:]]2' 'the server under seccomp'
expect_match "$(cat "/proc/$(cat pid)/status")" 'NoNewPrivs:[[:space:]]1'
pid=$(cat pid)
kill "$pid"
timeout 10 tail --pid="$pid" -f /dev/null
if [ -e pid ] || [ -e socket ]; then fail 'the pidfile or the socket stayed'; fi

# A server of its own behind the proxy, started from inside; stacks without programs cannot do that.
confined nbd command=nbdkit arg=-f arg=memory arg=1M --run 'blk dump -n 512 "$uri"' >/dev/null

# A proxy may connect, others may not.
blk serve memory 1M --run 'blk serve -v nbd uri="$uri" --run "blk copy \"\$uri\" null:"' 2>error.txt
expect_match "$(cat error.txt)" 'sandbox: .*, network, no programs;'
