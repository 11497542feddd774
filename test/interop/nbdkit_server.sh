#!/bin/bash
# blk's tools as the clients of nbdkit: copies that compare, maps, exports, old handshakes, and servers that fail.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed nbdkit nbdinfo qemu-img jq

# A sparse disk copied to itself is compared by the server; another seed must fail and say where.
nbdkit -U - sparse-random 4G seed=7 --run 'blk copy "$uri" "$uri"'
background seven nbdkit -f -U seven.socket sparse-random 256M seed=7
wait_for_socket seven.socket
seven='nbd+unix:///?socket=seven.socket'
expect_status 1 nbdkit -U - sparse-random 256M seed=8 --run "blk copy '$seven' \"\$uri\"" 2>error.txt
expect_match "$(cat error.txt)" 'blk copy: error: .*(offset|at) [0-9]+'
# The same content by two ways has the same digest; another has another.
expect_equal "$(blk hash "$seven")" "$(nbdkit -U - sparse-random 256M seed=7 --run 'nbdcopy "$uri" seven.img && blk hash seven.img')" 'blk hash'
if [ "$(blk hash "$seven")" = "$(nbdkit -U - sparse-random 256M seed=8 --run 'blk hash "$uri"')" ]; then
  fail 'blk hash does not see another seed'
fi
# Maps and facts as nbdinfo tells them.
expect_equal "$(blk map "$seven")" "$(nbdinfo --map "$seven")" 'blk map'
expect_equal "$(blk map --totals "$seven")" "$(nbdinfo --map --totals "$seven")" 'blk map --totals'
expect_equal "$(blk map --json "$seven" | jq -c .)" "$(nbdinfo --map --json "$seven" | jq -c .)" 'blk map --json'
facts='[.protocol, .TLS, .structured, (.exports[0] | [."export-size", .contexts, .is_read_only, .is_rotational, .can_cache, .can_df,
  .can_fast_zero, .can_flush, .can_fua, .can_multi_conn, .can_trim, .can_zero, ."export-size-str"])]'
expect_equal "$(blk info --json "$seven" | jq -c "$facts")" "$(nbdinfo --json "$seven" | jq -c "$facts")" 'blk info'

# Memory and files, written and read back with holes.
truncate -s 33M source.img
head -c 3000000 /dev/urandom | dd of=source.img bs=1M seek=5 conv=notrunc status=none
printf 'the end' | dd of=source.img bs=1 seek=$(((33 << 20) - 7)) conv=notrunc status=none
nbdkit -U - memory 33M --run 'blk copy source.img "$uri" && blk copy "$uri" copied.img && nbdinfo --map --totals "$uri"' >totals.txt
expect_same source.img copied.img 'a copy to nbdkit and back'
expect_match "$(cat totals.txt)" ' 3 hole,zero$'
if [ "$(stat -c %b copied.img)" -gt 8000 ]; then fail "the copy is not sparse: $(stat -c %b copied.img) blocks"; fi
head -c 33M /dev/urandom >target.img # what the target held must go, also where the source has holes
nbdkit -U - file target.img --run 'blk copy --verify source.img "$uri"'
expect_same source.img target.img 'a copy over old data'
# Filters that take away what a client may like: no zero, no trim, no extents, no multi-conn, small requests, no flush.
for filters in '--filter=nozero' '--filter=nozero zeromode=notrim' '--filter=noextents' '--filter=nocache' '--filter=nofilter' \
  '--filter=blocksize-policy blocksize-error-policy=error blocksize-minimum=4096 blocksize-maximum=65536' \
  '--filter=noparallel' '--filter=multi-conn multi-conn-mode=disable' '--filter=fua fuamode=discard' '--filter=delay rdelay=1ms'; do
  head -c 33M /dev/zero | tr '\0' x >target.img
  # shellcheck disable=SC2086  # words
  set -- $filters
  filter=$1
  shift
  nbdkit -U - "$filter" file target.img "$@" --run 'blk copy source.img "$uri"' || fail "a copy with $filters"
  expect_same source.img target.img "a copy with $filters"
  rm -f copied.img
  nbdkit -U - "$filter" file target.img "$@" --run 'blk copy "$uri" copied.img' || fail "a copy from $filters"
  expect_same source.img copied.img "a copy from $filters"
done

# Real data, and a directory of exports.
nbdkit -U - data ' @32768 1 ' --run 'blk map "$uri"; blk dump "$uri" | tail -n 3' >out.txt
expect_equal "$(head -n 2 out.txt | tr -s ' ')" $' 0 32768 3 hole,zero\n 32768 1 0 data' 'the map of data'
mkdir disks
cp source.img disks/source
truncate -s 1M 'disks/two words'
background dir nbdkit -f -U dir.socket file dir=disks
wait_for_socket dir.socket
expect_equal "$(blk info --list --json 'nbd+unix:///?socket=dir.socket' | jq -c '[.exports[] | [."export-name", ."export-size"]] | sort')" \
  '[["source",34603008],["two words",1048576]]' 'blk info --list'
blk copy 'nbd+unix:///source?socket=dir.socket' out.img
expect_same source.img out.img 'a named export'
expect_equal "$(blk info --size 'nbd+unix:///two%20words?socket=dir.socket')" 1048576 'an export name with a space'
expect_status 1 blk info 'nbd+unix:///nothing?socket=dir.socket' 2>error.txt
expect_match "$(cat error.txt)" 'nothing'

# Handshakes of other times, and a server without structured replies.
# (nbdkit 1.32 with -o advertises what it then refuses, even to qemu: only read.)
for options in -n --no-sr --mask-handshake=0 '-t 1'; do
  # shellcheck disable=SC2086  # words
  nbdkit $options -U - memory 33M --run \
    'blk info "$uri" >info.txt && blk copy --verify source.img "$uri" && blk copy "$uri" copied.img' || fail "nbdkit $options"
  expect_same source.img copied.img "nbdkit $options"
done
nbdkit -o -U - file source.img --run 'blk info "$uri" >info.txt && blk copy "$uri" copied.img'
expect_same source.img copied.img 'nbdkit -o'
expect_match "$(cat info.txt)" '^protocol: oldstyle'
# TLS is required: a clear error, no hang.
mkdir psk
echo "someone:$(printf 'ab%.0s' {1..32})" >psk/keys
background tls nbdkit -f --tls=require --tls-psk=psk/keys -U tls.socket memory 1M
wait_for_socket tls.socket
expect_status 1 timeout 10 blk info 'nbd+unix:///?socket=tls.socket' 2>error.txt
expect_match "$(cat error.txt)" 'TLS'

# Servers that fail: the status is 1, the message says where.
expect_status 1 nbdkit -U - --filter=error file source.img error-pread-rate=1 --run 'blk hash "$uri"' 2>error.txt
expect_match "$(cat error.txt)" 'blk hash: error: .*Input/output error'
expect_status 1 nbdkit -U - --filter=error memory 64M error-pwrite-rate=1 --run 'blk copy source.img "$uri"' 2>error.txt
expect_match "$(cat error.txt)" 'blk copy: error: .*Input/output error'
expect_status 1 nbdkit -U - --filter=error memory 64M error-zero-rate=1 --run 'blk copy source.img "$uri"' 2>error.txt
expect_status 1 nbdkit -U - --filter=error file source.img error-pread-rate=1 --run 'blk copy "$uri" null:' 2>error.txt
