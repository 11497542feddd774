#!/bin/bash
# Sources and targets of `blk copy` that are written in other ways than a path or a URI: partitions, parameters with
# percent signs, names that need `./`, and the digests of what came out.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed sfdisk

truncate -s 8M disk.img
printf 'label: dos\nstart=2048, size=2048, type=83\nstart=6144, size=4096, type=83\n' | sfdisk -q disk.img
head -c 2M /dev/urandom >content
dd if=content of=disk.img bs=512 seek=6144 conv=notrunc status=none

blk copy 'partition(partition=2)+disk.img' part2.img
expect_same part2.img content 'the second partition'
blk copy 'partition(partition=2)+file(file=./disk.img)' - | cmp - content
blk copy 'offset(offset=3M,range=2M)+disk.img' range.img
expect_same range.img content 'a range of the disk'
# A partition as the target: what is around it stays.
cp disk.img target.img
blk copy ./content 'partition(partition=2)+target.img'
expect_same target.img disk.img 'the disk whose partition was written'
expect_status 1 blk copy ./content 'partition(partition=1)+target.img' 2>error.txt
expect_match "$(cat error.txt)" 'too small'
expect_same target.img disk.img 'the disk whose partition was too small'

# Bytes that the grammar of parameters would take are written as %XX; in a path they are themselves.
cp content 'a,b(c)%20.img'
blk copy 'file(file=a%2Cb%28c%29%2520.img)' one.img
expect_same one.img content 'a file by its encoded name'
blk copy './a,b(c)%20.img' two.img
expect_same two.img content 'a file by its path'
blk copy content.img three.img 2>/dev/null && fail 'a file that is not there was copied'
expect_status 1 blk copy 'file(file=a%2.img)' null: 2>error.txt
expect_match "$(cat error.txt)" '%'
blk serve -U "$tmp/so,ck" file content --run "blk copy 'nbd(socket=$tmp/so%2Cck)' four.img"
expect_same four.img content 'through a socket with a comma in its name'

# Empty parentheses are no parameters.
expect_equal "$(blk info --size 'random:64K()')" 65536 'blk info --size'

# One digest for one content, wherever it comes from.
digest=$(blk hash ./content)
expect_equal "$(blk hash - <content)" "$digest" 'the digest of standard input'
expect_equal "$(cat content | blk hash -)" "$digest" 'the digest of a pipe'
expect_equal "$(blk hash 'partition(partition=2)+disk.img')" "$digest" 'the digest of a partition'
expect_equal "$(blk copy disk.img - | blk hash -)" "$(blk hash disk.img)" 'the digest of a sparse disk from a pipe'
expect_equal "$(blk hash - </dev/null)" "$(blk hash null:0)" 'the digest of nothing'
