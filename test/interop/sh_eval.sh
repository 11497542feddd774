#!/bin/bash
# sh and eval beside nbdkit's: the same scripts, the same clients, the same answers; and scripts that die, hang, print
# garbage or too much.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed nbdkit nbdinfo jq
skip_unless_python_has nbd python3-libnbd

# A script that is a disk with everything: $tmpdir/disk holds it, $tmpdir/calls what was asked.
cat >disk.sh <<'EOS'
#!/bin/sh
disk=$tmpdir/disk
echo "$@" >>"$tmpdir/calls"
case "$1" in
  load) truncate -s 1M "$disk" ;;
  config) [ "$2" = copy ] || { echo "EINVAL unknown key $2" >&2; exit 1; }; echo "$3" >"$tmpdir/copy" ;;
  magic_config_key) echo copy ;;
  thread_model) echo parallel ;;
  list_exports) printf 'INTERLEAVED\nfirst\nthe first\nsecond\nthe second\n' ;;
  default_export) echo first ;;
  open) if [ "$3" = none ]; then echo 'ENOENT there is no such disk' >&2; exit 1; fi; echo "handle-$3" ;;
  get_size) echo 1M ;;
  export_description) echo "disk of $2" ;;
  block_size) echo 1 4K 1M ;;
  can_write | can_flush | can_trim | can_zero | can_fast_zero | can_extents | can_multi_conn) ;;
  is_rotational) exit 3 ;;
  can_fua | can_cache) echo native ;;
  pread) dd if="$disk" iflag=skip_bytes,count_bytes skip="$4" count="$3" bs=64K status=none ;;
  pwrite) dd of="$disk" conv=notrunc oflag=seek_bytes seek="$4" bs=64K status=none ;;
  zero) case "$5" in *fast*) echo EOPNOTSUPP >&2; exit 1 ;; esac; fallocate -z -n -o "$4" -l "$3" "$disk" ;;
  trim) fallocate -p -n -o "$4" -l "$3" "$disk" ;;
  extents) echo 0 512K; echo 512K 512K hole,zero ;;
  flush | cache | close | preconnect | get_ready | after_fork | config_complete) ;;
  unload) cp "$tmpdir/calls" "$(cat "$tmpdir/copy")" ;;
  *) exit 2 ;;
esac
EOS
chmod +x disk.sh

cat >client.py <<'EOS'
import nbd, sys
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.connect_uri(sys.argv[1])
print(h.get_size(), h.get_block_size(nbd.SIZE_PREFERRED))
h.pwrite(b"hello " * 1000, 70000)
print(h.pread(12, 70000), sum(h.pread(100000, 0)))
h.pwrite(b"fua", 5, nbd.CMD_FLAG_FUA)
h.zero(6, 70000)
try:
    h.zero(6, 70006, nbd.CMD_FLAG_FAST_ZERO)
except nbd.Error as e:
    print(e.errno)
h.zero(100, 70050, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.trim(4096, 4096)
h.cache(100, 200)
h.flush()
print(h.pread(300, 70000))
h.block_status(1 << 20, 0, lambda name, offset, entries, error: print(name, offset, entries))
h.block_status(1000, 524000, lambda name, offset, entries, error: print(name, offset, entries), nbd.CMD_FLAG_REQ_ONE)
EOS

for server in 'blk serve' nbdkit; do
  side=${server%% *}
  $server -U - sh disk.sh "$PWD/$side.calls" --run \
    "/usr/bin/python3 client.py \"\$uri\" && nbdinfo --json --list \"\$uri\" && nbdinfo --map \"\$uri\"" >$side.answers
  sed -i 's/"uri": .*//' $side.answers
  sed -i 's/^config copy .*/config copy/' $side.calls
done
expect_equal "$(cat blk.answers)" "$(cat nbdkit.answers)" 'what clients see of a script'
# The same methods are called with the same arguments, though not all in the same order.
requests='^(load|config|config_complete|open|close|pread|pwrite|zero|trim|cache|flush|extents|get_ready|after_fork|unload)( |$)'
expect_equal "$(grep -E "$requests" blk.calls | sort -u)" "$(grep -E "$requests" nbdkit.calls | sort -u)" 'the calls of a script'
expect_equal "$(cut -d' ' -f1 blk.calls | sort -u)" "$(cut -d' ' -f1 nbdkit.calls | sort -u)" 'the methods called'
if blk serve -U - sh disk.sh calls --run 'nbdinfo "$uri/none"; nbdinfo "nbd+unix:///none?socket=$unixsocket"' 2>error.txt; then
  fail 'an export that the script refuses is opened'
fi
expect_match "$(cat error.txt)" 'disk.sh: open: there is no such disk'
expect_status 1 blk serve -U - sh disk.sh other=1 --run true 2>error.txt
expect_match "$(cat error.txt)" 'config: unknown key other'

# An inline script; words that are nobody's; a script that cannot be run.
expect_equal "$(blk serve -U - sh - --run 'nbdinfo --size "$uri"' <<<'case $1 in get_size) echo 5K ;; *) exit 2 ;; esac')" 5120
expect_status 1 blk serve -U - sh /etc/passwd --run true 2>error.txt
expect_match "$(cat error.txt)" 'cannot be run.*Permission denied'
expect_status 1 blk serve -U - sh ./none.sh --run true 2>error.txt
expect_match "$(cat error.txt)" 'none.sh.*No such file'

# eval: what can be left out, missing=, the parameters, the magic of config.
ask='nbdinfo --json "$uri" | jq -c "[.exports[0][\"is_read_only\",\"can_flush\",\"can_trim\",\"can_zero\",\"can_fast_zero\",\"can_fua\",\"can_cache\",\"can_multi_conn\",\"export-size\"]]"'
for words in "pread=:" "pread=: pwrite=:" "pread=: pwrite=: flush=:" "pread=: pwrite=: zero=: trim=: cache=: extents=:" \
  "pread=: pwrite=: can_fua='echo native'" "pread=: pwrite=: can_zero='exit 3' zero=:" "pread=: pwrite=: missing='exit 2'" \
  "pread=: pwrite=: flush=: can_flush='exit 3'" "pread=: can_cache='echo emulate' config=: x=y"; do
  eval "set -- $words"
  expect_equal "$(blk serve -U - eval get_size='echo 1M' "$@" --run "$ask")" "$(nbdkit -U - eval get_size='echo 1M' "$@" --run "$ask")" \
    "the facts of eval $words"
done
expect_status 1 blk serve -U - eval get_size='echo 1M' pread=: nothing=1 --run true 2>error.txt
expect_match "$(cat error.txt)" 'unknown parameter `nothing`'

# Scripts that fail in each way give an error to the client, a reason to the log, and the next client is served.
read_fails() {
  local expected=$1 reason=$2
  shift 2
  blk serve -U - eval get_size='echo 1M' "$@" --run "
    /usr/bin/python3 -c '
import nbd, os, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
try:
    h.pread(512, 0)
    sys.exit(\"the read did not fail\")
except nbd.Error as e:
    print(e.errno)
' \"\$uri\"; nbdinfo --size \"\$uri\"" >out.txt 2>error.txt || fail "status $? of: $* ($(cat error.txt))"
  expect_equal "$(cat out.txt)" "$expected"$'\n1048576' "$*"
  expect_match "$(cat error.txt)" "$reason"
}
read_fails ENOMEM 'pread: no memory today' pread='echo ENOMEM no memory today >&2; exit 1'
read_fails EIO 'pread: ENOMEMBER ' pread='echo ENOMEMBER is no name >&2; exit 1'
read_fails EIO 'pread was killed by SIGKILL' pread='kill -9 $$'
read_fails EIO 'printed 5 bytes instead of 512' pread='echo five'
read_fails EIO 'printed more than 512 bytes' pread=yes
read_fails EIO 'has not ended in time' pread='sleep 1000' blk-timeout=0.3
read_fails EIO 'exit code 3' pread='exit 3'
read_fails EIO 'not there' pread='exit 2'
for size in 'echo junk' 'exit 1' 'kill -9 $$' :; do
  expect_status 1 blk serve -U - eval get_size="$size" pread=: --run 'nbdinfo "$uri"' 2>error.txt
  expect_match "$(cat error.txt)" 'eval: get_size'
done

# A script asks for the end of its connection, or of the server.
background demands blk serve -f -U demands.socket eval get_size='echo 1M' pread='case $4 in 0) exit 8 ;; 512) exit 6 ;; *) exit 5 ;; esac'
wait_for_socket demands.socket
cat >demand.py <<'EOS'
import nbd, sys
h = nbd.NBD()
h.connect_unix("demands.socket")
try:
    h.pread(512, int(sys.argv[1]))
except nbd.Error as e:
    print(e.errno)
try:
    for i in range(100):
        h.pread(512, 4096)
    print("still there")
except nbd.Error as e:
    print("gone")
EOS
for offset in 0 512; do
  expect_match "$(/usr/bin/python3 demand.py $offset | tail -n 1)" gone
done
/usr/bin/python3 demand.py 1024 >out.txt
expect_equal "$(head -n 1 out.txt)" ESHUTDOWN
wait_until 5 sh -c "! kill -0 $background_pid"

# A hung script ends with its connection; nothing of 1,000 connections is left.
background many blk serve -f -U many.socket eval open='mktemp -d "$tmpdir/handle-XXXXXX"' close='rmdir "$2"' get_size='echo 1M' \
  thread_model='echo parallel' pread='sleep 987.6'
wait_for_socket many.socket
cat >hang.py <<'EOS'
import nbd, sys, time
h = nbd.NBD()
h.connect_unix("many.socket")
h.aio_pread(nbd.Buffer(512), 0)
end = time.monotonic() + 0.5
while time.monotonic() < end:
    h.poll(100)
EOS
/usr/bin/python3 hang.py
wait_until 5 sh -c '! pgrep -fx "sleep 987.6"'
descriptors=$(ls /proc/$background_pid/fd | wc -l)
cat >connect.py <<'EOS'
import nbd, sys
for i in range(int(sys.argv[1])):
    h = nbd.NBD()
    h.connect_unix("many.socket")
    h.shutdown()
EOS
count=1000
if [ "$BLK_CONFIG" != product ]; then count=50; fi
clients=()
for _ in 1 2 3 4; do
  /usr/bin/python3 connect.py $((count / 4)) &
  clients+=($!)
done
for client in "${clients[@]}"; do wait "$client"; done
wait_until 5 sh -c "test \$(ls /proc/$background_pid/fd | wc -l) -le $descriptors"
# Orphans (of process 1) are those of others that have just ended.
expect_equal "$(ps -eo stat,ppid,comm | awk '$1 ~ /^Z/ && $2 != 1 && $3 ~ /blk|many/')" '' 'zombies'
kill "$background_pid"
wait "$background_pid" || true
expect_equal "$(ls -d /tmp/blk??????/handle-* 2>/dev/null || true)" '' 'temporary folders'

# A client that is let go: what it asks for afterwards is refused, until it leaves by itself.
cat >let-go.py <<'EOS'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
for request in (lambda: h.pwrite(b"1", 0)), h.flush:
    try:
        request()
        print("done")
    except nbd.Error as error:
        print(error.errno)
h.shutdown()
EOS
blk serve -U - eval get_size='echo 1K' pwrite='cat >/dev/null; exit 8' flush='exit 0' \
  --run '/usr/bin/python3 let-go.py "$uri"' >let-go.txt 2>error.txt
expect_equal "$(tr '\n' ' ' <let-go.txt)" 'ESHUTDOWN ESHUTDOWN ' 'requests of a client that is let go'
