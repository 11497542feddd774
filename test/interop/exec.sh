#!/bin/bash
# exec: the example of its documentation as it stands, programs in other languages, and programs that break the rules.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed nbdinfo nbdcopy perl
skip_unless_python_has nbd python3-libnbd

# The example of docs/exec-protocol.md.
sed -n '/^    import sys/,$s/^    //p' "${LIB%/*}/../../docs/exec-protocol.md" >disk.py
head -c 64K /dev/urandom >data
blk serve -U - exec '/usr/bin/python3 disk.py' --run 'nbdcopy data "$uri" && nbdcopy "$uri" back && nbdinfo --json "$uri"' >info.json
expect_same data back 'what was written and read'
expect_match "$(cat info.json)" '"is_read_only": false'
expect_match "$(cat info.json)" '"can_flush": false'

# A program that has no list of methods, and answers several requests in the opposite order.
cat >other.pl <<'EOS'
use strict;
$| = 1;
my @held;
sub answer { my ($id, $bytes) = @_; print "$id ok " . length($bytes) . "\n$bytes"; }
while (my $line = <STDIN>) {
    chomp $line;
    my ($id, $method, $length, @words) = split / /, $line;
    read STDIN, my $data, $length if $length;
    if ($method eq "get_size") { answer($id, "1M\n"); }
    elsif ($method eq "open") { answer($id, "handle of $words[1]\n"); }
    elsif ($method eq "export_description") { answer($id, "<$words[0]>"); }
    elsif ($method eq "config") { print "- log " . (1 + length "@words") . "\n@words\n"; answer($id, ""); }
    elsif ($method eq "pread" && $words[2] == 0) { print "$id error 15\nENOSPC no space"; }
    elsif ($method eq "pread" && $words[2] == 512) { answer($id, "short"); }
    elsif ($method eq "pread" && $words[2] == 1024) { print "$id ok 512 disconnect\n" . "x" x 512; }
    elsif ($method eq "pread") {
        unshift @held, [$id, chr(65 + $words[2] / 4096 % 16) x $words[1]];
        next if @held < 4;
        answer(@$_) for @held;
        @held = ();
    }
    elsif ($method eq "can_multi_conn") { print "$id false\n"; }
    else { print "$id missing 0\n"; }
}
EOS
cat >client.py <<'EOS'
import nbd, sys
h = nbd.NBD()
h.set_export_name("a %name\tof - more")
h.connect_uri(sys.argv[1])
buffers = [nbd.Buffer(4096) for _ in range(4)]
for i, each in enumerate(buffers): h.aio_pread(each, 8192 + 4096 * i)
while h.aio_in_flight() > 0: h.poll(-1)
print([each.to_bytearray()[:2] for each in buffers])
for offset in (0, 512):
    try: h.pread(512, offset)
    except nbd.Error as e: print(e.errno)
print(h.pread(512, 1024)[:3])
try:
    h.pread(512, 0)
    h.pread(512, 0)
    print("still there")
except nbd.Error as e: print("gone")
EOS
blk serve -U - exec 'perl other.pl' 'key=some value' --run '/usr/bin/python3 client.py "$uri"; nbdinfo "$uri/" | grep description || true' >out.txt 2>error.txt
expect_match "$(sed -n 1p out.txt)" "CC.*DD.*EE.*FF"
expect_equal "$(sed -n '2,3p' out.txt)" $'ENOSPC\nEIO'
expect_match "$(cat out.txt)" 'gone'
expect_match "$(cat error.txt)" 'exec: perl other.pl: key some%20value'
expect_match "$(cat error.txt)" 'pread gave 5 bytes instead of 512'

# Programs that cannot begin, and those that answer with something else.
expect_status 1 blk serve -U - exec ./nothing --run true 2>error.txt
expect_match "$(cat error.txt)" 'the program has ended: exit status 127'
for garbage in 'echo hello' 'echo 999 ok 0' 'echo 1 perhaps 0' 'echo 1 ok x' 'echo 1 ok 99999999999' 'yes | tr -d "\n"' \
  'printf "%02000d" 7' true; do
  expect_status 1 timeout 20 blk serve -U - exec "sh -c '$garbage'" --run true 2>error.txt
  expect_match "$(cat error.txt)" 'it sent|it answered|has ended' "the error after $garbage"
done

# A hung program is ended some time after its client has left; the next client gets another one.
cat >hang.py <<'EOS'
import sys, time
for line in sys.stdin.buffer:
    ident, method, length, *words = line.split()
    if method == b"pread" and words[2] == b"0":
        time.sleep(1000)
    output = b"get_size pread" if method == b"load" else b"1M" if method == b"get_size" else bytes(512)
    sys.stdout.buffer.write(b"%s ok %d\n" % (ident, len(output)) + output)
    sys.stdout.buffer.flush()
EOS
background hang blk serve -f -U hang.socket exec '/usr/bin/python3 hang.py' blk-timeout=1
wait_for_socket hang.socket
cat >leave.py <<'EOS'
import nbd, time
h = nbd.NBD()
h.connect_unix("hang.socket")
h.aio_pread(nbd.Buffer(512), 0)
end = time.monotonic() + 0.3
while time.monotonic() < end: h.poll(50)
EOS
/usr/bin/python3 leave.py
expect_equal "$(timeout 10 nbdinfo --size 'nbd+unix:///?socket=hang.socket')" 1048576
expect_match "$(cat hang.log)" 'pread (took too long|is still running)'
