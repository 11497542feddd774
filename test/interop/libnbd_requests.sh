#!/bin/bash
# Every request and option that libnbd can make of `blk serve`, from Python: replies with holes, flags, two metadata
# contexts, and the errno that each request which must be refused gets.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_python_has nbd python3-libnbd

cat >common.py <<'END'
import errno, nbd, os, sys
ZERO, DATA, HOLE, ERROR = nbd.READ_HOLE, nbd.READ_DATA, nbd.READ_HOLE, nbd.READ_ERROR
def connect(uri=os.environ.get('uri'), setup=None):
    h = nbd.NBD()
    h.set_strict_mode(0)  # what is wrong is sent, and refused by the server
    if setup: setup(h)
    h.connect_uri(uri)
    return h
def refused(expected, function, *arguments, **keywords):
    try:
        function(*arguments, **keywords)
    except nbd.Error as error:
        assert error.errnum == expected, '%s instead of %s: %s' % (
            errno.errorcode[error.errnum], errno.errorcode[expected], error.string)
        return
    raise AssertionError('not refused: %s %s' % (function, arguments))
def equal(actual, expected):
    assert actual == expected, '%r instead of %r' % (actual, expected)
def chunks_of(h, length, offset, flags=0):
    chunks = []
    def chunk(data, at, status, error):
        chunks.append((at, len(data), status))
        return 0
    return h.pread_structured(length, offset, chunk, flags), chunks
END
export PYTHONPATH=$tmp PYTHONDONTWRITEBYTECODE=1

cat >reads.py <<'END'
from common import *
h = connect()
assert h.get_structured_replies_negotiated()
M = 1 << 20
h.pwrite(b'a' * 65536, 1 * M)
h.pwrite(b'b' * 100, 3 * M - 50)
h.pwrite(b'e', 8 * M - 1)
# Holes come as holes, in order, without gaps.
data, chunks = chunks_of(h, 4 * M, 0)
equal(data, bytearray(bytes(M) + b'a' * 65536 + bytes(2 * M - 65536 - 50) + b'b' * 100 + bytes(M - 50)))
at = 0
for offset, length, status in sorted(chunks):
    equal(offset, at)
    at += length
equal(at, 4 * M)
holes = sum(length for _, length, status in chunks if status == HOLE)
assert holes > 3.5 * M, 'only %d bytes were holes' % holes
assert any(status == DATA for _, _, status in chunks)
# DF: one chunk.
data, chunks = chunks_of(h, 1 * M, 2 * M + 4096 * 100, nbd.CMD_FLAG_DF)
equal(len(chunks), 1)
equal(chunks[0][:2], (2 * M + 409600, M))
# To the last byte, and not beyond.
equal(h.pread(1, 8 * M - 1), bytearray(b'e'))
for length, offset in ((1, 8 * M), (2, 8 * M - 1), (512, 9 * M), (512, 1 << 62), (512, (1 << 64) - 1)):
    refused(errno.EINVAL, h.pread, length, offset)
equal(h.pread(1, 8 * M - 1), bytearray(b'e'))
h.shutdown()
END

cat >writes.py <<'END'
from common import *
h = connect()
M = 1 << 20
size = h.get_size()
h.pwrite(b'x' * 3 * M, 0)
h.zero(4097, 511)
equal(h.pread(4700, 0), bytearray(b'x' * 511 + bytes(4097) + b'x' * 92))
h.zero(65536, 1 * M, nbd.CMD_FLAG_FAST_ZERO)
equal(h.pread(65538, 1 * M - 1), bytearray(b'x' + bytes(65536) + b'x'))
h.zero(65536, 2 * M, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
equal(h.pread(65538, 2 * M - 1), bytearray(b'x' + bytes(65536) + b'x'))
h.trim(65536, 2 * M + 65536)
h.trim(1, 7, nbd.CMD_FLAG_FUA)
h.pwrite(b'fua', 5 * M + 1, nbd.CMD_FLAG_FUA)
equal(h.pread(5, 5 * M), bytearray(b'\0fua\0'))
h.cache(65536, 0)
h.flush()
for length, offset in ((1, size), (2, size - 1), (512, size + 1), (512, 1 << 62), (512, (1 << 64) - 256)):
    refused(errno.ENOSPC, h.pwrite, b'y' * length, offset)
    refused(errno.ENOSPC, h.zero, length, offset)
    for request in (h.trim, h.cache):
        refused(errno.EINVAL, request, length, offset)
# Flags that do not belong there.
refused(errno.EINVAL, h.pread, 512, 0, nbd.CMD_FLAG_NO_HOLE)
refused(errno.EINVAL, h.pwrite, b'z', 0, nbd.CMD_FLAG_REQ_ONE)
refused(errno.EINVAL, h.trim, 512, 0, 1 << 9)
equal(h.pread(3, 5 * M + 1), bytearray(b'fua'))
# 64 requests in flight, completed in any order.
buffers = {}
for i in range(64):
    h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray([i]) * 8192), 6 * M + i * 8192)
while h.aio_in_flight(): h.poll(-1)
for i in range(63, -1, -1):
    buffers[i] = nbd.Buffer(8192)
    h.aio_pread(buffers[i], 6 * M + i * 8192)
while h.aio_in_flight(): h.poll(-1)
for i, buffer in buffers.items(): equal(buffer.to_bytearray(), bytearray([i]) * 8192)
h.shutdown()
END

cat >read_only.py <<'END'
from common import *
h = connect()
assert h.is_read_only()
for request in (lambda: h.pwrite(b'x', 0), lambda: h.zero(512, 0), lambda: h.trim(512, 0)):
    refused(errno.EPERM, request)
equal(len(h.pread(512, 0)), 512)
h.flush()
END

cat >contexts.py <<'END'
from common import *
def setup(h):
    h.add_meta_context('base:allocation')
    h.add_meta_context('none:such')
    if len(sys.argv) > 1: h.add_meta_context(sys.argv[1])
h = connect(setup=setup)
assert h.can_meta_context('base:allocation')
assert not h.can_meta_context('none:such')
M = 1 << 20
found = {}
def extents(length, offset, flags=0):
    found.clear()
    def extent(context, at, entries, error):
        equal(at, offset)
        found[context] = [(entries[i], entries[i + 1]) for i in range(0, len(entries), 2)]
        return 0
    h.block_status(length, offset, extent, flags)
    return found['base:allocation']
equal(extents(8 * M, 0), [(1 * M, 3), (1 * M, 0), (6 * M, 3)])
equal(extents(M // 2, M + 4096), [(M - 4096, 0)])  # the last may go on beyond what was asked, as in nbdkit
equal(extents(6 * M, 3 * M // 2, nbd.CMD_FLAG_REQ_ONE), [(M // 2, 0)])
equal(extents(1, 8 * M - 1), [(1, 3)])
if len(sys.argv) > 1:
    equal(sorted(found), ['base:allocation', sys.argv[1]])
refused(errno.EINVAL, extents, 1, 8 * M)
refused(errno.EINVAL, extents, 2 * M, 7 * M)
equal(extents(1, 0), [(M, 3)])
END

cat >options.py <<'END'
from common import *
def setup(h):
    h.set_opt_mode(True)
    h.set_full_info(True)
h = connect(setup=setup)
names = []
def export(name, description):
    names.append(name)
    return 0
equal(h.opt_list(export), len(os.listdir('exports')))
equal(sorted(names), sorted(os.listdir('exports')))
refused(errno.ENOENT, lambda: (h.set_export_name('missing'), h.opt_info()))
for bad in ('../common.py', '/etc/passwd', '..', '.'):
    h.set_export_name(bad)
    refused(errno.ENOENT, h.opt_info)
# Asked again and again, changed, then opened.
for name in sorted(names) * 20:
    h.set_export_name(name)
    h.opt_info()
    equal(h.get_size(), os.stat('exports/' + name).st_size)
h.set_export_name('with space')
contexts = []
h.add_meta_context('base:')
def context(name):
    contexts.append(name)
    return 0
equal(h.opt_list_meta_context(context), 1)
equal(contexts, ['base:allocation'])
h.clear_meta_contexts()
h.add_meta_context('base:allocation')
h.opt_go()
equal(h.get_size(), os.stat('exports/with space').st_size)
equal(h.get_canonical_export_name(), 'with space')
assert h.can_meta_context('base:allocation')
h.pread(512, 0)
h.shutdown()
# Left in the middle.
h = connect(setup=setup)
h.opt_abort()
h = connect(setup=setup)
h.set_export_name('x' * 4096)
refused(errno.ENOENT, h.opt_info)
h.set_export_name('größe')
h.opt_go()
equal(h.get_size(), 1024)
END

cat >name.py <<'END'
# The export's content is its own name: nothing of 4096 bytes is lost or changed.
from common import *
for name in ('', 'a b', 'größe/☃', '../..', '%41', 'x' * 255, 'é' * 2048, '☃' * 1365 + 'y'):
    h = nbd.NBD()
    h.set_export_name(name)
    h.connect_unix(os.environ['unixsocket'])
    equal(h.get_size(), len(name.encode()))
    if name: equal(bytes(h.pread(h.get_size(), 0)).decode(), name)
    h.shutdown()
END

run() {
  local script=$1
  shift
  blk serve "$@" --run "/usr/bin/python3 $script.py" || fail "$script.py with blk serve $*"
}
truncate -s 8M disk.img
for disk in 'memory 8M' 'file disk.img' 'memory 8M -t 1' 'memory 8M --no-extended-headers'; do
  # shellcheck disable=SC2086  # words
  run reads $disk
  # shellcheck disable=SC2086
  run writes $disk
  # shellcheck disable=SC2086
  run read_only -r $disk
done
# Without structured replies everything but holes works the same.
run writes --no-sr memory 8M
run read_only --no-sr -r memory 8M
truncate -s 0 disk.img
truncate -s 8M disk.img
head -c 1M /dev/zero | tr '\0' m | dd of=disk.img bs=1M seek=1 conv=notrunc status=none
run contexts file disk.img
mkdir exports
truncate -s 1M exports/one
truncate -s 2M 'exports/with space'
truncate -s 1024 'exports/größe'
truncate -s 0 exports/empty
run options file dir=exports
run name info
