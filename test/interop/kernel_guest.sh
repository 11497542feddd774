#!/bin/bash
# What only another kernel can show, in a virtual machine: the kernel's NBD client with several connections while the
# server ends or dies, and disks that fail, vanish, have a quota or become read-only. BLK_KERNEL=FOLDER: with boot/vmlinuz-* and
# lib/modules (/).
# shellcheck source=test/interop/lib.sh
. "$LIB"
root=${BLK_KERNEL-/}
kernel=$({ find "${root%/}/boot" -name 'vmlinuz-*' 2>/dev/null || true; } | sort -V | tail -n 1)
skip_unless 'a kernel in /boot or BLK_KERNEL, and its modules' test -r "$kernel"
version=${kernel##*/vmlinuz-}
for program in qemu-system-x86_64 busybox cpio modprobe dmsetup nbd-client mkfs.ext4 mkfs.xfs xfs_quota; do
  skip_unless "$program, to try another kernel" command -v $program
done
skip_unless "the product, not a sanitizer's build" is_product

mkdir -p guest/bin guest/sbin guest/dev guest/proc guest/sys guest/modules guest/etc
# put FILE FOLDER: with the libraries that it is linked with.
put() {
  cp -L "$1" "guest$2/"
  { ldd "$1" 2>/dev/null || true; } | sed -n 's,^[^/]*\(/[^ ]*\).*,\1,p' | while read -r library; do
    mkdir -p "guest$(dirname "$library")"
    cp -Ln "$library" "guest$library"
  done
}
put "$(command -v blk)" /bin
put "$(command -v busybox)" /bin
for program in dmsetup nbd-client mkfs.ext4 mkfs.xfs xfs_quota; do put "$(command -v $program)" /sbin; done
ln -s /proc/mounts guest/etc/mtab
echo 'root:x:0:0:root:/:/bin/sh' >guest/etc/passwd
number=10
for module in nbd loop dm-mod dm-flakey ext4 xfs sd_mod scsi_debug; do
  modprobe --dirname "${root%/}/" -S "$version" --show-depends $module 2>/dev/null || echo "builtin $module"
done | sed -n 's/^insmod \([^ ]*\).*/\1/p' | awk '!seen[$0]++' >modules.txt
while read -r module; do
  number=$((number + 1))
  case $module in
    *.xz) xz -dc "$module" >"guest/modules/$number-$(basename "$module" .xz)" ;;
    *) cp "$module" "guest/modules/$number-$(basename "$module")" ;;
  esac
done <modules.txt
here=$(dirname "$LIB")/../guest
cat "$here/init" "$here/ends" "$here/disks" - >guest/init <<'END'
say PASSED
poweroff -f
END
chmod +x guest/init
(cd guest && find . | cpio -o -H newc --quiet) | gzip -1 >initrd
# No KVM here or there: every instruction is translated, which takes its time. (-cx16: QEMU 7.2 gets it wrong at times.)
timeout 280 qemu-system-x86_64 -accel tcg,thread=multi -cpu max,-cx16 -smp 2 -m 1536 -nodefaults -display none -no-reboot \
  -serial file:serial -kernel "$kernel" -initrd initrd \
  -append 'console=ttyS0 panic=-1 quiet rdinit=/init mitigations=off nokaslr' </dev/null >qemu.log 2>&1 || fail "qemu: $(cat qemu.log; tail -n 20 serial)"
tr -d '\r' <serial | sed -n 's/^@ //p' >said.txt
cat said.txt
expect_equal "$(tail -n 1 said.txt)" PASSED 'the last word of the guest'
if grep -aE 'Oops|BUG:|Call Trace' serial; then fail 'the kernel has complained'; fi
