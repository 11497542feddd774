#!/bin/bash
# The filters beside nbdkit's own: the same words on both command lines, the same command run against both servers,
# and then the same output, exit status and image.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed nbdkit nbdcopy nbdinfo qemu-io sfdisk sgdisk jq

cases=0 different=0

# same WHAT COMMAND WORDS...: WORDS follow the options; disk.img is made anew from $image before each run, and what is
# in it afterwards is compared, too.
image=plain.img
same() {
  local what=$1 command=$2
  shift 2
  outcome 'blk serve' "$command" "$@"
  for _ in 1 2 3; do # on a busy machine nbdkit is late at times: it is asked again, blk is not
    outcome nbdkit "$command" "$@"
    ! cmp -s nbdkit.out blk.out || break
  done
  if ! cmp -s nbdkit.out blk.out; then
    cat nbdkit.err blk.err >&2
    diff nbdkit.out blk.out >&2 || true
    echo "$what: not the same (<: nbdkit, >: blk): $*" >&2
    different=$((different + 1))
  fi
  cases=$((cases + 1))
}

# outcome PROGRAM COMMAND WORDS...: one side of a case, in nbdkit.out or blk.out.
outcome() {
  local program=$1 command=$2 status=0
  shift 2
  cp --sparse=always "$image" disk.img
  rm -f log stats
  # shellcheck disable=SC2086  # `blk serve` is two words
  timeout 60 $program -U - "$@" --run "$command" >"${program%% *}.out" 2>"${program%% *}.err" || status=$?
  { echo "exit status $status" && sha256sum <disk.img; } >>"${program%% *}.out"
}

# shellcheck disable=SC2016  # all of these expand $uri later
{
  bytes='nbdcopy "$uri" - | sha256sum'
  size='nbdinfo --size "$uri"'
  # Zeroed blocks are a hole to lseek only as long as no page of them is in the cache, where a busy ext4 leaves some.
  map='sync disk.img; dd of=disk.img oflag=nocache conv=notrunc count=0 status=none; nbdinfo --map "$uri"'
  contents="$map"'; nbdcopy "$uri" - | sha256sum; nbdinfo --size "$uri"'
  facts='nbdinfo --json --no-content "$uri" |
    jq -c ".exports[] | with_entries(select(.key | test(\"^(is_read|can_flush|can_trim|can_multi|can_cache|can_fua|export-size)\")))"'
  fails='nbdinfo --size "$uri" 2>/dev/null'
  names='nbdinfo --list --json "$uri" | jq -c "[.exports[] | [.[\"export-name\"], .description, .[\"export-size\"]]]"'
}
# qemu-io prints how long things took.
io() {
  local command='qemu-io -f raw' step
  for step; do command+=" -c '$step'"; done
  # shellcheck disable=SC2016
  printf '%s "$uri" | grep -vE "ops;|bytes at offset" || true' "$command"
}

# ---- Disks

seq 1 300000 >text
# put IMAGE OFFSET BYTES: some text.
put() { head -c "$3" text | dd of="$1" bs=64k seek="$2" oflag=seek_bytes conv=notrunc status=none; }

truncate -s 4M plain.img
put plain.img 12288 200000
put plain.img 1228800 100000

truncate -s 8M mbr.img
sfdisk -q mbr.img <<'TABLE'
label: dos
start=64, size=2048, type=83
start=2200, size=100, type=82
start=4096, size=9000, type=5
start=4160, size=500, type=83
start=5000, size=77, type=83
start=6000, size=3000, type=83
TABLE
put mbr.img 65536 1000000
put mbr.img 2129920 260000

truncate -s 8M gpt.img
sgdisk gpt.img -n 1:2048:+1M -c 1:boot -n 3:8192:+1M -c '3:root fs' >/dev/null
put gpt.img 1048576 1500000
put gpt.img 4194400 20000

# ---- offset

same 'a window' "$contents" --filter=offset file disk.img offset=10000 range=1M
same 'a window to the end' "$contents" --filter=offset file disk.img offset=4000000
same 'a window of nothing' "$size" --filter=offset file disk.img offset=1 range=0
same 'facts of a window' "$facts" --filter=offset file disk.img offset=1M
same 'a window beyond the end' "$fails" --filter=offset file disk.img offset=5M
same 'a window that is too long' "$fails" --filter=offset file disk.img offset=1M range=4M
same 'writing into a window' "$(io 'write -P 5 0 10k' 'write -z 100k 64k' 'read -P 5 0 10k')" \
  --filter=offset file disk.img offset=12345 range=1M
if cmp -s plain.img disk.img; then fail 'nothing was written: the cases with qemu-io show nothing'; fi

# ---- partition

image=mbr.img
for number in 1 2 5 6 7; do
  same "MBR partition $number" "$contents" --filter=partition file disk.img partition=$number
done
for number in 3 4 8; do
  same "no MBR partition $number" "$fails" --filter=partition file disk.img partition=$number
done
same 'writing into a partition' "$(io 'write -P 9 1k 10k')" --filter=partition file disk.img partition=5
image=gpt.img
for number in 1 3; do
  same "GPT partition $number" "$contents" --filter=partition file disk.img partition=$number
done
for number in 2 4 128 129; do
  same "no GPT partition $number" "$fails" --filter=partition file disk.img partition=$number
done
same 'no partition 0' "$size" --filter=partition file disk.img partition=0 2>/dev/null
image=plain.img
same 'no partition table' "$fails" --filter=partition file disk.img partition=1

# What nbdkit cannot do: names, and the backup of a damaged table.
expect_equal "$(blk copy 'partition(partition=boot)+gpt.img' - | sha256sum)" \
  "$(dd if=gpt.img bs=1M skip=1 count=1 status=none | sha256sum)" 'a partition by its name'
cp gpt.img damaged.img
dd if=/dev/zero of=damaged.img bs=512 seek=1 count=5 conv=notrunc status=none
expect_equal "$(blk copy 'partition(partition=root%20fs)+damaged.img' - | sha256sum)" \
  "$(dd if=gpt.img bs=512 skip=8192 count=2048 status=none | sha256sum)" 'a partition of the backup table'

# ---- cow

for block in 4K 64K 1M; do
  same "cow, blocks of $block" "$(io 'write -P 1 100 5000' 'write -P 2 200k 300k' 'discard 1M 1M' 'flush'); $contents" \
    --filter=cow file disk.img cow-block-size=$block
  same "cow, zeroes, blocks of $block" "$(io 'write -P 3 0 2M' 'write -z 10k 1M' 'read -P 0 10k 1M'); $bytes" \
    --filter=cow file disk.img cow-block-size=$block
done
same 'cow leaves alone what it is over' "$contents" --filter=cow file disk.img
same 'cow-on-read' "$contents; $bytes" --filter=cow file disk.img cow-on-read=true
same 'cow of a size that is no multiple of anything' "$(io 'write -P 3 1000000 1'); $bytes" \
  --filter=cow --filter=offset file disk.img range=1000001
same 'facts of cow' "$facts" --filter=cow file disk.img
same 'facts of cow, read-only' "$facts" -r --filter=cow file disk.img
same 'cow over a partition' "$(io 'write -P 1 0 1M'); $bytes" --filter=cow --filter=partition file mbr.img partition=7
same 'a partition of cow' "$(io 'write -P 1 0 1M'); $bytes" --filter=partition --filter=cow file mbr.img partition=7
for bad in 3K 2K 4G; do
  same "a cow-block-size of $bad" true --filter=cow file disk.img cow-block-size=$bad
done

# ---- cache

# Without asking for extents: nbdkit tells those of the disk below, even where the cache has newer bytes. And with
# cache=unsafe and a limit it loses bytes, so that is tried with blk alone, in the unit tests.
all='nbdsh -u "$uri" -c "import hashlib; print(hashlib.sha256(h.pread(h.get_size(), 0)).hexdigest())"'
some_io="$(io 'write -P 1 100 5000' 'write -P 2 200k 300k' 'write -P 9 1300000 700' 'read -P 1 100 5000' 'flush')"
zero_io="$(io 'write -P 3 0 2M' 'write -z 10k 1M' 'read -P 0 10k 1M' 'write -P 4 100k 10' 'discard 3M 200k')"
for mode in writeback writethrough unsafe; do
  for more in '' cache-on-read=true 'cache-min-block-size=4K cache-max-size=1M' 'cache-min-block-size=1M'; do
    case $mode$more in unsafe*max-size*) continue ;; esac
    # shellcheck disable=SC2086
    same "cache=$mode $more" "$some_io; $all; $size; $all" --filter=cache file disk.img cache=$mode $more
    # shellcheck disable=SC2086
    same "cache=$mode $more, zeroes" "$zero_io; $all; $all" --filter=cache file disk.img cache=$mode $more
  done
  same "facts of cache=$mode" "$facts" --filter=cache file disk.img cache=$mode
  same "facts of cache=$mode, read-only" "$bytes; $facts" -r --filter=cache file disk.img cache=$mode
  same "cache=$mode of another size" "$(io 'write -P 3 1000000 1'); $all" --filter=cache --filter=offset file disk.img \
    range=1000001 cache=$mode
done
same 'cache: extents of what was not changed' "$contents" --filter=cache file disk.img cache-on-read=true
same 'cache: prefetching' 'nbdsh -u "$uri" -c "h.cache(1000000, 0); h.cache(1, 1500000)"; nbdcopy "$uri" - | sha256sum' \
  --filter=cache file disk.img
same 'cache: a flush brings it down' \
  'nbdsh -u "$uri" -c "h.pwrite(b\"x\" * 5000, 77777)"; sha256sum <disk.img; nbdsh -u "$uri" -c "h.flush()"; sha256sum <disk.img' \
  --filter=cache file disk.img cache=writethrough
# While the client is there, what it wrote is not below before it flushes; with FUA it is at once.
hold='nbdsh -u "$uri" -c "import hashlib" -c "sum = lambda: print(hashlib.sha256(open(\"disk.img\", \"rb\").read()).hexdigest())"'
hold+=' -c "h.pwrite(b\"x\" * 65536, 65536); sum()" -c "h.pwrite(b\"y\" * 4096, 1 << 20, nbd.CMD_FLAG_FUA)"'
same 'cache: what is below before a flush' "$hold -c 'h.flush(); sum()'" --filter=cache file disk.img
same 'cache=unsafe: nothing is below after a flush' "$hold -c 'h.flush(); sum()'" --filter=cache file disk.img cache=unsafe
for bad in cache=foo cache-min-block-size=3K cache-min-block-size=2K cache-min-block-size=4G cache-max-size=640K \
  cache-high-threshold=0 cache-low-threshold=95 'cache-max-size=1M cache-low-threshold=95' cache-on-read=foo; do
  # shellcheck disable=SC2086
  same "cache: $bad" true --filter=cache file disk.img $bad
done

# ---- readahead and scan

for filters in '--filter=readahead' '--filter=readahead --filter=cache' '--filter=scan' '--filter=scan --filter=cache' \
  '--filter=readahead --filter=cow cow-on-cache=true' '--filter=scan --filter=cow cow-on-cache=true'; do
  words=() options=()
  for word in $filters; do case $word in --*) options+=("$word") ;; *) words+=("$word") ;; esac; done
  same "$filters" "$bytes; $size; $(io 'write -P 1 100 5000' flush); $bytes" "${options[@]}" file disk.img "${words[@]}"
  same "facts of $filters" "$facts" "${options[@]}" file disk.img "${words[@]}"
done
for words in scan-ahead=false scan-clock=false scan-forever=true scan-size=64K; do
  same "scan $words" "$bytes; $bytes" --filter=scan --filter=cache file disk.img $words
done
for bad in scan-size=3K scan-size=256 scan-size=64M scan-ahead=foo; do
  same "scan: $bad" true --filter=scan file disk.img $bad
done

# ---- tls-fallback, for those without TLS

same 'tls-fallback' "$contents; $facts; $names" --filter=tls-fallback file disk.img
same 'tls-fallback with a message' "$contents" --filter=tls-fallback file disk.img tlsreadme='not without TLS'
same 'tls-fallback with one connection' true --filter=tls-fallback --filter=noparallel file disk.img serialize=connections

# ---- delay, error, rate

same 'delay' "$contents" --filter=delay file disk.img rdelay=1ms wdelay=1ms
same 'facts of delay' "$facts" --filter=delay file disk.img rdelay=1ms
for words in '' error-rate=100% 'error-rate=1 error=ENOSPC' 'error-pread-rate=1 error-pread=EPERM' 'error-pwrite-rate=1' \
  'error-rate=1 error-file=/nonexistent'; do
  # shellcheck disable=SC2086
  same "error $words" "$(io 'read 0 512' 'write 0 512')" --filter=error file disk.img $words
done
same 'error: no such errno' true --filter=error file disk.img error=EFOO
same 'error: no such rate' true --filter=error file disk.img error-rate=2
same 'rate' "$contents" --filter=rate file disk.img rate=1G connection-rate=1G
same 'rate 0' true --filter=rate file disk.img rate=0

# ---- log and stats

# That a client has left is written a little later.
# shellcheck disable=SC2016
log='sed -E -e "/ Disconnect /d" -e "s/^.{26} //" -e "s/ (min|pref|max)size=[^ ]*| rotational=.| zero=.*//g" log'
same 'log' "$(io 'read 0 64k' 'write -P 3 4k 8k' 'write -z 64k 64k' 'discard 128k 64k' flush); nbdinfo --size \"\$uri\"; $log" \
  --filter=log file disk.img logfile=log
same 'log of failures' "$(io 'read 0 64k'); $log" --filter=log --filter=error file disk.img logfile=log error-rate=1
same 'log of lists' "nbdinfo --list \"\$uri\" >/dev/null; $log" --filter=log file disk.img logfile=log
# The script goes on after the server has ended, so that the table is there.
for program in nbdkit 'blk serve'; do
  # shellcheck disable=SC2086
  $program -U - --filter=stats file plain.img statsfile="${program%% *}.stats" statsthreshold=0 \
    --run "$(io 'read 0 64k' 'read 64k 64k' 'write -P 3 4k 8k' flush)"
  sed -i -E -e 's/, [0-9.]+ s,/, TIME,/' -e 's/, [^,]*\/s.*//' "${program%% *}.stats"
done
expect_same nbdkit.stats blk.stats 'the table of stats'

# ---- exportname and retry

printf '0 + 1\n0 0x100000 +\n0x100000 0x1000 -\n0x101000 0x2ff000 +\n' >map
mkdir dir
cp plain.img dir/one
cp gpt.img dir/two
same 'the default export is another' "$contents" --filter=exportname file dir=dir default-export=two
for list in keep empty explicit; do
  same "list of exports: $list" "$names" --filter=exportname file file=disk.img exportname-list=$list exportname=a exportname=b
done
same 'list of exports: the default' "$names" --filter=exportname file dir=dir exportname-list=defaultonly default-export=two
same 'list of exports: refused' "$names" --filter=exportname file disk.img exportname-list=error
same 'descriptions: fixed' "$names" --filter=exportname file dir=dir exportdesc=fixed:hello exportname-list=explicit exportname=one
# shellcheck disable=SC2016
same 'descriptions: by a script' "$names" --filter=exportname file dir=dir exportname-list=explicit exportname=one \
  exportdesc='script:echo "this is $name"; echo really'
same 'strict' "$fails" --filter=exportname file disk.img exportname-strict=true exportname=a
same 'strict, permitted' "$size" --filter=exportname file disk.img exportname-strict=true exportname=
same 'no such list' true --filter=exportname file disk.img exportname-list=foo
same 'retry' "$contents" --filter=retry file disk.img
same 'facts of retry' "$facts" --filter=retry file disk.img
same 'retry without success' "$(io 'read 0 512')" --filter=retry --filter=error file disk.img error-rate=1 \
  retries=1 retry-delay=1
same 'retry with success in the end' "(sleep 0.5; rm go) & $(io 'read -P 0 0 512')" --filter=retry --filter=error \
  file disk.img error-rate=1 "error-file=$tmp/go" retry-delay=1 retries=3
same 'retry-delay 0' true --filter=retry file disk.img retry-delay=0

# ---- Another shape

image=plain.img
for words in truncate=1M truncate=8M round-up=1M round-down=1M; do
  same "truncate $words" "$contents" --filter=truncate file disk.img $words
done
same 'writing after the end' "$(io 'write -P 0 4M 64k' 'write -P 1 4M 64k' 'write -z 3M 2M' 'write -P 7 4190208 4k')" \
  --filter=truncate file disk.img truncate=8M
for bits in 16 32 64; do
  same "swab $bits" "$(io 'write -P 5 1M 4k'); $bytes; $size" --filter=swab --filter=truncate file disk.img \
    truncate=4194301 swab-bits=$bits
done
same 'protect' "$(io 'write -P 1 0 512' 'write -P 1 512 512' 'write -P 1 300 600' 'write -P 0 0 512' 'write -z 0 512' \
  'write -z 12288 512' 'discard 0 4k'); $bytes" --filter=protect file disk.img protect=0-511 protect=12288-20000
same 'protect all but a range' "$(io 'write -P 1 0 512' 'write -P 1 1000 512')" --filter=protect file disk.img protect=~1000-2000
for words in minblock=512 'minblock=4k maxdata=8k' 'minblock=64k maxlen=1M'; do
  # shellcheck disable=SC2086
  same "blocksize $words" "$(io 'write -P 1 10001 1001' 'write -z 20001 70000' 'read -v 10000 32'); $bytes; $size" \
    --filter=blocksize file disk.img $words
done
same 'blocksize: not a power of two' true --filter=blocksize file disk.img minblock=3k
sizes='nbdinfo --json --no-content "$uri" | jq -c ".exports[] | [.block_size_minimum, .block_size_preferred]"'
same 'blocksize-policy' "$sizes; $(io 'write -P 1 10001 1001')" --filter=blocksize-policy file disk.img \
  blocksize-minimum=512 blocksize-preferred=32K
same 'blocksize-policy: errors' "$(io 'write -P 1 4096 65536' 'write -P 1 4096 131072')" --filter=blocksize-policy file disk.img \
  blocksize-minimum=4K blocksize-preferred=4K blocksize-maximum=64K blocksize-error-policy=error
same 'blocksize-policy: bad sizes' true --filter=blocksize-policy file disk.img blocksize-minimum=3
printf '0 64K\n1M 1M hole\n512K 4K zero\n' >extents.txt
same 'extentlist' "nbdinfo --map \"\$uri\"" -r --filter=extentlist file disk.img extentlist=extents.txt
same 'noextents' "$contents" --filter=noextents file disk.img
same 'nofilter' "$contents" --filter=nofilter file disk.img
same 'cacheextents' "$contents; qemu-img map --output=json \"\$uri\"" --filter=cacheextents file disk.img
same 'checkwrite' "$(io 'write -P 0 0 4k' 'write -z 0 4k' 'write -P 1 0 4k' 'write -z 12k 4k'); nbdcopy \"\$uri\" \"\$uri\"" \
  --filter=checkwrite file disk.img

# ---- Other abilities

able='nbdinfo --json --no-content "$uri" | jq -c ".exports[] | [.is_read_only, .can_fua, .can_cache, .can_zero, .can_flush]"'
for words in 'nozero' 'nozero zeromode=emulate' 'nozero zeromode=plugin' 'nocache' 'nocache cachemode=emulate' \
  'nocache cachemode=nop' 'fua' 'fua fuamode=emulate' 'fua fuamode=native' 'fua fuamode=force' 'fua fuamode=discard' \
  'multi-conn' 'multi-conn multi-conn-mode=disable' 'noparallel' 'noparallel serialize=all-requests'; do
  # shellcheck disable=SC2086
  set -- $words
  same "$words" "$able; $facts; $(io 'write -P 1 0 10k' 'write -z 20k 10k' flush); $contents" --filter="$1" file disk.img "${@:2}"
done

# ---- tar

tar --format=gnu -cf gnu.img plain.img gpt.img
tar --format=pax -cf pax.img plain.img "dir/two"
tar --format=ustar -cf ustar.img dir plain.img
for archive in gnu pax ustar; do
  image=$archive.img
  same "tar, $archive" "$contents" --filter=tar file disk.img tar-entry=plain.img
  same "tar, $archive, no such file" "$fails" --filter=tar file disk.img tar-entry=none
  expect_equal "$(blk hash "tar(tar-entry=plain.img)+./$image" 2>&1 >/dev/null)" '' 'what it has to say when all is well'
done
same 'tar, in a folder' "$(io 'write -P 1 1000 10k'); $bytes" --filter=tar file disk.img tar-entry=dir/two
image=plain.img

# ---- Clients

same 'ip: denied' "$fails" --filter=ip file disk.img deny=anyunix
same 'ip: permitted' "$size" --filter=ip file disk.img allow="uid:$(id -u)" deny=all
cat >visit.py <<'PYTHON'
import nbd, sys, time

def visit(who):
    client = nbd.NBD()
    try:
        client.connect_uri(sys.argv[1])
        print(who, "sees", client.get_size(), "bytes")
        return client
    except nbd.Error:
        print(who, "is sent away")

first = visit("the first")
second = visit("the second")
third = visit("the third")
first.shutdown()
time.sleep(0.5)
visit("the fourth")
PYTHON
same 'limit' "/usr/bin/python3 visit.py \"\$uri\"" --filter=limit file disk.img limit=2
expect_equal "$(grep -c 'bytes$' blk.out) $(grep -c away blk.out)" '3 1' 'the limit of two clients'
# Looking at other exports first is no leaving. (There nbdkit ends too early.)
cat >look.py <<'PYTHON'
import nbd, sys
client = nbd.NBD()
client.set_opt_mode(True)
client.connect_uri(sys.argv[1])
for name in "one", "two", "one":
    client.set_export_name(name)
    client.opt_info()
client.opt_go()
print(len(client.pread(512, 0)))
client.shutdown()
PYTHON
expect_equal "$(timeout 60 blk serve -U - --filter=exitlast file dir=dir --run '/usr/bin/python3 look.py "$uri"')" 512 \
  'exitlast and a client that looks around'
# shellcheck disable=SC2016
timeout 60 blk serve -U "$tmp/last" --filter=exitlast file dir=dir &
last=$!
until [ -S last ]; do sleep 0.05; done
nbdinfo --size "nbd+unix:///one?socket=$tmp/last" >/dev/null
wait $last || fail 'exitlast did not end the server'
# shellcheck disable=SC2016
same 'ddrescue' 'for at in 0 1M 2M; do qemu-io -r -f raw -c "read $at 512" "$uri" | grep -vE "ops;|bytes at"; done' -r --filter=ddrescue file disk.img ddrescue-mapfile="$tmp/map"
same 'exitwhen' "touch gone; $size" --filter=exitwhen file disk.img exit-when-file-created="$tmp/never"

# A write that is too long cuts its client off instead of being answered, TLS or not; others are refused. (nbdkit has
# this since 1.34.)
cat >long.py <<'PYTHON'
import errno, nbd, sys
client = nbd.NBD()
client.set_uri_allow_local_file(True)
client.set_tls_username("me")
client.connect_uri(sys.argv[1])
client.set_strict_mode(0)
for size in 1, 65536, 65537:
    try:
        client.pwrite(bytes(size), 0)
        print(size)
    except nbd.Error as error:
        print(size, errno.errorcode[error.errnum])
PYTHON
printf 'me:0123456789abcdef\n' >keys.psk
for tls in off require; do
  # shellcheck disable=SC2016
  expect_equal "$(timeout 60 blk serve -U - --tls=$tls --tls-psk=keys.psk --filter=blocksize-policy memory 1M \
    blocksize-minimum=512 blocksize-error-policy=error blocksize-write-disconnect=64K \
    --run '/usr/bin/python3 long.py "$uri"' 2>/dev/null)" $'1 EINVAL\n65536\n65537 ENOTCONN' "a write that is too long, TLS $tls"
done

if [ $different != 0 ]; then fail "$different of $cases cases are not the same"; fi
echo "$cases cases are the same"
[ $cases -ge 100 ]
