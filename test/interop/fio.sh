#!/bin/bash
# fio's nbd engine: four jobs write at random and verify what they read, on a RAM disk, a file and a compressed RAM disk.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed fio jq
skip_unless "fio with the nbd engine" sh -c 'fio --enghelp | grep -qw nbd'

cat >fio.sh <<'END'
fio --output-format=json --name=verify --ioengine=nbd --uri="$uri" --numjobs=4 --rw=randrw --bsrange=512-64k --blockalign=512 \
  --iodepth=16 --size=16M --offset_increment=16M --verify=xxhash --verify_fatal=1 --do_verify=1 --fsync=64 \
  --group_reporting --output=fio.json >&2
END
truncate -s 64M disk.img
for disk in 'memory 64M' 'memory 64M -t 1' 'file disk.img' 'memory 64M allocator=zstd' 'memory 64M allocator=malloc' \
  'memory 64M --no-sr'; do
  # shellcheck disable=SC2086  # words
  blk serve $disk --run 'sh fio.sh' || fail "fio on $disk: $(cat fio.json)"
  # That it did what was asked: four jobs, all bytes written and read, no error.
  expect_equal "$(jq -c '[.jobs[0].error, (.jobs[0].write.total_ios > 800), (.jobs[0].read.total_ios > 800)]' fio.json)" \
    '[0,true,true]' "fio on $disk"
done

# That fio notices: a server that forgets what is written fails the verification.
if blk serve null 64M --run 'sh fio.sh' 2>error.txt; then fail 'fio verifies nothing'; fi
