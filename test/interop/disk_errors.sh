#!/bin/bash
# What a disk refuses reaches the client as the errno that it is, at once, and never as a success: full disks, file size
# limits, read-only mounts, media errors, files that shrink and devices that vanish.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_python_has nbd python3-libnbd
sock=$tmp/s.sock

# attempt.py: does one thing after the other, and prints "OK" or the errno's name for each. What it writes successfully
# and flushes it reads back.
cat >attempt.py <<'END'
import errno, nbd, os, sys
h = nbd.NBD()
h.set_strict_mode(0)
h.connect_uri(sys.argv[1])
for step in sys.argv[2:]:
    what, _, rest = step.partition(":")
    offset, _, length = rest.partition("+")
    try:
        if what == "write": h.pwrite(b"w" * int(length), int(offset))
        elif what == "fua": h.pwrite(b"w" * int(length), int(offset), nbd.CMD_FLAG_FUA)
        elif what == "read": h.pread(int(length), int(offset))
        elif what == "zero": h.zero(int(length), int(offset), nbd.CMD_FLAG_NO_HOLE)
        elif what == "trim": h.trim(int(length), int(offset))
        elif what == "flush": h.flush()
        elif what == "truncate": os.truncate(offset, int(length))
        print(what, "OK")
    except nbd.Error as e:
        print(what, errno.errorcode.get(e.errnum, e.errnum))
END

# serve ARGUMENT...
serve() {
  rm -f "$sock"
  background server blk serve -U "$sock" "$@"
  server=$background_pid
  wait_for_socket "$sock"
}
end_server() {
  kill "$server"
  timeout 10 tail --pid="$server" -f /dev/null || fail 'the server does not end'
}
# attempt STEP...: their answers, in one line.
attempt() {
  timeout 20 /usr/bin/python3 attempt.py "nbd+unix:///?socket=$sock" "$@" >answers.txt || fail "no answer: $(cat answers.txt)"
  paste -sd ' ' answers.txt
}

# A limit on the size of files stands for a quota (NBD has one number for full disks of all kinds); SIGXFSZ must not
# end the server.
truncate -s 8M limited.img
(
  ulimit -f 4096
  serve file limited.img
  expect_equal "$(attempt write:0+4096 flush write:6000000+4096 read:6000000+4096 write:4096+4096 flush)" \
    'write OK flush OK write ENOSPC read OK write OK flush OK' 'beyond the limit' || exit 1
  end_server
)

# The device that is always full, and one made so.
serve full 8M
expect_equal "$(attempt read:0+4096 write:0+4096 zero:0+4096)" 'read OK write ENOSPC zero ENOSPC'
end_server
for error in EIO ENOSPC ENOMEM EPERM EINVAL ESHUTDOWN; do
  serve --filter=error memory 1M error=$error error-rate=100%
  expect_equal "$(attempt read:0+512 write:0+512)" "read $error write $error"
  end_server
done

# A file that became shorter: what is gone cannot be read, and is not zeroes.
truncate -s 8M shrinking.img
serve file shrinking.img
expect_equal "$(attempt read:4194304+4096 truncate:shrinking.img+1048576 read:0+4096 read:4194304+4096)" \
  'read OK truncate OK read OK read EIO' 'a file that shrinks'
end_server

skip_unless 'mounts' sh -c 'mkdir -p m && mount -t tmpfs -o size=4M none m'
trap 'umount -l m r e 2>/dev/null; [ -z "${loop-}" ] || losetup -d $loop; end_background' EXIT

# A full file system: the write that does not fit fails, and those that fit go on.
truncate -s 16M m/disk.img
serve file m/disk.img
expect_equal "$(attempt write:0+1048576 write:2097152+1048576 write:8388608+4194304 fua:12582912+1048576 write:0+4096 read:0+4096 flush)" \
  'write OK write OK write ENOSPC fua ENOSPC write OK read OK flush OK' 'a full tmpfs'
# What is freed can be used again.
expect_equal "$(attempt trim:2097152+1048576 trim:8388608+4194304 write:10485760+65536 flush)" 'trim OK trim OK write OK flush OK'
end_server

# Mounted read-only: served so, and refused by name.
mkdir r
mount --bind m r
mount -o remount,bind,ro r
serve file r/disk.img
expect_equal "$(attempt read:0+512 write:0+512 trim:0+512 flush)" 'read OK write EPERM trim EPERM flush OK' 'a read-only mount'
end_server
# Overlays and copies that find no room, too.
expect_status 1 blk copy random:16M m/copy.img 2>error.txt
expect_match "$(cat error.txt)" 'No space left'
rm -f m/copy.img
TMPDIR=$PWD/m serve --filter=cow sparse-random 64M
expect_match "$(attempt write:0+8388608 read:0+512 flush)" '^write ENOSPC read OK flush OK$' 'an overlay without room'
end_server
rm -f m/disk.img

# A block device that fails in its upper half, over a loop device whose file has lost its end and finds no room to grow.
truncate -s 2M m/loop.img
if loop=$(losetup -f --show m/loop.img 2>error.txt); then
  serve file "$loop"
  expect_equal "$(attempt write:0+65536 flush)" 'write OK flush OK'
  truncate -s 1M m/loop.img
  echo 3 >/proc/sys/vm/drop_caches
  expect_match "$(attempt read:0+4096 read:1572864+4096)" '^read OK read EIO$' 'a medium that lost its half'
  dd if=/dev/zero of=m/fill bs=64k status=none 2>/dev/null || true # no room below the loop device for what comes
  expect_match "$(attempt write:1572864+65536 flush flush)" '^write (OK|EIO) flush EIO flush EIO$' 'a flush that failed once'
  # Also for whoever comes later: the bytes stay lost.
  expect_equal "$(attempt write:0+4096 flush)" 'write OK flush EIO' 'a flush after a failed one'
  end_server

  losetup -d "$loop"
else
  echo "no loop device tried: $(cat error.txt)"
  exit 0
fi

# A file system that becomes read-only under an open file. `mount -o remount,ro` is refused while a file is open for
# writing; what does happen is that ext4 finds an error in itself and was mounted with errors=remount-ro. From then on the
# kernel refuses each write and each flush by name (EROFS, which is EPERM on the wire) - the flush too, although
# what it is asked for was acknowledged, so it is no success.
rm -f m/fill m/loop.img
truncate -s 32M readonly.img
mkfs.ext4 -q -F readonly.img
loop=$(losetup -f --show readonly.img)
if mkdir e && mount -t ext4 -o errors=remount-ro "$loop" e 2>error.txt; then
  truncate -s 8M e/disk.img
  serve file e/disk.img
  expect_equal "$(attempt write:0+65536 flush write:65536+65536)" 'write OK flush OK write OK'
  if mount -o remount,ro e 2>error.txt; then fail 'a mount with a file open for writing has become read-only'; fi
  expect_equal "$(attempt write:0+4096 flush)" 'write OK flush OK' 'a remount that was refused'
  echo 1 >"/sys/fs/ext4/${loop##*/}/trigger_fs_error"
  expect_equal "$(attempt read:0+4096 write:0+4096 write:4194304+4096 zero:8192+4096 trim:0+65536 fua:0+4096 flush flush)" \
    'read OK write EPERM write EPERM zero EPERM trim EPERM fua EPERM flush EPERM flush EPERM' 'a file system that became read-only'
  end_server
  # Whoever comes now is told that the disk is read-only.
  serve file e/disk.img
  expect_equal "$(attempt read:0+4096 write:0+4096)" 'read OK write EPERM' 'a file system that is read-only'
  end_server
else
  echo "no ext4 tried: $(cat error.txt)"
fi
