#!/bin/bash
# The old clients and the old handshake: nbd-client lists exports, libnbd and qemu speak oldstyle, handshake flags are masked.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed nbd-client nbdinfo nbdcopy qemu-io jq

mkdir disks
truncate -s 1M disks/one disks/two 'disks/größe'
port=$(free_port)
background server blk serve -p "$port" file dir=disks
wait_for_port "$port"
nbd-client -l 127.0.0.1 "$port" >out.txt
expect_equal "$(grep -v '^Negotiation' out.txt | sort)" $'größe\none\ntwo' 'nbd-client -l'
# nbd-client has no kernel driver to hand the connection to here, but negotiates first and tells what it got.
if ! nbd-client -N two 127.0.0.1 "$port" /dev/nbd0 >out.txt 2>&1; then :; fi
nbdinfo --size "nbd://127.0.0.1:$port/two" >/dev/null

cat >io.sh <<'END'
set -eu
nbdinfo --json "$uri" >info.json
qemu-io -f raw "$uri" -c 'write -P 7 4096 1M' -c 'read -P 7 4096 1M' -c 'read -P 0 2M 1M' -c flush >/dev/null
nbdcopy "$uri" copied.img
END
# Oldstyle: no options, no structured replies, no list; everything else works. nbdinfo must be told nothing.
port=$(free_port)
truncate -s 4M oldstyle.img
blk serve -o -p "$port" file oldstyle.img --run "uri=nbd://127.0.0.1:$port sh io.sh"
expect_equal "$(jq -c '[.protocol, .structured, .exports[0]."export-size"]' info.json)" '["oldstyle",false,4194304]' \
  'nbdinfo of an oldstyle server'
expect_same copied.img oldstyle.img 'nbdcopy from an oldstyle server'
expect_match "$(blk serve -o memory 1M --run 'blk info "$uri"')" 'protocol: oldstyle'
blk serve -o sparse-random 64M --run 'blk copy "$uri" "$uri"'
expect_equal "$(blk serve -o memory 1M --run 'blk info --list --json "$uri"' | jq -c '[.protocol, (.exports | length)]')" \
  '["oldstyle",1]' 'the one export of an oldstyle server'

# Handshake flags masked: 0 is a server of 2010 without fixed newstyle, 2 without fixed.
for mask in 0 1 2 3; do
  truncate -s 0 oldstyle.img
  truncate -s 4M oldstyle.img
  blk serve --mask-handshake=$mask file oldstyle.img --run 'sh io.sh'
  expect_same copied.img oldstyle.img "nbdcopy with --mask-handshake=$mask"
  expected='newstyle'
  if [ $((mask & 1)) = 1 ]; then expected=newstyle-fixed; fi
  expect_equal "$(jq -r .protocol info.json)" $expected "the protocol with --mask-handshake=$mask"
  blk serve --mask-handshake=$mask sparse-random 64M --run 'blk copy "$uri" "$uri" && blk map --totals "$uri"' >out.txt
done
expect_match "$(blk serve --no-sr memory 1M --run 'blk info "$uri"')" 'using simple packets'
expect_match "$(blk serve --no-sr memory 1M --run 'nbdinfo "$uri"')" 'using simple packets'
