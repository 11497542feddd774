#!/bin/bash
# Extended headers with 64-bit lengths, both directions, with the first qemu that has them: 10.0 of Debian's
# bookworm-backports. It is unpacked into a cache folder of its own, with the libraries that are newer than the machine's;
# neither the package nor the suite is added to the machine.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed qemu-img apt-get dpkg-deb jq
cache=${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/blk/qemu-backports

# fetch_qemu: qemu-utils of the suite and what it needs beyond what is installed, from the machine's own archives.
fetch_qemu() {
  local source options=() packages
  mkdir -p apt/sources apt/lists/partial apt/root
  for source in /etc/apt/sources.list.d/*.sources; do
    if ! grep -qE '^Suites: bookworm( |$)' "$source"; then continue; fi
    sed -E 's/^Suites: bookworm( .*)?$/Suites: bookworm-backports/' "$source" >"apt/sources/$(basename "$source")"
  done
  if [ -s /etc/apt/sources.list ]; then
    sed -n 's/^deb \(.*\) bookworm main.*/deb \1 bookworm-backports main/p' /etc/apt/sources.list | head -n 1 >apt/sources/list.list
  fi
  cp -r /etc/apt/sources.list.d apt/both
  if [ -s /etc/apt/sources.list ]; then cp /etc/apt/sources.list apt/both/machine.list; fi
  for source in apt/sources/*; do cp "$source" "apt/both/backports-$(basename "$source")"; done
  options=(-o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$PWD/apt/both" -o "Dir::State::lists=$PWD/apt/lists"
    -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o "Dir::Cache::archives=$PWD/apt" -o APT::Sandbox::User=root)
  mkdir -p apt/partial
  apt-get "${options[@]}" -qq update || return 1
  # What an installation would take, without one.
  packages=$(apt-get "${options[@]}" -qq --no-install-recommends -s -t bookworm-backports install qemu-utils 2>/dev/null |
    sed -n 's/^Inst \([^ ]*\) .*/\1/p' | grep -E '^(lib|qemu-utils)')
  if [ -z "$packages" ]; then return 1; fi
  # shellcheck disable=SC2086  # words
  (cd apt/root && apt-get "${options[@]}" -qq -t bookworm-backports download $packages) || return 1
  mkdir -p "$cache.new"
  for package in apt/root/*.deb; do dpkg-deb -x "$package" "$cache.new"; done
  rm -rf "$cache"
  mv "$cache.new" "$cache"
}
if [ ! -x "$cache/usr/bin/qemu-img" ]; then
  if ! fetch_qemu >fetch.log 2>&1; then
    echo "needs qemu 10 of Debian's suite bookworm-backports, which cannot be reached"
    exit 77
  fi
fi
for program in qemu-img qemu-io qemu-nbd; do
  cat >"new-$program" <<END
#!/bin/sh
LD_LIBRARY_PATH=$cache/usr/lib/x86_64-linux-gnu:$cache/lib/x86_64-linux-gnu exec $cache/usr/bin/$program "\$@"
END
  chmod +x "new-$program"
done
PATH=$PWD:$PATH
expect_match "$(new-qemu-img --version)" 'version 1[0-9]\.'

# blk serves, qemu is the client. That the headers are negotiated is seen by the server's side of one request: a status
# and a zero of more than 4 GiB at once, which compact requests cannot carry.
truncate -s 100G disk.img
head -c 100000 /dev/urandom | dd of=disk.img bs=65536 seek=800000 conv=notrunc status=none
blk serve -r file disk.img --run 'new-qemu-img map --output=json -f raw "$uri"' | jq -c '[.[] | [.start, .length, .data, .zero]]' >map.txt
expect_equal "$(cat map.txt)" \
  '[[0,52428800000,false,true],[52428800000,102400,true,false],[52428902400,54945280000,false,true]]' 'the map by qemu'
blk serve -r file disk.img --run 'new-qemu-img compare -f raw -F raw "$uri" disk.img'
blk serve sparse-random 4G --run 'new-qemu-img convert -n -f raw -O raw "$uri" "$uri"'
cat >io.sh <<'END'
new-qemu-io -f raw -t none "$uri" -c 'write -P 3 5G 1M' -c 'write -z -u -n 1G 20G' -c 'write -P 4 30G 1M' -c 'discard 29G 1100M' \
  -c 'write -P 5 99G 1M' -c flush -c 'read -P 0 5G 1M' -c 'read -P 0 30G 1M' -c 'read -P 5 99G 1M'
blk map "$uri" >map.txt
END
blk serve memory 100G --run 'sh io.sh' >io.txt
expect_equal "$(awk '{$1=$1}1' map.txt)" $'0 106300440576 3 hole,zero\n106300440576 1048576 0 data\n106301489152 1072693248 3 hole,zero' \
  'what qemu-io wrote, zeroed and discarded'

# The wire, watched: what a qemu 10 and blk agree on.
/usr/bin/python3 - "$(command -v blk)" <<'END'
# A relay between the two, which looks for the magic numbers of extended requests and replies.
import os, socket, subprocess, sys, threading
def relay(source, target, seen):
    while True:
        data = source.recv(1 << 20)
        if not data: break
        seen.extend(data)
        target.sendall(data)
    try: target.shutdown(socket.SHUT_WR)
    except OSError: pass
def watch(server_path, client):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind('relay.socket')
    listener.listen()
    process = subprocess.Popen(client)
    near, _ = listener.accept()
    far = socket.socket(socket.AF_UNIX)
    far.connect(server_path)
    there, back = bytearray(), bytearray()
    threads = [threading.Thread(target=relay, args=a) for a in ((near, far, there), (far, near, back))]
    for thread in threads: thread.start()
    assert process.wait() == 0, client
    near.close()
    for thread in threads: thread.join(5)
    os.unlink('relay.socket')
    assert bytes.fromhex('21e41c71') in there, 'no extended request'
    assert bytes.fromhex('6e8a278c') in back, 'no extended reply'
def serve(command, path, client):
    server = subprocess.Popen(command)
    try:
        while not os.path.exists(path): pass
        watch(path, client)
    finally:
        server.terminate()
        server.wait()
uri = 'nbd+unix:///?socket=relay.socket'
serve(['blk', 'serve', '-U', 'one.socket', 'memory', '100G'], 'one.socket', ['new-qemu-img', 'map', '-f', 'raw', uri])
serve(['new-qemu-nbd', '-r', '-t', '-e', '4', '-k', os.path.abspath('two.socket'), '-f', 'raw', 'disk.img'], 'two.socket',
      ['blk', 'map', uri])
END

# qemu serves, blk is the client.
background nbd new-qemu-nbd -t -e 8 -k "$PWD/qemu.socket" -f raw disk.img
wait_for_socket qemu.socket
uri='nbd+unix:///?socket=qemu.socket'
expect_equal "$(blk info --json "$uri" | jq -r '.exports[0]."export-size"')" 107374182400 'blk info of qemu-nbd'
blk info --can extended-headers "$uri" || fail 'qemu 10 has extended headers, blk info says no'
expect_equal "$(blk map "$uri" | awk '{$1=$1}1')" $'0 52428800000 3 hole,zero\n52428800000 102400 0 data\n52428902400 54945280000 3 hole,zero' \
  'blk map of qemu-nbd'
# Copies of 6 GiB, so that a mistake does not fill the machine's disk. qemu-nbd makes holes only where it is told to.
truncate -s 6G source.img
head -c 100000 /dev/urandom | dd of=source.img bs=65536 seek=80000 conv=notrunc status=none
background source new-qemu-nbd -t -r -e 8 -k "$PWD/source.socket" -f raw source.img
wait_for_socket source.socket
blk copy 'nbd+unix:///?socket=source.socket' copied.img
expect_equal "$(blk hash copied.img)" "$(blk hash source.img)" 'a copy from qemu-nbd 10'
background target new-qemu-nbd -t -e 8 --discard=unmap -k "$PWD/target.socket" -f raw copied.img
wait_for_socket target.socket
printf x | dd of=source.img bs=1 seek=1000 conv=notrunc status=none
blk copy 'nbd+unix:///?socket=source.socket' 'nbd+unix:///?socket=target.socket'
expect_equal "$(blk hash copied.img)" "$(blk hash source.img)" 'a copy to qemu-nbd 10'
if [ "$(stat -c %b copied.img)" -gt 2000 ]; then fail "the copy is not sparse: $(stat -c %b copied.img) blocks"; fi
# Dirty bitmaps: several contexts of one export.
new-qemu-img create -q -f qcow2 bitmap.qcow2 10G
new-qemu-img bitmap --add -g 65536 bitmap.qcow2 changes
new-qemu-io -f qcow2 bitmap.qcow2 -c 'write -P 1 1G 1M' >/dev/null
background bitmap new-qemu-nbd -t -r -A -B changes -e 8 -k "$PWD/bitmap.socket" -f qcow2 bitmap.qcow2
wait_for_socket bitmap.socket
blk map -c base:allocation -c qemu:dirty-bitmap:changes -c qemu:allocation-depth 'nbd+unix:///?socket=bitmap.socket' >map.txt
expect_match "$(cat map.txt)" '1073741824 +1048576 +1'
