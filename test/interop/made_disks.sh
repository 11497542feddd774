#!/bin/bash
# Disks made up around files and folders: partitioning beside nbdkit's, byte for byte; floppy, iso and linuxdisk read by the
# programs of others; tmpdisk and ondemand.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed nbdkit nbdcopy nbdinfo sfdisk sgdisk mcopy mdir fsck.fat isoinfo xorriso mke2fs debugfs e2fsck jq

# ---- partitioning
for i in 1 2 3 4 5 6; do head -c $((i * 100100)) /dev/urandom >f$i; done
same_as_nbdkit() {
  blk serve -U - partitioning "$@" --run 'nbdcopy "$uri" blk.img'
  nbdkit -U - partitioning "$@" --run 'nbdcopy "$uri" nbdkit.img'
  expect_same blk.img nbdkit.img "partitioning $*"
}
same_as_nbdkit f1
same_as_nbdkit f1 f2 f3 f4
same_as_nbdkit partition-type=mbr f1 f2 f3 f4 f5
same_as_nbdkit partition-type=mbr mbr-id=0x82 f1 mbr-id=default alignment=512 f2 alignment=64K f3 mbr-id=7 f4 f5 f6
# The GUIDs of a GPT are random: all but these is the same.
guid=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
for words in "f1 f2 f3 f4 f5" "partition-type=gpt type-guid=$guid f1 type-guid=default alignment=4096 f2"; do
  # shellcheck disable=SC2086  # words
  blk serve -U - partitioning $words --run 'nbdcopy "$uri" blk.img'
  # shellcheck disable=SC2086
  nbdkit -U - partitioning $words --run 'nbdcopy "$uri" nbdkit.img'
  sfdisk -d blk.img 2>&1 | sed 's/uuid=[^,]*//; s/^[^:]*img//; /^device/d' >blk.table
  sfdisk -d nbdkit.img 2>&1 | sed 's/uuid=[^,]*//; s/^[^:]*img//; /^device/d' >nbdkit.table
  expect_equal "$(cat blk.table)" "$(cat nbdkit.table)" "the table of $words"
  sgdisk -v blk.img >verify.txt
  expect_match "$(cat verify.txt)" 'No problems found'
  expect_same <(tail -c +$((1 << 20)) blk.img | head -c $(($(stat -c %s blk.img) - (1 << 20) - 33 * 512))) \
    <(tail -c +$((1 << 20)) nbdkit.img | head -c $(($(stat -c %s nbdkit.img) - (1 << 20) - 33 * 512))) "the partitions of $words"
done
expect_equal "$(blk serve -U - --filter=partition partitioning f1 f2 partition=2 --run 'nbdinfo --size "$uri"')" $(((200200 + 511) / 512 * 512))
# Writes reach the files; the table and the gaps cannot be changed, except to what they are.
blk serve -U - partitioning f1 f2 --run "/usr/bin/python3 -c '
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
h.pwrite(b\"written\", 1 << 20)
h.pwrite(h.pread(2048, 0), 0)
h.zero(4096, 4096)
for offset in (0, 510, 8192):
    try:
        h.pwrite(b\"x\" * 8, offset)
        sys.exit(\"a write to %d did not fail\" % offset)
    except nbd.Error as e:
        assert e.errno == \"EIO\", e
' \"\$uri\""
expect_equal "$(head -c 7 f1)" written
: >empty
expect_status 1 blk serve -U - partitioning empty --run true 2>error.txt
expect_match "$(cat error.txt)" 'empty: a partition cannot be empty'
for word in alignment=100 mbr-id=x mbr-id=0x100 type-guid=C12A; do
  expect_status 1 blk serve -U - partitioning "$word" f1 --run true 2>error.txt
  expect_match "$(cat error.txt)" "${word%%=*}"
done

# ---- floppy: each size and type, without a complaint of fsck, and every byte as it was
mkdir -p 'files/sub/a folder with a long name/deeper'
echo readme >files/README.TXT
: >files/empty
echo 'long name' >'files/sub/A Long File Name, with Blanks.text'
echo 'umlaut' >'files/sub/Größe.txt'
head -c 100001 /dev/urandom >'files/sub/a folder with a long name/blob'
head -c 512 /dev/urandom >files/exactly
for i in $(seq 100); do echo "$i" >"files/sub/file-number-$i.txt"; done
ln -s README.TXT files/link # has no place in a FAT
touch -d '2020-02-03 04:05:06' files/README.TXT
floppy_is_good() {
  local offset=$1 type=$2
  shift 2
  blk serve -U - floppy files "$@" --run 'nbdcopy "$uri" floppy.img'
  tail -c +$((offset + 1)) floppy.img >volume.img
  fsck.fat -nv volume.img >fsck.txt || fail "fsck.fat of floppy $*: $(cat fsck.txt)"
  if grep -qE 'Warning|wrong|Invalid|Truncating' fsck.txt; then fail "fsck.fat of floppy $*: $(cat fsck.txt)"; fi
  expect_match "$(cat fsck.txt)" "2 FATs, $type bit entries"
  rm -rf copy
  mkdir copy
  LC_ALL=C.UTF-8 mcopy -sm -i "floppy.img@@$offset" ::/ copy
  diff -r --no-dereference -x link files copy >&2 || fail "the files of floppy $*"
}
floppy_is_good $((1 << 20)) 32
floppy_is_good $((1 << 20)) 32 size=64M label=small
floppy_is_good $((1 << 20)) 16 type=fat16
floppy_is_good $((1 << 20)) 12 type=fat12
floppy_is_good 512 12 size=1440K
floppy_is_good 512 16 size=12M
floppy_is_good $((1 << 20)) 32 size=300M
expect_match "$(mdir -i "floppy.img@@1M" ::)" 'README +TXT +7 2020-02-03 +4:05'
expect_equal "$(blk serve -U - floppy files size=2G --run 'nbdinfo --size "$uri"')" $((2 << 30))
sfdisk -V floppy.img >/dev/null
expect_status 1 blk serve -U - floppy files size=100K --run true 2>error.txt
expect_match "$(cat error.txt)" 'do not fit'
rm -rf twins && mkdir twins && touch twins/a twins/A
expect_status 1 blk serve -U - floppy twins --run true 2>error.txt
expect_match "$(cat error.txt)" 'the same for FAT'
# A file that goes away is an error for those who read it, and nobody else.
mkdir gone && head -c 1M /dev/urandom >gone/file
blk serve -U - floppy gone --run 'rm gone/file; nbdcopy "$uri" out.img' 2>error.txt && fail 'a file that is gone was read'
expect_match "$(cat error.txt)" 'rror'

# ---- iso
blk serve -U - iso files params=-JrT --run 'nbdcopy "$uri" iso.img'
isoinfo -R -f -i iso.img | sort >names.txt
expect_match "$(cat names.txt)" '^/sub/A Long File Name, with Blanks.text$'
expect_same <(isoinfo -R -x '/sub/a folder with a long name/blob' -i iso.img) 'files/sub/a folder with a long name/blob'
for program in genisoimage xorriso; do
  blk serve -U - iso files twins prog=$program params='-r -V "two words"' --run 'nbdcopy "$uri" iso.img'
  expect_match "$(isoinfo -d -i iso.img)" 'Volume id: two words'
done
expect_status 1 blk serve -U - iso nothing --run true 2>error.txt
expect_match "$(cat error.txt)" 'failed.*nothing|nothing.*failed|failed'

# ---- linuxdisk: contents, owners, modes, links, devices
mkdir -p root/dev root/bin
cp -a files/. root/files
echo program >root/bin/program && chown 1234:5678 root/bin/program && chmod 4755 root/bin/program && ln root/bin/program root/bin/twin && ln -s bin/program root/link
truncate -s 50M root/sparse && echo end >>root/sparse
if [ "$(id -u)" = 0 ]; then mknod root/dev/console c 5 1; fi
for type in ext2 ext3 ext4; do
  blk serve -U - linuxdisk root type=$type label=ROOTFS --run 'nbdcopy "$uri" disk.img'
  sgdisk -v disk.img >verify.txt
  expect_match "$(cat verify.txt)" 'No problems found'
  blk serve -U - --filter=partition linuxdisk root type=$type label=ROOTFS partition=1 --run 'nbdcopy "$uri" fs.img'
  e2fsck -fn fs.img >fsck.txt 2>&1 || fail "e2fsck of $type: $(cat fsck.txt)"
  expect_equal "$(e2label fs.img)" ROOTFS
  ask() { debugfs -R "$1" fs.img 2>/dev/null; }
  expect_equal "$(ask 'cat /bin/twin')" program
  expect_match "$(ask 'stat /bin/program')" 'Mode: +0?4755'
  expect_match "$(ask 'stat /bin/program')" 'User: +1234 +Group: +5678'
  expect_match "$(ask 'stat /bin/program')" 'Links: 2'
  expect_match "$(ask 'stat /link')" 'Fast link dest: "bin/program"'
  expect_equal "$(ask 'dump "/files/sub/a folder with a long name/blob" blob' && cat blob | cksum)" \
    "$(cksum <'files/sub/a folder with a long name/blob')"
  if [ -c root/dev/console ]; then expect_match "$(ask 'stat /dev/console')" 'Device major/minor number: 05:01'; fi
done
expect_equal "$(blk serve -U - --filter=partition linuxdisk root size=100M partition=1 --run 'nbdinfo --size "$uri"')" $((100 << 20))
blk serve -U - --filter=partition linuxdisk root size=+200M partition=1 --run 'nbdcopy "$uri" fs.img'
free=$(dumpe2fs -h fs.img 2>/dev/null | awk '/^Free blocks/ { print $3 * 4096 }')
if [ "$free" -lt $((200 << 20)) ]; then fail "size=+200M leaves $free bytes"; fi
expect_status 1 blk serve -U - linuxdisk root size=100K --run true 2>error.txt
expect_match "$(cat error.txt)" 'it does not fit|TOOSMALL|small'
nbdkit -U - linuxdisk root --run 'nbdcopy "$uri" theirs.img'
sfdisk -d theirs.img | grep -o 'start=[^,]*' >theirs.start
blk serve -U - linuxdisk root --run 'nbdcopy "$uri" disk.img'
expect_equal "$(sfdisk -d disk.img | grep -o 'start=[^,]*')" "$(cat theirs.start)"

# ---- tmpdisk: a disk of its own for each client, and nothing left
export TMPDIR=$PWD/tmp
mkdir "$TMPDIR"
blk serve -U - tmpdisk 20M label=scratch --run '
  nbdcopy "$uri" one.img && e2fsck -fn one.img && e2label one.img &&
  /usr/bin/python3 -c "
import nbd, sys
a, b = nbd.NBD(), nbd.NBD()
a.connect_uri(sys.argv[1]); b.connect_uri(sys.argv[1])
a.pwrite(b\"mine\", 8 << 20)
assert b.pread(4, 8 << 20) != b\"mine\"
assert not a.can_multi_conn()
" "$uri"' >out.txt 2>&1 || fail "$(cat out.txt)"
expect_match "$(cat out.txt)" '^scratch$'
expect_equal "$(blk serve -U - tmpdisk 1M what=7K command='truncate -s $what "$disk"; echo $type >$disk.note' --run 'nbdinfo --size "$uri"')" 7168
for type in ext2 vfat; do
  blk serve -U - tmpdisk 40M type=$type --run 'nbdcopy "$uri" typed.img'
  expect_equal "$(blkid -p -s TYPE -o value typed.img)" $type
done
expect_status 1 blk serve -U - tmpdisk 1M command='echo no such luck >&2; exit 3' --run 'nbdinfo "$uri"' 2>error.txt
expect_match "$(cat error.txt)" 'the command failed, exit status 3: no such luck'
expect_equal "$(ls -A "$TMPDIR")" '' 'what tmpdisk, iso and linuxdisk leave'
unset TMPDIR

# ---- ondemand
mkdir exports
background ondemand blk serve -f -U ondemand.socket ondemand dir=exports 10M type=ext2
wait_for_socket ondemand.socket
at() { echo "nbd+unix:///$1?socket=ondemand.socket"; }
expect_equal "$(nbdinfo --size "$(at one)")" $((10 << 20))
expect_equal "$(nbdinfo --size "$(at '')")" $((10 << 20))
expect_equal "$(ls exports | tr '\n' ' ')" 'default one '
expect_equal "$(nbdinfo --list --json "$(at '')" | jq -c '[.exports[]."export-name"]')" '["default","one"]'
/usr/bin/python3 - <<'EOS'
import nbd, sys
def connect(name):
    h = nbd.NBD()
    h.set_export_name(name)
    h.connect_unix("ondemand.socket")
    return h
one = connect("one")
one.pwrite(b"kept", 9 << 20)
try:
    connect("one")
    sys.exit("a locked disk was opened twice")
except nbd.Error:
    pass
one.shutdown()
assert connect("one").pread(4, 9 << 20) == b"kept"
for bad in ("a/b", "../x", ".", "a:b", "x" * 300):
    try:
        connect(bad)
        sys.exit("export %r was opened" % bad)
    except nbd.Error:
        pass
EOS
expect_match "$(cat ondemand.log)" 'one: filesystem is locked by another client'
expect_equal "$(blk serve -U - ondemand dir=exports size=1M command='echo half >"$disk"; exit 1' --run 'nbdinfo "$uri/" ; ls exports' 2>/dev/null | tr '\n' ' ')" 'default one '

# ---- the examples
expect_equal "$(blk serve -U - example1 --run 'nbdinfo --size "$uri"')" $((100 << 20))
expect_same <(blk serve -U - example2 file=f1 --run 'nbdcopy "$uri" -') f1
