#!/bin/bash
# Where and how `blk serve` listens, what it tells about itself, and how it ends.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed nbdinfo nbdcopy socat
skip_unless_python_has nbd python3-libnbd

# end PID SIGNAL: ends the server, which must succeed and soon.
end() {
  local status=0
  kill -s "$2" "$1"
  timeout 5 tail --pid="$1" -f /dev/null || fail "SIG$2 does not end the server within 5 seconds"
  wait "$1" || status=$?
  expect_equal $status 0 "the exit status after SIG$2"
}

# -U PATH: the socket is there while the server is, and goes with it; so does the file with the process id.
background unix blk serve -U socket -P pid memory 1M
wait_until 5 test -s pid
expect_equal "$(cat pid)" "$background_pid" 'the pidfile' # written when the server listens: no further waiting
expect_equal "$(nbdinfo --size 'nbd+unix:///?socket=socket')" 1048576 '-U'
expect_status 1 blk serve -U socket memory 1M 2>error.txt
expect_match "$(cat error.txt)" 'socket.*in use'
expect_equal "$(nbdinfo --size 'nbd+unix:///?socket=socket')" 1048576 '-U after another server tried'
end "$background_pid" TERM
test ! -e socket || fail 'the socket is left'
test ! -e pid || fail 'the pidfile is left'

# The path of a socket may need escapes in the URI; one that is too long is told, not truncated.
mkdir 'a b&c=d%20'
blk serve -U 'a b&c=d%20/s#1' memory 1M --run 'nbdinfo --size "$uri" && blk info --size "$uri"' >size.txt
expect_equal "$(cat size.txt)" $'1048576\n1048576' 'a path with escapes'
expect_status 1 blk serve -U "$(printf 'x%.0s' {1..120})" memory 1M 2>error.txt
expect_match "$(cat error.txt)" '107'

# -U -: private, and gone afterwards.
blk serve -U - memory 1M --run 'echo "$unixsocket"; stat -c %a "$(dirname "$unixsocket")"' >out.txt
expect_equal "$(tail -n 1 out.txt)" 700 'the mode of the private folder'
test ! -e "$(dirname "$(head -n 1 out.txt)")" || fail 'the private folder is left'

# -p: loopback only; -i: where it is told to; 4 and 6.
port=$(free_port)
background tcp blk serve -p "$port" memory 1M
wait_for_port "$port"
if getent hosts localhost >/dev/null; then # a bare root has no /etc/hosts
  expect_equal "$(nbdinfo --size "nbd://localhost:$port")" 1048576 '-p'
fi
expect_equal "$(nbdinfo --size "nbd://127.0.0.1:$port")" 1048576 '-p, by number'
listening=$(grep -hE ":$(printf %04X "$port") [0-9A-F]+:0000 0A" /proc/net/tcp | awk '{print $2}')
expect_equal "$listening" "0100007F:$(printf %04X "$port")" 'what the server listens on'
expect_status 1 blk serve -p "$port" memory 1M 2>error.txt
expect_match "$(cat error.txt)" "$port.*in use"
end "$background_pid" INT
blk serve -p 0 memory 1M --run 'test "$port" -gt 0 && nbdinfo --size "nbd://127.0.0.1:$port" && nbdinfo --size "$uri"' >size.txt
expect_equal "$(cat size.txt)" $'1048576\n1048576' '-p 0'
blk serve -i 127.0.0.2 -p 0 memory 1M --run 'echo "$uri"; nbdinfo --size "$uri"; ! nbdinfo "nbd://127.0.0.1:$port" 2>&1' >out.txt
expect_match "$(cat out.txt)" '^nbd://127.0.0.2:[0-9]+/?$'
expect_match "$(cat out.txt)" '^1048576$'
if grep -q : /proc/net/if_inet6 2>/dev/null || [ -s /proc/net/if_inet6 ]; then
  blk serve -6 -p 0 memory 1M --run 'nbdinfo --size "$uri" && ! nbdinfo "nbd://127.0.0.1:$port" 2>error.txt' >size.txt
  expect_equal "$(cat size.txt)" 1048576 '-6'
fi

# --run: the status is the command's; the variables are set; blk is found; what the command reads is ours.
for status in 0 1 42; do
  expect_status $status blk serve memory 1M --run "exit $status"
done
expect_status 143 blk serve memory 1M --run 'kill -TERM $$'
expect_equal "$(env -i "$(command -v blk)" serve memory 3M -e 'a b' --run \
  '/bin/echo "$exportname:$port" && blk info --size "$uri"')" $'a b:\n3145728' '--run in an empty environment'
expect_equal "$(echo hello | blk serve memory 1M --run 'cat')" hello 'standard input of --run'
expect_status 1 blk serve memory 1M --run 'true' -s 2>error.txt
expect_status 1 blk serve memory 2>error.txt
expect_match "$(cat error.txt)" 'size'

# The command is ended with the server, which its end does not depend on.
background run blk serve memory 1M --run 'echo $$ >command.pid; exec sleep 100'
wait_until 5 test -s command.pid
kill "$background_pid"
timeout 5 tail --pid="$background_pid" -f /dev/null || fail 'a server with --run does not end'
timeout 5 tail --pid="$(cat command.pid)" -f /dev/null || fail 'the command of --run outlives the server'

# --exit-with-parent
cat >parent.sh <<'END'
blk serve --exit-with-parent -U parent.socket -P parent.pid memory 1M &
while [ ! -s parent.pid ]; do sleep 0.05; done
cp parent.pid child.pid
END
bash parent.sh
timeout 5 tail --pid="$(cat child.pid)" -f /dev/null || fail '--exit-with-parent: the server stays'

# Signals while requests are in flight: the server ends, the clients see an error or the end, nothing hangs.
for signal in TERM INT; do
  background busy blk serve -U busy.socket sparse-random 1T
  server=$background_pid
  wait_for_socket busy.socket
  background client nbdcopy 'nbd+unix:///?socket=busy.socket' null:
  client=$background_pid
  background idle socat -u UNIX-CONNECT:busy.socket OPEN:/dev/null # connected, and silent
  sleep 0.3
  end "$server" $signal
  timeout 10 tail --pid="$client" -f /dev/null || fail "nbdcopy hangs when SIG$signal ends the server"
  if wait "$client"; then fail 'nbdcopy noticed nothing'; fi
done

# -s: one client on standard input and output.
/usr/bin/python3 - <<'END'
import nbd
h = nbd.NBD()
h.connect_command(['blk', 'serve', '-s', 'memory', '5M'])
assert h.get_size() == 5 << 20
h.pwrite(b'hello', 7)
assert h.pread(5, 7) == b'hello'
h.shutdown()
END

# vsock, where the kernel has a loop for it.
if [ -c /dev/vsock ]; then
  background vsock blk serve --vsock=$((20000 + RANDOM)) --print-uri memory 1M
  sleep 0.2
  if uri=$(grep -m 1 '^nbd+vsock' vsock.log) && nbdinfo --size "$uri" >size.txt 2>error.txt; then
    expect_equal "$(cat size.txt)" 1048576 'nbdinfo over vsock'
    expect_equal "$(blk info --size "$uri")" 1048576 'blk info over vsock'
  else
    echo "vsock not tried: $(cat error.txt vsock.log)"
  fi
fi
