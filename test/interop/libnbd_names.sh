#!/bin/bash
# blk under the names nbdcopy, nbdinfo and nbddump beside the real programs: the same command line must give the same
# output and the same exit status. Each line of a table is a case, run twice in folders of their own.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed nbdinfo nbdcopy nbddump nbdkit qemu-nbd qemu-img nbd-server jq file

mkdir real ours
for program in nbdcopy nbdinfo nbddump; do
  ln -s "$(command -v $program)" "real/$program"
  ln -s "$(command -v blk)" "ours/$program"
done
cases=0 differences=0

# The servers of the cases: what $serve is replaced by. Each listens on the Unix socket `s`.
printf 'begin' >disk.img
truncate -s 3M disk.img
printf 'middle' | dd of=disk.img bs=1 seek=1500000 conv=notrunc status=none
printf 'end' | dd of=disk.img bs=1 seek=3145725 conv=notrunc status=none
qemu-img create -q -f qcow2 disk.qcow2 8M
qemu-io -f qcow2 -c 'write -P 5 1M 64k' disk.qcow2 >/dev/null
mkdir many
truncate -s 1M many/one
truncate -s 512 'many/two words'
truncate -s 70000 'many/grüße'
printf '[generic]\nlistenaddr = 127.0.0.1\nport = %s\nunixsock = %s/s\nallowlist = true\n[disk]\nexportname = %s/disk.img\n' "$(free_port)" "$tmp" "$tmp" >nbd-server.conf

# in_folder WHO SCRIPT: its output, errors and exit status in WHO.out, WHO.err and WHO.status.
in_folder() {
  local who=$1 script=$2 status=0
  rm -rf "$tmp/work"
  mkdir "$tmp/work"
  (
    cd "$tmp/work"
    export PATH="$tmp/$who:$PATH" disk="$tmp/disk.img" qcow2="$tmp/disk.qcow2" many="$tmp/many"
    exec timeout 30 bash -c "$script"
  ) >"$tmp/$who.out" 2>"$tmp/$who.err" </dev/null || status=$?
  (cd "$tmp/work" && find . -type f ! -name '*.log' -exec sh -c 'stat -c "%n %s" "$1"; sha1sum <"$1"' - {} \;) | sort >>"$tmp/$who.out"
  echo "$status" >"$tmp/$who.status"
}

# same SCRIPT: both behave the same. What differs from run to run is taken out: names of sockets and of temporary folders.
same() {
  local who
  cases=$((cases + 1))
  for who in real ours; do
    in_folder "$who" "$1"
    sed -i -E "s#/tmp/(nbdkit|libnbd|blk|lib)[A-Za-z0-9]{6}#/tmp/X#g; s#$tmp/(real|ours)/##g" "$who.out"
  done
  if ! cmp -s real.status ours.status || ! cmp -s real.out ours.out; then
    differences=$((differences + 1))
    printf '%s\n' "--- differs: $1" >&"$terminal"
    diff real.status ours.status >&"$terminal" || true
    diff real.out ours.out >&"$terminal" || true
    sed 's/^/    ours says: /' ours.err >&"$terminal"
  fi
}

# table PREFIX SUFFIX: a case for each line of standard input, PREFIX LINE SUFFIX.
table() {
  local line
  while IFS= read -r line; do
    if [ -n "$line" ]; then same "$1 $line $2"; fi
  done
}

# Complaints have each program's own words; that there are some, and the exit status, is the same.
refused() {
  local line who
  while IFS= read -r line; do
    if [ -z "$line" ]; then continue; fi
    same "$line"
    for who in real ours; do
      if [ ! -s $who.err ]; then fail "no complaint by $who: $line"; fi
    done
  done
}

# ---- Command lines
table '' '' <<'END'
nbdcopy --version
nbdinfo --version
nbddump -V
nbdcopy --long-options
nbdinfo --long-options
nbddump --long-options
nbdcopy --short-options
nbdinfo --short-options
nbddump --short-options
nbdcopy --vers
nbdinfo --siz -- [ nbdkit null 5M ]
nbdinfo -- [ nbdkit null 5M ] >/dev/null
nbdinfo --jso --siz -- [ nbdkit null 5M ]
nbdcopy $disk out
nbdcopy $disk out --synch
nbdcopy -vC2 $disk out
nbdcopy -S0 -R5 -T 1 $disk out
nbdcopy -S 1024 --reque=12 $disk out
nbdcopy --request-s 4096 $disk out
nbdcopy --queue-size=1 $disk out
nbdcopy --queue-size=5junk $disk out
nbdcopy --progress=1 $disk out | tail -n 1
nbdcopy --progress=1 $disk out >p.log; head -n 1 p.log
nbdcopy --progress=1 - null: <$disk | tail -n 1
nbdcopy $disk - | cksum
cat $disk | nbdcopy - null:
cat $disk | nbdcopy - - | cksum
nbdcopy /dev/null null: -p 2>/dev/null
nbdcopy $disk null:
nbdcopy --flush $disk out
nbdcopy --no-extents --destination-is-zero $disk out
nbdcopy --target-is-zero $disk out
echo old content that is longer >out; nbdcopy /dev/null out 2>/dev/null; true
yes | head -c 4000000 >in; echo x >out; nbdcopy in out; cmp in out
head -c 12345 /dev/urandom >in; nbdcopy in - | cmp in -; nbdcopy in out; cmp in out; rm in out
umask 077; nbdcopy $disk out; stat -c %a out
truncate -s 5M out; ln out out2; nbdcopy $disk out; stat -c %h out
touch 'memory:5M'; nbdcopy memory:5M out
printf abc >'[x'; nbdcopy '[x' out; cat out
ln -s $disk link; nbdcopy link out; nbdcopy out link
mkfifo p; cat $disk >p & nbdcopy p null:; rm p
mkfifo p; cksum <p & nbdcopy $disk p; wait; rm p
END
refused <<'END'
nbdcopy
nbdcopy a
nbdcopy --nosuch $disk out
nbdcopy --re 5 $disk out
nbdcopy $disk null: extra
nbdcopy nosuch out
nbdcopy $disk nosuch/out
nbdcopy . null:
nbdcopy $disk .
nbdcopy null: out
nbdcopy -C 0 $disk out
nbdcopy -C x $disk out
nbdcopy -R 0 $disk out
nbdcopy -T x $disk out
nbdcopy -S 3 $disk out
nbdcopy -S 256 $disk out
nbdcopy --request-size=4095 $disk out
nbdcopy --request-size=67108864 $disk out
nbdcopy --progress=x $disk out
nbdcopy --progress=-2 $disk out
nbdcopy [ nbdkit null 1M null:
nbdcopy [ ] null:
nbdcopy [ nosuchprogram ] out
nbdcopy [ false ] out
nbdcopy nbd://127.0.0.1:1/ out
nbdcopy nbd+unix:///?socket=nosuch out
nbdcopy $disk nbd+unix:///?socket=nosuch
nbdcopy nbd:nonsense out
nbdinfo
nbdinfo a b
nbdinfo [ ]
nbdinfo disk.img
nbdinfo memory:1M
nbdinfo nbd+unix:///?socket=nosuch
nbdinfo --size nbd+unix:///?socket=nosuch
nbdinfo --can connect nbd+unix:///?socket=nosuch
nbdinfo --can nothing -- [ nbdkit null 1M ]
nbdinfo --can
nbdinfo --map --size -- [ nbdkit null 1M ]
nbdinfo --list --can read -- [ nbdkit null 1M ]
nbdinfo --totals -- [ nbdkit null 1M ]
nbdinfo --content --no-content -- [ nbdkit null 1M ]
nbdinfo --map=no:such -- [ nbdkit null 1M ]
nbdinfo --map -- [ nbdkit --no-sr null 1M ]
nbdinfo --nosuch x
nbdinfo [ false ]
nbddump
nbddump a b
nbddump -n
nbddump -n x -- [ nbdkit null 1M ]
nbddump nosuch
nbddump [ false ]
nbddump -- [ nbdkit --filter=error pattern 1M error-pread-rate=1 ]
nbdcopy -- [ nbdkit --filter=error pattern 1M error-pread-rate=1 ] null:
nbdcopy -- $disk [ nbdkit --filter=error memory 3M error-pwrite-rate=1 ]
nbdcopy -- $disk [ nbdkit -r memory 3M ]
nbdcopy -- $disk [ nbdkit memory 1M ]
nbdcopy -- [ nbdkit memory 2G ] [ nbdkit memory 1G ]
END

# ---- nbdinfo and nbddump over every kind of server
asked='--size
--json --size
--map
--map --json
--map --totals
--map --totals --json
--map=base:allocation
--total --map
--list
--list --json
-L --no-content
--no-content
--no-content --json
--color --no-content
--colour --map
--list --content'
answers='for w in read write zero trim flush fua fast-zero fast_zero FastZero cache df multi-conn connect sr structured-reply; do nbdinfo --can $w $server; echo "can $w: $?"; done
for w in read-only readonly rotational tls TLS; do nbdinfo --is $w $server; echo "is $w: $?"; done
nbddump $server | cksum
nbddump -n 100 $server
nbddump --length=0 $server
nbddump --limit=33 --color $server
nbdcopy $server out
nbdcopy --request-size=4096 -S 512 $server out
nbdcopy --synchronous $server out
nbdcopy $server - | cksum
nbdcopy $server null:'
# over SERVER WORDS...: all questions to a captive server.
captive() {
  table 'nbdinfo' "-- [ $* ]" <<<"$asked"
  table "server='[ $* ]';" '' <<<"${answers//\$server/-- [ $* ]}"
}
captive nbdkit pattern 100000
captive nbdkit -r file '$disk'
captive nbdkit --no-sr pattern 4099
captive nbdkit null 0
# (nbddump of a part that is no multiple of the smallest block fails, and is right here)
table nbdinfo '-- [ nbdkit --filter=blocksize-policy memory 1M blocksize-minimum=512 blocksize-maximum=1M ]' <<<"$asked"
table nbdinfo '-- [ qemu-nbd -r -f qcow2 $qcow2 ]' <<<"$asked"
table nbdinfo '-- [ qemu-nbd -f raw -x name -D description $disk ]' <<<$'--list\n--list --json\n--list --content --json' # (asked for a name it has not, the real nbdinfo leaves it running)

# running NAME COMMAND...: starts a server on the socket s, for the cases that follow.
running() {
  end_running
  background "$@"
  wait_for_socket "$tmp/s"
}
# The one that runs has gone: nothing listens on the socket any more.
end_running() {
  if [ -n "${background_pid-}" ]; then
    kill "$background_pid"
    wait "$background_pid" || true
    background_pid=
  fi
  rm -f s
}
uri="nbd+unix:///?socket=$tmp/s"
running file nbdkit -f -U "$tmp/s" file dir="$tmp/many"
table nbdinfo "'nbd+unix:///one?socket=$tmp/s'" <<<"$asked"
table nbdinfo "'nbd+unix:///two%20words?socket=$tmp/s'" <<<$'--size\n--no-content\n--json'
table nbdinfo "'nbd+unix://?socket=$tmp/s'" <<<$'--list\n--list --json\n'
refused <<END
nbdinfo $uri
nbdinfo --size $uri
nbdinfo --map $uri
nbdcopy $uri null:
nbddump $uri
END
running qemu qemu-nbd -t -e 5 -f qcow2 -k "$tmp/s" -A disk.qcow2
table nbdinfo "'$uri'" <<<"$asked"$'\n--map=qemu:allocation-depth\n--map=qemu:allocation-depth --json\n--map=qemu:allocation-depth --totals --color'
table '' '' <<<"${answers//\$server/\'$uri\'}"
running readonly qemu-nbd -t -r -f raw -k "$tmp/s" disk.img
table nbdinfo "'$uri'" <<<"$asked"
table '' '' <<<"${answers//\$server/\'$uri\'}"
running old nbdkit -f --oldstyle -U "$tmp/s" file disk.img
table nbdinfo "'$uri'" <<<$'--size\n--no-content\n--json --no-content\n--can write'
table '' '' <<<"${answers//\$server/\'$uri\'}"
running blk blk serve -U "$tmp/s" file disk.img
table nbdinfo "'$uri'" <<<"$asked"
table '' '' <<<"${answers//\$server/\'$uri\'}"
end_running
nbd-server -C "$tmp/nbd-server.conf" -p "$tmp/nbd-server.pid" # it has no foreground that serves twice
wait_until 5 test -s nbd-server.pid
background_pids+=("$(cat nbd-server.pid)")
wait_for_socket "$tmp/s"
uri="nbd+unix:///disk?socket=$tmp/s"
table nbdinfo "'$uri'" <<<$'--size\n--map --json\n--can flush\n--can write'
table '' '' <<<"${answers//\$server/\'$uri\'}"

# ---- Copies between servers, with what a target is asked to do
for options in '' -S0 --allocated --no-extents '--request-size=32768' '-S 65536' --destination-is-zero; do
  same "nbdcopy $options -- [ nbdkit data '1 @150000000 2 @300000000 3' ] [ nbdkit --filter=log memory 300000001 logfile=log.log ]
    grep -oE ' (Write|Zero|Trim) id=[0-9]* offset=0x[0-9a-f]+ count=0x[0-9a-f]+( [a-z]+=[01])*' log.log | sed -E 's/ id=[0-9]*//' | sort"
done
same 'nbdcopy -- [ nbdkit pattern 1G ] [ nbdkit pattern 1G ]'
same 'nbdcopy -- [ nbdkit sparse-random 1G seed=3 ] [ nbdkit sparse-random 1G seed=3 ]'
same 'nbdcopy -- [ nbdkit --filter=error pattern 5M error-extents-rate=1 ] out'
same 'nbdcopy -- $disk [ nbdkit --filter=nozero memory 3M ]'
same 'cp $qcow2 t.qcow2; nbdcopy -- $disk [ qemu-nbd -f qcow2 t.qcow2 ]; qemu-img compare -f raw $disk -F qcow2 t.qcow2; rm t.qcow2'
same 'cat $disk | nbdcopy -- - [ nbdkit memory 5M ]'

# ---- A block device, where one can be made
truncate -s 3M device.img
if device=$(losetup -f --show "$tmp/device.img" 2>/dev/null); then
  trap 'losetup -d "$device"; end_background' EXIT
  table '' '' <<END
nbdcopy \$disk $device && cmp \$disk $device
nbdcopy $device out
nbdcopy $device - | cksum
nbdcopy -- [ nbdkit pattern 3M ] $device; cksum <$device
nbdcopy --allocated -- [ nbdkit null 3M ] $device; cksum <$device
nbdcopy --destination-is-zero \$disk $device; cksum <$device
END
  refused <<<"nbdcopy -- [ nbdkit pattern 4M ] $device"
fi

if [ $differences != 0 ]; then fail "$differences of $cases cases differ"; fi
echo "$cases cases"
