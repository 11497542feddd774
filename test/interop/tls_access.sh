#!/bin/bash
# Who may connect, and how much: the filters of access used over TLS, which is required.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed nbdinfo nbdcopy psktool jq

psktool -u alice -p keys.psk >/dev/null 2>&1
secure="nbds+unix://alice@/?socket=\$unixsocket&tls-psk-file=$PWD/keys.psk"
serve() { timeout 60 blk serve --tls=require --tls-psk=keys.psk "$@"; }

# ip: who is refused does not even get as far as TLS.
serve --filter=ip memory 1M allow=anyunix deny=all --run "nbdinfo --size \"$secure\"" >/dev/null
expect_status 1 serve --filter=ip memory 1M deny=all --run "blk info \"$secure\"" 2>error.txt

# limit: the second of two clients is refused, the third, after both, is not.
serve --filter=limit memory 1M limit=1 --run "
  blk bench -s 1 \"$secure\" >/dev/null & sleep 0.4
  if blk info \"$secure\" >/dev/null 2>&1; then exit 9; fi
  wait; sleep 0.2; blk info \"$secure\" >/dev/null" 2>error.txt || fail "limit: $(cat error.txt)"

# rate: 8 Mbit/s with a quarter of a second saved up: 2 MiB take about two seconds, of the disk's bytes, not those of TLS.
blk copy random:2M random.img
begin=$(date +%s%N)
serve --filter=rate file random.img rate=8M burstiness=0.25 --run "nbdcopy \"$secure\" copied.img"
expect_same random.img copied.img 'a copy at a limited rate'
milliseconds=$((($(date +%s%N) - begin) / 1000000))
if [ $milliseconds -lt 1500 ]; then fail "2 MiB at 8 Mbit/s took $milliseconds ms"; fi

# protect and readonly.
write() { echo "blk bench -w 100 -n 10 -b 512 --length=4K \"$secure\""; }
serve --filter=protect memory 1M protect=4096- --run "$(write)" >/dev/null
expect_status 1 serve --filter=protect memory 1M protect=0-4095 --run "$(write)" >/dev/null 2>error.txt
serve --filter=readonly memory 1M --run "nbdinfo --is read-only \"$secure\""
expect_status 1 serve --filter=readonly memory 1M --run "$(write)" >/dev/null 2>error.txt

# time-limit: a client that stays too long is sent away, and others are let in afterwards.
serve --filter=time-limit memory 1M time-limit=1 --run "
  if blk bench -s 20 \"$secure\" >/dev/null 2>&1; then exit 9; fi
  blk info \"$secure\" >/dev/null" 2>error.txt || fail "time-limit: $(cat error.txt)"

# tls-fallback: the real disk only over TLS.
fallback() { timeout 60 blk serve --tls=on --tls-psk=keys.psk --filter=tls-fallback memory 2M "$@"; }
expect_equal "$(fallback --run "blk info --size \"$secure\"")" 2097152 'the disk over TLS'
size=$(fallback --run 'blk info --size "$uri"')
if [ "$size" -ge 65536 ]; then fail "a client without TLS gets a disk of $size bytes"; fi
expect_match "$(fallback --run 'nbdcopy "$uri" -')" 'TLS'

# ip: by the names in a client's certificate.
blk tls init pki >/dev/null
named() {
  timeout 60 blk serve --tls=require --tls-certificates=pki --tls-verify-peer --filter=ip memory 1M "$@" deny=all \
    --run 'nbdinfo --size "$uri"'
}
subject=$(openssl x509 -in pki/client-cert.pem -noout -subject -nameopt RFC2253 | cut -d= -f2-)
expect_equal "$(named "allow=dn:$subject")" 1048576 'a client whose certificate names it'
expect_equal "$(named 'allow=issuer-dn:CN=*')" 1048576 'a client whose certificate names its issuer'
expect_status 1 named allow=dn:CN=nobody,O=else >/dev/null 2>error.txt
