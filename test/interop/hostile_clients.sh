#!/bin/bash
# Strangers: a thousand connections that idle and fifty that stall, trickle, stop reading or leave in the middle, while one
# honest client works; and clients that flood. What the honest one loses, and what the server holds, is bounded.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed jq
ulimit -n 8192 2>/dev/null || ulimit -n "$(ulimit -Hn)"
if [ "$(ulimit -n)" -lt 3000 ]; then
  echo "needs 3000 descriptors"
  exit 77
fi

cat >strangers.py <<'END'
"""strangers.py SOCKET IDLE BAD: connects them, says `ready`, and lets them misbehave until standard input ends."""
import random, select, socket, struct, sys, threading, time
path, idle_count, bad_count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
GO = b'IHAVEOPT' + struct.pack('>II', 7, 6) + b'\0\0\0\0\0\0'
def raw():
    s = socket.socket(socket.AF_UNIX)
    while True:
        try: s.connect(path)
        except BlockingIOError: time.sleep(0.01)  # the queue of the listening socket is full
        else: return s
def exactly(s, size):
    while size:
        piece = s.recv(size)
        if not piece: raise EOFError
        size -= len(piece)
def serving():
    s = raw()
    exactly(s, 18)
    s.sendall(struct.pack('>I', 3) + GO)
    while True:
        header = b''
        while len(header) < 20: header += s.recv(20 - len(header)) or exit('hung up')
        _, _, kind, size = struct.unpack('>QIII', header)
        exactly(s, size)
        if kind == 1: return s
def request(kind, offset, length): return struct.pack('>IHHQQI', 0x25609513, 0, kind, 7, offset, length)
def stall(stop):  # silent before the handshake, in an option, in a request, in a payload
    parts = [b'', struct.pack('>I', 3) + b'IHAVE', struct.pack('>I', 3) + b'IHAVEOPT' + struct.pack('>II', 7, 60000) + b'x']
    connections = [raw() for _ in parts] + [serving(), serving()]
    for s, part in zip(connections, parts): s.sendall(part)
    connections[-2].sendall(request(0, 0, 512)[:9])
    connections[-1].sendall(request(1, 0, 1 << 20) + b'x' * 70000)
    stop.wait()
def trickle(stop):  # a byte at a time
    s = serving()
    while not stop.wait(0.05):
        for byte in request(0, 0, 1): s.sendall(bytes([byte])); time.sleep(0.01)
        exactly(s, 17)
def deaf(stop):  # asks for more than any buffer holds and reads nothing
    s = serving()
    s.setblocking(False)
    batch = request(0, 0, 1 << 20) * 64
    while not stop.wait(0.1):
        try: s.send(batch)
        except BlockingIOError: pass
def leave(stop):  # in the middle of a request
    while not stop.wait(0.1):
        s = serving()
        s.sendall(request(0, 0, 1 << 20) * 8 + request(1, 0, 1 << 20) + b'half')
        s.close()
idle = [raw() if i % 2 else serving() for i in range(idle_count)]
stop = threading.Event()
kinds = [stall, trickle, deaf, leave]
threads = [threading.Thread(target=kinds[i % 4], args=(stop,), daemon=True) for i in range(bad_count)]
for t in threads: t.start()
time.sleep(1)
print('ready', flush=True)
sys.stdin.read()
stop.set()
END

# throughput SECONDS: requests a second of the honest client.
throughput() {
  blk bench --json --no-shm -b 4096 -d 16 -s "$1" "nbd+unix:///?socket=$tmp/socket" | jq '[.read, .write] | map(select(.) | .iops) | add | floor'
}
resident_kib() { awk '/^VmRSS/ {print $2}' "/proc/$server/status"; }

background server blk serve -U "$tmp/socket" --timeout=600 memory 64M
server=$background_pid
wait_for_socket "$tmp/socket"
throughput 1 >/dev/null
# Whoever else uses this machine disturbs both figures; a server that is slowed down stays below in every pair.
best=0
before_kib=$(resident_kib)
for _ in 1 2 3 4 5; do
  alone=$(throughput 2)
  coproc strangers { /usr/bin/python3 strangers.py "$tmp/socket" 1000 50 2>strangers.txt; }
  strangers_pid=$!
  read -r -t 60 line <&"${strangers[0]}" || fail "the strangers did not get in: $(tail -n 3 strangers.txt)"
  expect_equal "$line" ready
  among=$(throughput 2)
  held_kib=$(resident_kib)
  eval "exec ${strangers[1]}>&-"
  wait "$strangers_pid" || true
  percent=$((among * 100 / alone))
  echo "alone $alone/s, among 1000 idle and 50 bad $among/s: $percent %; the server holds $((held_kib - before_kib)) KiB more"
  if [ $percent -gt $best ]; then best=$percent; fi
  if [ "$best" -ge 90 ] || ! is_product; then break; fi
done
if is_product && [ "$best" -lt 90 ]; then fail "the honest client keeps only $best % of its speed"; fi
# 12 deaf ones hold 64 MiB each at most, the others their receive buffers.
if is_product && [ $((held_kib - before_kib)) -gt $((1200 * 1024)) ]; then fail "strangers cost $((held_kib - before_kib)) KiB"; fi
blk info "nbd+unix:///?socket=$tmp/socket" >/dev/null

# Floods of valid requests: the honest client gets its share, with no more in flight than a client usually has. Clients
# live on other machines; here nice(1) keeps the floods' own programs from taking the processor away from the honest one's.
# What the server itself does is counted in test/proto/fairness_test.cc.
blk copy random:64M "nbd+unix:///?socket=$tmp/socket"
iops() { jq '[.read, .write] | map(select(.) | .iops) | add | floor'; }
load() { nice -n "$1" blk bench --json --no-shm -b 16K -T 1 -s 2 -d "$2" "nbd+unix:///?socket=$tmp/socket" | iops; }
for floods in 1 4; do
  best=0
  for _ in 1 2 3 4 5; do
    flood_pids=()
    for i in $(seq "$floods"); do
      load 10 128 >"flood.$i" &
      flood_pids+=($!)
    done
    honest=$(load 0 32)
    wait "${flood_pids[@]}"
    total=$honest
    for i in $(seq "$floods"); do total=$((total + $(cat "flood.$i"))); done
    share=$((honest * 1000 / total))
    echo "beside $floods flooding clients: $honest of $total requests a second, $share in a thousand"
    if [ $share -gt $best ]; then best=$share; fi
    if [ "$best" -ge $((800 / (floods + 1))) ] || ! is_product; then break; fi
  done
  if is_product && [ "$best" -lt $((800 / (floods + 1))) ]; then fail "beside $floods floods the honest client gets $best in a thousand"; fi
done
