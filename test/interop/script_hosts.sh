#!/bin/bash
# Plugins in Python, Perl, Ruby, Lua and Tcl, unmodified, beside nbdkit's own hosts: the same clients, the same answers;
# and scripts that fail, die and hang.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed nbdkit nbdinfo jq perl ruby tclsh
skip_unless_python_has nbd python3-libnbd

cat >client.py <<'EOS'
import nbd, sys
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.set_export_name(sys.argv[2])
h.connect_uri(sys.argv[1])
print(h.get_size())
def attempt(what):
    try:
        print(what())
    except nbd.Error as e:
        print(e.errno)
if not h.is_read_only():
    h.pwrite(bytes(range(256)) * 20, 70000)
    h.pwrite(b"at the end\n\0\xff", 1048576 - 13)
print(h.pread(300, 70100), h.pread(13, 1048576 - 13))
attempt(lambda: h.pread(512, 512))
attempt(lambda: h.pread(512, 1024))
if h.can_zero():
    h.zero(1000, 70100)
if h.can_trim():
    h.trim(4096, 73728)
if h.can_flush():
    h.flush()
if h.can_cache():
    h.cache(4096, 0)
print(sum(h.pread(200000, 50000)))
h.block_status(1 << 20, 0, lambda name, offset, entries, error: print(name, offset, entries))
h.shutdown()
EOS

# both NAME LANGUAGE SCRIPT [WORD...]: what clients see of the script is the same with blk and with nbdkit.
facts='[.exports[0] | .is_read_only, .can_flush, .can_trim, .can_zero, .can_fast_zero, .can_fua, .can_cache, .can_multi_conn,
  .is_rotational, ."export-size", .description]'
both() {
  local name=$1 server side
  shift
  for server in 'blk serve' nbdkit; do
    side=${server%% *}
    log=$PWD/$side-$name.calls $server -U - "$@" --run "
      nbdinfo --json \"\$uri\" | jq -c '$facts'
      /usr/bin/python3 client.py \"\$uri\" '' && /usr/bin/python3 client.py \"\$uri\" 'another name'" \
      >"$side-$name.answers" 2>"$side-$name.errors" || fail "$server $*: status $?: $(cat "$side-$name.errors")"
  done
  expect_equal "$(cat "blk-$name.answers")" "$(cat "nbdkit-$name.answers")" "what clients see of $*"
  if [ -e "nbdkit-$name.calls" ]; then
    expect_equal "$(sort -u "blk-$name.calls")" "$(sort -u "nbdkit-$name.calls")" "the calls of $*"
  fi
}

# ---- Python
cat >full.py <<'EOS'
import nbdkit, errno, os
API_VERSION = 2
disk = bytearray(1 << 20)
lines = open(os.environ["log"], "a")
def note(*words):
    lines.write(" ".join(map(str, words)) + "\n")
    lines.flush()
def config(key, value): note("config", key, value)
def config_complete(): note("config_complete", __name__)
def get_ready(): note("get_ready")
def after_fork(): note("after_fork")
def cleanup(): note("cleanup")
def preconnect(readonly): pass
def open(readonly):
    note("open", readonly, nbdkit.export_name())
    return {"name": nbdkit.export_name()}
def close(h): note("close", h["name"])
def get_size(h): return nbdkit.parse_size("1M")
def export_description(h): return "the disk \u00e9"
def can_multi_conn(h): return True
def can_fua(h): return nbdkit.FUA_NATIVE
def can_cache(h): return nbdkit.CACHE_NATIVE
def is_rotational(h): return False
def block_size(h): return (1, 4096, 1 << 20)
def pread(h, buf, offset, flags):
    if offset == 512:
        nbdkit.set_error(errno.ENOSPC)
        raise RuntimeError("none left")
    if offset == 1024:
        raise ValueError("no reason")
    buf[:] = disk[offset:offset + len(buf)]
def pwrite(h, buf, offset, flags):
    note("pwrite", len(buf), offset, flags & nbdkit.FLAG_FUA)
    disk[offset:offset + len(buf)] = buf
def flush(h, flags): note("flush", flags)
def trim(h, count, offset, flags): note("trim", count, offset, flags)
def zero(h, count, offset, flags):
    note("zero", count, offset, flags)
    if not flags & nbdkit.FLAG_MAY_TRIM or flags & nbdkit.FLAG_FAST_ZERO:
        nbdkit.set_error(errno.EOPNOTSUPP)
        raise OSError("as writes, please")
    disk[offset:offset + count] = bytearray(count)
def cache(h, count, offset, flags): note("cache", count, offset, flags)
def extents(h, count, offset, flags):
    return [(0, 512 << 10, 0), (512 << 10, 512 << 10, nbdkit.EXTENT_HOLE | nbdkit.EXTENT_ZERO)]
EOS
both full python full.py one=1 two='2 %20=x'
expect_match "$(cat blk-full.errors)" 'pread: RuntimeError: none left \(full.py:[0-9]+\)'

cat >first.py <<'EOS'
# API version 1, said by nothing.
disk = bytearray(1 << 20)
def open(readonly): return 1
def get_size(h): return len(disk)
def pread(h, count, offset):
    if offset == 512: raise Exception("no")
    if offset == 1024: return b"short"
    return disk[offset:offset + count]
def pwrite(h, buf, offset): disk[offset:offset + len(buf)] = buf
def zero(h, count, offset, may_trim=False): disk[offset:offset + count] = bytes(count)
def flush(h): pass
def trim(h, count, offset): pass
EOS
both first python first.py

cat >exports.py <<'EOS'
import nbdkit
API_VERSION = 2
def thread_model(): return nbdkit.THREAD_MODEL_SERIALIZE_REQUESTS
def list_exports(readonly, is_tls): return [("first", "the first"), "second", ("third", "the third")]
def default_export(readonly, is_tls): return "second"
def open(readonly): return nbdkit.export_name().encode()
def get_size(h): return 1 << 20
def pread(h, buf, offset, flags):
    if offset in (512, 1024): raise Exception
    text = (h + b" ") * (len(buf) // (len(h) + 1) + 1)
    buf[:] = text[:len(buf)]
EOS
both exports python exports.py
list='[.exports[] | ."export-name", .description, ."export-size"]'
expect_equal "$(blk serve -U - python exports.py --run "nbdinfo --list --json \"\$uri\" | jq -c '$list'")" \
  "$(nbdkit -U - python exports.py --run "nbdinfo --list --json \"\$uri\" | jq -c '$list'")" 'exports of a script'

# Up to 16 calls at a time where the script says so, one at a time else: 16 reads of 100 ms each.
cat >slow.py <<'EOS'
import nbdkit, time, threading, os
API_VERSION = 2
busy, most, lock = 0, 0, threading.Lock()
if os.environ["model"] != "none":
    def thread_model(): return getattr(nbdkit, "THREAD_MODEL_" + os.environ["model"])
def open(readonly): return 1
def get_size(h): return 1 << 20
def pread(h, buf, offset, flags):
    global busy, most
    with lock:
        busy += 1
        most = max(most, busy)
    time.sleep(0.1)
    with lock:
        busy -= 1
        buf[0:2] = b"%02d" % most
EOS
cat >sixteen.py <<'EOS'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
buffers = [nbd.Buffer(512) for _ in range(16)]
for each in buffers: h.aio_pread(each, 0)
while h.aio_in_flight() > 0: h.poll(-1)
print(max(int(each.to_bytearray()[0:2]) for each in buffers))
EOS
for pair in PARALLEL:16 SERIALIZE_REQUESTS:1 SERIALIZE_ALL_REQUESTS:1 SERIALIZE_CONNECTIONS:1 none:1; do
  expect_equal "$(model=${pair%:*} blk serve -U - python slow.py --run '/usr/bin/python3 sixteen.py "$uri"')" "${pair#*:}" \
    "calls at a time, $pair"
done

# Scripts that cannot be started say why, before there is a server.
refused() {
  local reason=$1
  shift
  expect_status 1 blk serve -U - "$@" --run true 2>error.txt
  expect_match "$(cat error.txt)" "$reason" "the error of $*"
}
echo 'def open(readonly): pass' >part.py
echo 'def open(readonly' >syntax.py
echo 'API_VERSION = 7
def open(r): pass
def get_size(h): pass
def pread(h, b, o, f): pass' >seven.py
refused 'does not define get_size, pread' python part.py
refused 'syntax.py.*SyntaxError|SyntaxError.*syntax.py' python syntax.py
refused 'API_VERSION is 7' python seven.py
refused 'No such file' python none.py
refused 'unknown parameter `what`' python first.py what=1
refused 'no such program|No such file' python first.py blk-interpreter=/none/python3

# One that dies, exits, or sends nonsense: an error, a reason in the log, and the next client finds it anew.
cat >bad.py <<'EOS'
import nbdkit, os, sys, time, signal
API_VERSION = 2
def open(readonly): return 1
def get_size(h): return 1 << 20
def pread(h, buf, offset, flags):
    if offset == 0: os._exit(3)
    if offset == 512: os.kill(os.getpid(), signal.SIGKILL)
    if offset == 1024: os.write(3, b"nonsense\n")
    if offset == 1536: time.sleep(1000)
    if offset == 2048: sys.exit(1)
EOS
cat >try.py <<'EOS'
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
try:
    h.pread(512, int(sys.argv[2]))
    print("read")
except nbd.Error as e:
    print(e.errno)
EOS
background bad blk serve -f -U bad.socket python bad.py blk-timeout=1
wait_for_socket bad.socket
bad="nbd+unix:///?socket=bad.socket"
/usr/bin/python3 try.py "$bad" 4096 >/dev/null
descriptors=$(ls /proc/$background_pid/fd | wc -l)
for round in 1 2; do
  for case in '0 EIO' '512 EIO' '1024 EIO' '1536 EIO' '2048 EIO' '4096 read'; do
    expect_equal "$(/usr/bin/python3 try.py "$bad" "${case% *}")" "${case#* }" "round $round, offset ${case% *}"
  done
done
for reason in 'the program has ended: exit status 3' 'the program has ended: killed by SIGKILL' 'it sent what is no reply' \
  'pread took too long' 'pread: SystemExit: 1' 'it has ended, and is started again'; do
  expect_match "$(cat bad.log)" "$reason" 'the log'
done
expect_equal "$(ls /proc/$background_pid/fd | wc -l)" "$descriptors" 'descriptors after deaths'
expect_equal "$(ps -eo stat,comm | awk '$1 ~ /^Z/ && $2 ~ /blk|python/')" '' 'zombies'
kill "$background_pid"
wait "$background_pid" || true
wait_until 5 sh -c "! pgrep -f '^/usr/bin/python3 .*bad[.]py'"

# A thousand connections to one script leave nothing.
background many blk serve -f -U many.socket python first.py
wait_for_socket many.socket
cat >connect.py <<'EOS'
import nbd, sys
for i in range(int(sys.argv[1])):
    h = nbd.NBD()
    h.connect_unix("many.socket")
    h.pread(512, 0)
    h.shutdown()
EOS
/usr/bin/python3 connect.py 10
descriptors=$(ls /proc/$background_pid/fd | wc -l)
count=1000
if [ "$BLK_CONFIG" != product ]; then count=100; fi
/usr/bin/python3 connect.py $count
sleep 0.2
expect_equal "$(ls /proc/$background_pid/fd | wc -l)" "$descriptors" 'descriptors after many connections'

# ---- Perl
cat >full.pl <<'EOS'
use strict;
use warnings;
use POSIX ();
my $disk = "\0" x (1 << 20);
CORE::open(my $lines, ">>", $ENV{log}) or die;
$lines->autoflush(1);
sub note { print $lines "@_\n"; }
sub config { note("config", @_); }
sub config_complete { note("config_complete", __PACKAGE__); }
sub open { my $readonly = shift; note("open", $readonly ? 1 : 0); return { readonly => $readonly }; }
sub close { my $h = shift; note("close", $h->{readonly} ? 1 : 0); }
sub get_size { return length $disk; }
sub can_write { 1 } sub can_flush { 1 } sub is_rotational { 0 } sub can_trim { 1 }
sub pread {
    my ($h, $count, $offset, $flags) = @_;
    if ($offset == 512) { Nbdkit::set_error(POSIX::ENOSPC()); die "none left"; }
    return "short" if $offset == 1024;
    return substr($disk, $offset, $count);
}
sub pwrite { my ($h, $buf, $offset, $flags) = @_; note("pwrite", length $buf, $offset); substr($disk, $offset, length $buf) = $buf; }
sub flush { note("flush"); }
sub trim { my ($h, $count, $offset, $flags) = @_; note("trim", $count, $offset); }
sub zero {
    my ($h, $count, $offset, $flags) = @_;
    note("zero", $count, $offset, $flags & $Nbdkit::FLAG_MAY_TRIM);
    if ($flags & $Nbdkit::FLAG_FUA) { Nbdkit::set_error(POSIX::EOPNOTSUPP()); die; }
    substr($disk, $offset, $count) = "\0" x $count;
}
Nbdkit::debug("loaded");
EOS
both perl perl full.pl one=1 two='2 3'
expect_match "$(cat blk-perl.errors)" 'pread: none left at .*full.pl line'

# Zeroing by the old interface of nbdkit: it announces a fast zero, to refuse each.
facts=${facts/.can_fast_zero, /}

# ---- Lua
cat >full.lua <<'EOS'
local bytes = {}
local size = 1 << 20
local function note(...)
  local f = io.open(os.getenv("log"), "a")
  f:write(table.concat({...}, " "), "\n")
  f:close()
end
function config(key, value) note("config", key, value) end
function config_complete() note("config_complete") end
function open(readonly) note("open", tostring(readonly)) return {readonly = readonly} end
function close(h) note("close", tostring(h.readonly)) end
function get_size(h) return size end
function pread(h, count, offset)
  if offset == 512 or offset == 1024 then error("none left") end
  local parts = {}
  for i = offset, offset + count - 1 do parts[#parts + 1] = string.char(bytes[i] or 0) end
  return table.concat(parts)
end
function pwrite(h, buf, offset)
  note("pwrite", #buf, offset)
  for i = 1, #buf do bytes[offset + i - 1] = buf:byte(i) end
end
function can_flush(h) return true end -- nbdkit's does not see that there is a flush
function flush(h) note("flush") end
function trim(h, count, offset) note("trim", count, offset) end
function zero(h, count, offset, may_trim)
  note("zero", count, offset, tostring(may_trim))
  for i = offset, offset + count - 1 do bytes[i] = nil end
end
EOS
both lua lua full.lua one=1 two='2 3'

# ---- Ruby
cat >full.rb <<'EOS'
$disk = ("\0" * (1 << 20)).b
def note(*words) File.open(ENV["log"], "a") { |f| f.puts(words.join(" ")) } end
def config(key, value) note("config", key, value) end
def config_complete() note("config_complete") end
def open(readonly) note("open", readonly); { :readonly => readonly } end
def close(h) note("close", h[:readonly]) end
def get_size(h) $disk.bytesize end
def pread(h, count, offset)
  if offset == 512
    Nbdkit.set_error(Errno::ENOSPC)
    raise "none left"
  end
  raise "no reason" if offset == 1024
  $disk.byteslice(offset, count)
end
def pwrite(h, buf, offset) note("pwrite", buf.bytesize, offset); $disk[offset, buf.bytesize] = buf end
def flush(h) note("flush") end
def trim(h, count, offset) note("trim", count, offset) end
def zero(h, count, offset, may_trim)
  note("zero", count, offset, may_trim)
  $disk[offset, count] = ("\0" * count).b
end
EOS
# Debian's own nbdkit-ruby-plugin crashes as soon as a client connects, so Lua's stands in for it: the scripts do the same.
log=$PWD/blk-ruby.calls blk serve -U - ruby full.rb one=1 two='2 3' --run "
  nbdinfo --json \"\$uri\" | jq -c '$facts'
  /usr/bin/python3 client.py \"\$uri\" '' && /usr/bin/python3 client.py \"\$uri\" 'another name'" >blk-ruby.answers 2>blk-ruby.errors
expect_equal "$(sed 's/ENOSPC/EIO/' blk-ruby.answers)" "$(cat nbdkit-lua.answers)" 'what clients see of full.rb'
expect_equal "$(sort -u blk-ruby.calls)" "$(sort -u nbdkit-lua.calls)" 'the calls of full.rb'
expect_match "$(cat blk-ruby.errors)" 'pread: RuntimeError: none left \(full.rb:[0-9]+'

# ---- Tcl
cat >full.tcl <<'EOS'
set disk [binary format x1048576]
proc note {args} {
    set f [open $::env(log) a]
    puts $f [join $args]
    close $f
}
proc config {key value} {note config $key $value}
proc config_complete {} {note config_complete}
proc plugin_open {readonly} {note open $readonly; return "h$readonly"}
proc plugin_close {h} {note close $h}
proc get_size {h} {return [string length $::disk]}
proc pread {h count offset} {
    if {$offset == 512 || $offset == 1024} {error "none left"}
    return [string range $::disk $offset [expr {$offset + $count - 1}]]
}
proc pwrite {h buf offset} {
    note pwrite [string length $buf] $offset
    set ::disk [string replace $::disk $offset [expr {$offset + [string length $buf] - 1}] $buf]
}
proc plugin_flush {h} {note flush}
proc trim {h count offset} {note trim $count $offset}
proc zero {h count offset may_trim} {
    note zero $count $offset $may_trim
    set ::disk [string replace $::disk $offset [expr {$offset + $count - 1}] [binary format x$count]]
}
EOS
both tcl tcl full.tcl one=1 two='2 3'

# Extents, which nbdkit's ruby, lua and tcl do not have.
echo 'def extents(h, count, offset) [[0, 1 << 19, 0], [1 << 19, 1 << 19, 3]] end' | cat full.rb - >extents.rb
echo 'function extents(h, count, offset) return {{0, 1 << 19}, {1 << 19, 1 << 19, 3}} end' | cat full.lua - >extents.lua
echo 'proc extents {h count offset} {return {{0 524288} {524288 524288 3}}}' | cat full.tcl - >extents.tcl
echo 'sub extents { return ([0, 1 << 19, 0], [1 << 19, 1 << 19, 3]); }' | cat full.pl - >extents.pl
for language in ruby:rb lua:lua tcl:tcl perl:pl; do
  expect_equal "$(log=$PWD/log blk serve -U - "${language%:*}" "extents.${language#*:}" --run 'nbdinfo --map "$uri"' | awk '{ print $1, $2, $3 }')" \
    $'0 524288 0\n524288 524288 3' "extents of ${language%:*}"
done
