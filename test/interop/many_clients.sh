#!/bin/bash
# One server and many clients: sixteen at once, a thousand one after the other, fifty that idle while one works, clients
# that leave in the middle of anything, and disks of odd sizes up to the largest.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_python_has nbd python3-libnbd
skip_unless_installed nbdcopy nbdinfo

cat >common.py <<'END'
import errno, nbd, os, random, socket, struct, sys, threading
path = os.environ['unixsocket']
def connect(setup=None):
    h = nbd.NBD()
    h.set_strict_mode(0)
    h.connect_unix(path)
    return h
def in_threads(count, function):
    failures = []
    def run(i):
        try: function(i)
        except BaseException as error: failures.append('%d: %r' % (i, error))
    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert not failures, failures[:3]
END
export PYTHONPATH=$tmp PYTHONDONTWRITEBYTECODE=1
cat >sixteen.py <<'END'
from common import *
M = 1 << 20
def work(i):  # each its own MiB, checked; all of them read the whole disk meanwhile
    h = connect()
    mine = bytearray(M)
    r = random.Random(i)
    for _ in range(100):
        at = r.randrange(M)
        data = r.randbytes(r.randrange(1, min(M - at, 70000) + 1))
        h.pwrite(data, i * M + at)
        mine[at:at + len(data)] = data
        if r.random() < 0.1: h.flush()
        h.pread(65536, r.randrange(16 * M - 65536))
    assert h.pread(M, i * M) == mine
    h.shutdown()
in_threads(16, work)
END
cat >thousand.py <<'END'
from common import *
for i in range(1000):  # every way of leaving
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
    if i % 5 == 1: s.recv(18)
    if i % 5 == 2: s.sendall(b'GET / HTTP/1.0\r\n\r\n')
    if i % 5 == 3: s.sendall(struct.pack('>I', 3) + b'IHAVEOPT' + struct.pack('>II', 1, 0) +
                             struct.pack('>IHHQQI', 0x25609513, 0, 0, 1, 0, 1 << 20))  # a read whose reply nobody takes
    if i % 5 == 4: s.sendall(struct.pack('>I', 3) + b'IHAVEOPT' + struct.pack('>II', 1, 0) +
                             struct.pack('>IHHQQI', 0x25609513, 0, 1, 1, 0, 1 << 20) + b'half')
    s.close()
assert connect().get_size() == 16 << 20
for i in range(1000):
    h = connect()
    assert h.pread(1, i) == b'\0'
    h.shutdown()
open_files = len(os.listdir('/proc/%d/fd' % os.getppid()))
END
cat >idle.py <<'END'
from common import *
idle = [connect() for _ in range(40)]
silent = []
for _ in range(10):
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
    silent.append(s)
work = connect()
for i in range(2000): assert len(work.pread(4096, i * 4096)) == 4096
for h in idle: assert len(h.pread(512, 0)) == 512
END
for disk in 'memory 16M' 'file disk.img' 'memory 16M -t 1'; do
  rm -f disk.img
  truncate -s 16M disk.img
  for script in sixteen idle; do
    # shellcheck disable=SC2086  # words
    timeout 60 blk serve $disk --run "/usr/bin/python3 $script.py" 2>error.txt || fail "$script.py on $disk: $(tail -n 3 error.txt)"
  done
done
timeout 60 blk serve memory 16M --run '/usr/bin/python3 thousand.py' 2>error.txt || fail "thousand.py: $(tail -n 3 error.txt)"
# A server that served two thousand holds no more descriptors or memory than one that served ten.
background server blk serve -U leak.socket memory 16M
wait_for_socket leak.socket
unixsocket=$PWD/leak.socket /usr/bin/python3 thousand.py
sleep 0.3
descriptors=$(ls "/proc/$background_pid/fd" | wc -l)
memory_kib=$(awk '/^VmRSS/ {print $2}' "/proc/$background_pid/status")
unixsocket=$PWD/leak.socket /usr/bin/python3 thousand.py
sleep 0.3
expect_equal "$(ls "/proc/$background_pid/fd" | wc -l)" "$descriptors" 'the descriptors after a thousand more clients'
grown=$(($(awk '/^VmRSS/ {print $2}' "/proc/$background_pid/status") - memory_kib))
if is_product && [ $grown -gt 4000 ]; then fail "a thousand clients more cost $grown KiB"; fi

# Odd sizes, to the last byte and not beyond.
cat >size.py <<'END'
from common import *
size = int(sys.argv[1])
h = connect()
assert h.get_size() == size
last = max(size - 5000, 0)
data = bytes(random.Random(1).randbytes(size - last))
h.pwrite(data, last)
assert h.pread(len(data), last) == data
for request in (lambda: h.pread(1, size), lambda: h.pread(2, size - 1), lambda: h.pwrite(b'xx', size - 1), lambda: h.zero(2, size - 1)):
    try: request()
    except nbd.Error as error: assert error.errnum in (errno.EINVAL, errno.ENOSPC), error
    else: raise AssertionError('beyond the end')
h.zero(1, size - 1)
assert h.pread(1, size - 1) == b'\0'
assert h.pread(1, last) == (data[:1] if last < size - 1 else b'\0')
END
for size in 1 511 513 4095 4097 65537 1000001 9223372036854775807; do
  blk serve memory $size --run "/usr/bin/python3 size.py $size && nbdinfo --size \"\$uri\" >/dev/null && blk map \"\$uri\" >/dev/null" ||
    fail "a disk of $size bytes"
  if [ ${#size} -lt 10 ]; then
    head -c $size /dev/urandom >odd.img
    blk serve file odd.img --run 'nbdcopy "$uri" copied.img && blk copy --verify "$uri" again.img'
    expect_same odd.img copied.img "nbdcopy of $size bytes"
    expect_same odd.img again.img "blk copy of $size bytes"
    rm -f copied.img again.img
  fi
done
expect_equal "$(blk map --totals memory:9223372036854775807 | awk '{$1=$1}1')" '9223372036854775807 100.0% 3 hole,zero' 'the largest disk'
timeout 20 blk copy memory:9223372036854775807 null:
