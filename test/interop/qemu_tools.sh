#!/bin/bash
# qemu's tools as the clients of `blk serve`: info, map, compare, convert, dd, and qemu-io's patterns with verification.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed qemu-img qemu-io jq

# A disk with data, holes and an end that is no multiple of anything.
truncate -s 9000001 source.img
head -c 300000 /dev/urandom | dd of=source.img bs=65536 seek=16 conv=notrunc status=none
head -c 1 /dev/urandom | dd of=source.img bs=1 seek=9000000 conv=notrunc status=none

cat >read.sh <<'END'
set -eu
qemu-img info --output=json -f raw "$uri" >info.json
qemu-img map --output=json -f raw "$uri" >map.json
qemu-img compare -f raw -F raw "$uri" source.img
qemu-img convert -f raw -O qcow2 "$uri" copied.qcow2
qemu-img dd -f raw -O raw bs=64k if="$uri" of=copied.img
END
blk serve -r file source.img --run 'sh read.sh' >out.txt
expect_match "$(cat out.txt)" 'Images are identical'
# qemu counts in sectors of 512 bytes.
expect_equal "$(jq '."virtual-size"' info.json)" 9000448 'the size that qemu-img tells'
expect_equal "$(jq -c '[.[] | [.start, .length, .data, .zero]] | .[0:3]' map.json)" \
  '[[0,1048576,false,true],[1048576,303104,true,false],[1351680,7647232,false,true]]' 'qemu-img map'
qemu-img compare -f qcow2 -F raw copied.qcow2 source.img || fail 'qemu-img convert copied wrongly'
cmp -n 9000001 copied.img source.img || fail 'qemu-img dd copied wrongly'
cp --sparse=always source.img changed.img
printf x | dd of=changed.img bs=1 seek=5000000 conv=notrunc status=none
expect_status 1 blk serve file changed.img --run 'qemu-img compare -f raw -F raw "$uri" source.img'

# Written by qemu-img; what the target held before is gone. A server that compares takes its own content and no other.
head -c 9000960 /dev/urandom >target.img
blk serve file target.img --run 'qemu-img convert -n -f raw -O raw source.img "$uri"'
cmp -n 9000001 target.img source.img || fail 'qemu-img convert -n wrote wrongly'
blk serve memory 9000960 --run 'qemu-img convert -n -f raw -O raw source.img "$uri" && qemu-img compare -f raw -F raw "$uri" source.img'
blk serve sparse-random 2G --run 'qemu-img convert -n -f raw -O raw "$uri" "$uri"'
blk serve -U seven sparse-random 100M seed=7 --run 'blk serve sparse-random 100M seed=8 --run "
  qemu-img convert -n -f raw -O raw nbd+unix:///?socket=$unixsocket \"\$uri\"" || exit 9' >/dev/null 2>error.txt &&
  fail 'qemu-img wrote the content of another seed'
expect_match "$(cat error.txt)" 'Input/output error'

# A qcow2 image inside an export: qemu formats the export, which it can because blk serves any size of request.
cat >qcow2.sh <<'END'
set -eu
qemu-img create -q -f qcow2 "$uri" 64M
qemu-io -f qcow2 -c 'write -P 0x5a 1M 3M' -c 'write -z 2M 64k' -c 'discard 3M 1M' "$uri"
qemu-img check -f qcow2 "$uri"
qemu-io -r -f qcow2 -c 'read -P 0x5a 1M 1M' -c 'read -P 0 2M 64k' -c 'read -P 0 3M 1M' "$uri"
END
for disk in 'memory 128M' 'file qcow2.img'; do
  truncate -s 128M qcow2.img
  # shellcheck disable=SC2086  # words
  blk serve $disk --run 'sh qcow2.sh' >out.txt || fail "qcow2 on $disk: $(cat out.txt)"
  if grep -q 'verification failed' out.txt; then fail "qcow2 on $disk: $(cat out.txt)"; fi
done

# Patterns: written, zeroed, discarded, flushed, several at a time; each read back. qemu-io's exit status tells.
cat >patterns.sh <<'END'
set -eu
qemu-io -t none -f raw "$uri" \
  -c 'write -P 1 0 8M' -c 'write -f -P 2 1M 64k' -c 'write -z 2M 1M' -c 'write -z -u 4M 1M' -c 'write -z -n 6M 64k' \
  -c 'discard 7M 64k' -c 'aio_write -P 3 8M 1M' -c 'aio_write -P 4 9M 1M' -c 'aio_write -P 5 10M 1M' -c 'aio_flush' \
  -c 'flush' -c 'writev -P 6 12M 512 1024 4096' \
  -c 'read -P 1 0 1M' -c 'read -P 2 1M 64k' -c 'read -P 1 1088k 960k' -c 'read -P 0 2M 1M' -c 'read -P 1 3M 1M' \
  -c 'read -P 0 4M 1M' -c 'read -P 0 6M 64k' -c 'read -P 3 8M 1M' -c 'read -P 4 9M 1M' -c 'read -P 5 10M 1M' \
  -c 'read -P 6 12M 5632' -c 'read -P 0 15M 1M'
if qemu-io -f raw "$uri" -c 'read -P 9 0 512'; then echo 'qemu-io checks nothing' && exit 9; fi
END
for disk in 'memory 16M' 'file patterns.img' 'memory 16M --no-sr' 'memory 16M --no-extended-headers' 'memory 16M -t 1'; do
  rm -f patterns.img
  truncate -s 16M patterns.img
  # shellcheck disable=SC2086  # words
  blk serve $disk --run 'sh patterns.sh' >out.txt 2>&1 || fail "patterns on $disk: $(cat out.txt)"
done
