# The data backend against real nbdkit: expression by expression the same bytes and the same map, read by the same
# clients. Then what nbdkit does not do or does otherwise.
# shellcheck disable=SC2016  # the dollars are for blk and nbdkit
. "$LIB"
skip_unless_installed nbdkit nbdcopy nbdinfo

printf 'hello' >file
printf '%40000s' '' | tr ' ' 'z' >big
: >empty
truncate -s 100000 holes
export variable='1 2 (3 4)*2' other='$variable*2 @^32 9'

# Reads the whole disk of the server that runs this: its bytes to ./bytes, its map to ./map. nbdkit tells written zeroes
# (2) from holes (3), blk does not keep them: for both they are the same here.
cat >read_disk <<'EOF'
set -e
nbdcopy "$uri" - >bytes
nbdinfo --map "$uri" | awk '
  { type = $3 == 0 ? "data" : "zero" }
  NR > 1 && type == last { length_bytes += $2; next }
  NR > 1 { print start, length_bytes, last }
  { start = $1; length_bytes = $2; last = type }
  END { if (NR) print start, length_bytes, last }' >map
EOF

compared=0
same() {
  rm -f bytes map
  nbdkit -U - data "data=$1" "${@:2}" --run '. ./read_disk' || fail "nbdkit refuses: $*"
  mv bytes bytes.nbdkit
  mv map map.nbdkit
  blk serve -U - data "data=$1" "${@:2}" --run '. ./read_disk' || fail "blk refuses: $*"
  expect_same bytes bytes.nbdkit "the bytes of: $*"
  expect_equal "$(cat map)" "$(cat map.nbdkit)" "the map of: $*"
  compared=$((compared + 1))
}

while IFS= read -r expression; do
  if [ -n "$expression" ]; then same "$expression"; fi
done <<'EOF'
 @32768 1 
0 1 2 3 @0x1fe 0x55 0xaa
0 1 2 3 @^0x200 @-2 le16:0xaa55
( 0x55 0xAA )*2048
1 2 @-1 3
@10 @^4 1
1 @4
255 0377 0xff 0XFF 010
le32:0x12345678 be64:010 be16:0xffff le64:18446744073709551615 be32:1 le16:2
"a\n\t\x41\\\"\a\b\f\r\v\e\q\?\'"
"" "\xfff" "# ( ) * [1:2] @ $x"
1*3 "a"*3"b"*2 1* 3 1 * 3
1*0
1*2*3
1*0x10 1*010
(1 2 3)[1:2] (1 2 3)[1:] (1 2 3)[:] (1 2 3)[3:] (1 2 3)[2:2]
"abc"[1:2]"z" "\n"*2[0:1] 1[0:1]*4
1"abc" @1"a" @9le16:5
1->\x \x\x
1 -> \x (2 -> \x \x) \x
1 -> \x 2 -> \x \x
1 -> \x (\x 2) -> \x \x
1 -> \a (\a 2) -> \b 3 -> \a \b
( 0x55 0xAA ) -> \boot-signature ( @0x1fe \boot-signature ) -> \sector \sector \sector
(@4)*2 1
(1 @4)*2
(1 @0)*3
(1 2 @-1)*3
() ( )*5 1
(1*3 -> \x)*2 1
@5 @2 1
1 @5 @2
1 @10 @0 2
(@5 @0 1)*2
@4 (1 @^4 2)*2
1*2 @^4 3 @+3 @-1 4
(1*3)[1:]*2[1:3]
((((1 2)*2 3)[1:4])*2 [1:])*2
1 2 3 @1 0 0
(1 2 3)*3 @2 (9 0 9)*2
1*3 @1 ( @1 )
1*5 @1 (@2 7)
1*5 @1 0*2
1*5 @1 (@3)
((1 @10)*3)[5:25]
((1 @32768)*4)[32767:65537]
((1 @32768)*4)[32769:65536]
(@40000 1)*3
(0*10 1)*3
0*1000000
0*1000000 1
1 @1000000
@1000000 1 @0 2 @500000 3
1 @32768 0 @65536 2
1*32768 @32768 0*32768 1
"x"*300000
("abc" @1000)*1000
(1 @65535)*10 @100 (0*50000)
((1 2)*40000 -> \x) 3
(1 2)*40000 -> \x \x[79999:] \x[:3] \x[39999:40001]
<file
<file*2 <file[1:3] <file [2:4] <file[:9] (<file) (<file )*2
<file[3:] <empty <file[9:] 1
<big @^512 <file @^512 <big @^512
<big*20
<big[39990:]*3
<holes 1
<holes*3 <big
<file -> \f \f \f[1:2]
</dev/zero[:40000] 1
<(echo hi)
<(echo hi)[:1] <(echo hi)[1:2]*3 <(echo hi)[:9]
<( (echo one; echo two) | tr e E )
<(printf ab; exit 3)[:2]
<( i=0; while :; do printf "%04d" $i; i=$((i+1)); done )[:32768]
<(yes)[:3]*4
<(printf ab)[:0]
<(cat big) <(cat holes) <(cat big)
$variable
$variable*2 ($variable)[1:3] $other[3:]
1 2	3 # a comment ( with "things
EOF

# With parameters, and what does not fit a line.
same '( # one )
 1 )*2 # two'
same '$x $x*2' x='1 2 "a b"'
same '$x' x='$y (7 $y)*2' y='4 5'
same '$variable' variable=5
same '1 -> \a $x \a' x='\a 2 -> \a \a*3'
same '1' size=10
same '1 2 3' size=1
same '1 2' size=0
same '' size=1M
same '@40000 1' size=32768
same '1 @40000' size=33K
same ' ( "Hello" )*2000 ' size=8192
same '
  @0x1be    # MBR first partition entry
    0           # Partition status
    0 2 0       # CHS start
    0x83        # Partition type (Linux)
    0x20 0x20 0 # CHS last sector
    le32:1      # LBA first sector
    le32:0x7ff  # LBA number of sectors
  @0x1fe    # Boot signature
    0x55 0xaa
  ' size=1M
for allocator in sparse malloc zstd dedup; do
  if [ $allocator = dedup ]; then
    nbdkit -U - data '(1 @40000)*5 <big' --run '. ./read_disk'
  else
    nbdkit -U - data '(1 @40000)*5 <big' allocator=$allocator --run '. ./read_disk'
  fi
  mv bytes bytes.nbdkit
  blk serve -U - data '(1 @40000)*5 <big' allocator=$allocator --run '. ./read_disk'
  expect_same bytes bytes.nbdkit "the bytes with allocator=$allocator"
done

# raw and base64.
for parameter in raw=abc raw= base64=MTIz 'base64=MTIz MTIz' base64= base64=AAECAwQF//8=; do
  nbdkit -U - data "$parameter" size=5 --run '. ./read_disk'
  mv bytes bytes.nbdkit
  blk serve -U - data "$parameter" size=5 --run '. ./read_disk'
  expect_same bytes bytes.nbdkit "the bytes of $parameter"
done

bytes_of() { blk serve -U - data "$@" --run 'nbdcopy "$uri" -' | xxd -p | tr -d '\n'; }

# An endless script is read as far as the slice needs, in bash, and does not outlive it.
expect_equal "$(bytes_of ' <( while :; do printf "%04x" $((i++)); done ) [:2048] ' | cut -c 1-24)" \
  303030303030303130303032 "the first numbers"
expect_equal "$(blk serve -U - data '<( echo $$ >script.pid; exec yes )[:2048]' --run 'nbdinfo --size "$uri"')" 2048
wait_until 5 bash -c '! kill -0 "$(cat script.pid)"'
# One file, read once, 16 times the same.
blk serve -U - data ' </dev/urandom[:512]*16 ' --run 'nbdcopy "$uri" random'
expect_equal "$(stat -c %s random)" 8192
expect_equal "$(split -b 512 --filter 'sha256sum' random | sort -u | wc -l)" 1 "the number of different sectors"
# Sizes with suffixes, and a huge repeat that is hardly looked at.
expect_equal "$(bytes_of '@1K 1' | wc -c)" 2050
expect_equal "$(bytes_of '("ab"*1E)[:10]')" 61626162616261626162
expect_equal "$(blk serve -U - data '0*1E 1' --run 'nbdinfo --size "$uri"')" 1152921504606846977
expect_equal "$(bytes_of '"\101\0"')" 4100
# What is written is there until the end.
expect_equal "$(printf xyz >xyz; blk serve -U - data '1 2 3 @8' \
  --run 'nbdcopy xyz "$uri" && nbdcopy "$uri" -' | xxd -p)" 78797a0000000000

refused() {
  if blk serve -U - data "${@:2}" --run 'true' >refused.log 2>&1; then fail "accepted: ${*:2}"; fi
  expect_match "$(cat refused.log)" "$1" "the error of ${*:2}"
}
refused 'exit status 3.*: last words at offset 2' '1 <(echo first >&2; echo last words >&2; exit 3)'
refused 'exit status 3' '<(printf ab; exit 3)[:3]'
refused 'BYTE must be in the range 0..255 at offset 4' '0 1 256'
refused 'nope: .*No such file or directory.* at offset 0' '<nope'
refused 'Is a directory' '</tmp'
refused 'unmatched .\(. in data string' '(1'
refused '\$nope: variable not found' '$nope'
refused 'must be specified exactly once' 1 raw=1
refused 'extra parameters passed' base64=MTIz x=1
refused 'was not specified' size=10
refused 'base64' 'base64=*'
refused 'did you mean .allocator' 1 alocator=zstd

[ $compared -ge 80 ] || fail "only $compared expressions were compared"
echo "$compared expressions gave the same bytes and maps as nbdkit"
