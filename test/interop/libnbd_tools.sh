#!/bin/bash
# libnbd's command line tools against `blk serve`: nbdinfo in every form, nbddump, nbdcopy.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed nbdinfo nbdcopy nbddump jq

# The same questions in words, as JSON and as exit statuses.
cat >memory.sh <<'END'
set -eu
nbdinfo "$uri" >info.txt
nbdinfo --json "$uri" >info.json
nbdinfo --list --json "$uri" >list.json
nbdinfo --size "$uri" >size.txt
nbdinfo --map "$uri" >map.txt
nbdinfo --map --totals "$uri" >totals.txt
for what in read zero trim flush fua fast-zero cache df multi-conn connect structured-reply write; do
  nbdinfo --can "$what" "$uri" || { echo "cannot $what" && exit 1; }
done
for what in read-only rotational tls; do
  if nbdinfo --is "$what" "$uri"; then echo "is $what" && exit 1; fi
done
END
blk serve memory 3M --run 'sh memory.sh'
expect_match "$(cat info.txt)" 'export-size: 3145728 \(3M\)'
expect_match "$(cat info.txt)" 'protocol: newstyle-fixed without TLS, using structured packets'
expect_equal "$(jq -c '.exports[0] | [."export-size", .contexts, .is_read_only, .can_df, .block_size_minimum]' info.json)" \
  '[3145728,["base:allocation"],false,true,1]' 'nbdinfo --json'
expect_equal "$(jq -c '[.structured, (.exports | length), .exports[0]."export-name"]' list.json)" '[true,1,""]' 'nbdinfo --list'
expect_equal "$(cat size.txt)" 3145728 'nbdinfo --size'
expect_equal "$(tr -s ' ' <map.txt)" ' 0 3145728 3 hole,zero' 'nbdinfo --map'
expect_equal "$(tr -s ' ' <totals.txt)" ' 3145728 100.0% 3 hole,zero' 'nbdinfo --map --totals'

# Read only: told, and nothing that writes is offered.
blk serve -r memory 1M --run 'nbdinfo --is read-only "$uri"'
for what in write trim zero fua; do
  expect_status 2 blk serve -r memory 1M --run "nbdinfo --can $what \"\$uri\""
done

# A directory of exports.
mkdir disks
truncate -s 1M disks/one
truncate -s 2M 'disks/two words'
truncate -s 3M 'disks/größe'
blk serve file dir=disks --run 'nbdinfo --list --json "$uri"' >list.json
expect_equal "$(jq -c '[.exports[] | [."export-name", ."export-size"]] | sort' list.json)" \
  '[["größe",3145728],["one",1048576],["two words",2097152]]' 'the exports of a directory'
blk serve -e 'two words' file dir=disks --run 'nbdinfo --size "$uri"; printf "%s\n" "$exportname"' >size.txt
expect_equal "$(cat size.txt)" $'2097152\ntwo words' 'an export chosen by -e'
blk serve -e 'größe' file dir=disks --run 'nbdinfo --size "$uri"' >size.txt
expect_equal "$(cat size.txt)" 3145728 'an export with a name in UTF-8'
expect_status 1 blk serve -e 'four' file dir=disks --run 'nbdinfo --size "$uri"' 2>error.txt
expect_match "$(cat error.txt)" 'four'

# nbddump of a pattern, with offsets and a hole.
blk serve pattern 64 --run 'nbddump "$uri"' >dump.txt
expect_match "$(head -n 1 dump.txt)" '^0+: 00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 08 '
expect_equal "$(wc -l <dump.txt)" 4 'the lines of nbddump'

# nbdcopy from, to, and between; a copy of a disk to itself compares, another seed is noticed.
truncate -s 5M source.img
printf 'begin' | dd of=source.img conv=notrunc status=none
head -c 100000 /dev/urandom | dd of=source.img bs=1 seek=1234567 conv=notrunc status=none
printf 'end' | dd of=source.img bs=1 seek=5242877 conv=notrunc status=none
blk serve file source.img --run 'nbdcopy "$uri" copied.img'
expect_same source.img copied.img 'the copy by nbdcopy'
if [ "$(stat -c %b copied.img)" -gt 600 ]; then fail "nbdcopy got no holes: $(stat -c %b copied.img) blocks"; fi
blk serve memory 5M --run 'nbdcopy source.img "$uri" && nbdcopy "$uri" copied.img && nbdinfo --map --totals "$uri"' >totals.txt
expect_same source.img copied.img 'there and back'
expect_match "$(cat totals.txt)" ' 3 hole,zero$'
blk serve sparse-random 8G --run 'nbdcopy "$uri" "$uri"'
blk serve -U seven sparse-random 1G seed=7 --run 'echo "$uri" >seven.uri; blk serve sparse-random 1G seed=8 --run "nbdcopy \"\$(cat seven.uri)\" \"\$uri\""' \
  >/dev/null 2>error.txt && fail 'nbdcopy wrote the content of another seed'
expect_match "$(cat error.txt)" 'Input/output error'
for options in --synchronous --no-extents --connections=1 --threads=1 '--requests=1 --request-size=4096' \
  '--request-size=33554432 --queue-size=100000000' '--sparse=512 --flush' --allocated --destination-is-zero; do
  rm -f target.img
  truncate -s 5M target.img
  blk serve file target.img --run "nbdcopy $options source.img \"\$uri\""
  expect_same source.img target.img "nbdcopy $options"
done
