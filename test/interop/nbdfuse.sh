#!/bin/bash
# libnbd's nbdfuse: mounts what `blk serve -s` serves on its standard input and output, and a disk of 7 exabytes with a
# btrfs on it, which is mounted where the machine allows it.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed nbdfuse fusermount3 mkfs.btrfs
skip_unless "/dev/fuse" sh -c ': <>/dev/fuse'

# Nothing stays mounted, however the script ends.
unmount() {
  mountpoint -q btrfs 2>/dev/null && umount btrfs
  if [ -n "${loop-}" ]; then losetup -d "$loop" 2>/dev/null || true; fi
  if mountpoint -q mnt 2>/dev/null; then fusermount3 -uz mnt; fi
}
trap 'unmount; end_background' EXIT

# start_nbdfuse ARGUMENT...: mounts the file `mnt/nbd`.
start_nbdfuse() {
  mkdir -p mnt
  background nbdfuse nbdfuse mnt "$@"
  wait_until 10 test -e mnt/nbd
}
end_nbdfuse() {
  fusermount3 -u mnt
  timeout 10 tail --pid="$background_pid" -f /dev/null || fail 'nbdfuse does not end'
}

truncate -s 3M disk.img
start_nbdfuse --command blk serve -s file disk.img
expect_equal "$(stat -c %s mnt/nbd)" 3145728 'the size of the mounted disk'
head -c 1M /dev/urandom >random
dd if=random of=mnt/nbd bs=64k seek=3 conv=notrunc,fsync status=none
cmp -n 1048576 -i 0:196608 random mnt/nbd || fail 'read back through nbdfuse'
end_nbdfuse
cmp -n 1048576 -i 0:196608 random disk.img || fail 'written through nbdfuse to the file'

# 7 EiB: what is served ends with nbdfuse, so the server runs until the mount is gone.
background server blk serve -U socket memory 7E
wait_for_socket socket
start_nbdfuse --unix socket
expect_equal "$(stat -c %s mnt/nbd)" $((7 << 60)) 'the size of a disk of 7E'
mkfs.btrfs -q -K mnt/nbd
btrfs check mnt/nbd >check.txt 2>&1 || fail "btrfs check: $(cat check.txt)"
expect_match "$(cat check.txt)" 'no error found'
if [ "$(id -u)" = 0 ] && grep -qw btrfs /proc/filesystems && loop=$(losetup --show -f mnt/nbd 2>error.txt); then
  mkdir -p btrfs
  if mount "$loop" btrfs 2>error.txt; then
    head -c 20M /dev/urandom >btrfs/file
    cp -r /usr/share/common-licenses btrfs/
    sync -f btrfs/file
    sum=$(sha256sum <btrfs/file)
    umount btrfs
    mount "$loop" btrfs
    expect_equal "$(sha256sum <btrfs/file)" "$sum" 'a file on btrfs after a new mount'
    diff -r /usr/share/common-licenses btrfs/common-licenses
    umount btrfs
  else
    echo "not mounted: $(cat error.txt)"
  fi
  losetup -d "$loop"
  loop=
  btrfs check mnt/nbd >check.txt 2>&1 || fail "btrfs check after use: $(cat check.txt)"
else
  echo "not mounted: needs loop devices and btrfs in the kernel: $(cat error.txt 2>/dev/null)"
fi
end_nbdfuse
