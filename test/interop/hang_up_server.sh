#!/bin/bash
# Servers that hang up on handshake options that they do not know, as some old ones do: blk connects again and asks for
# less. Each connection and what ended it is in hang_up.log.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed python3

# server.py KNOWN...: serves 64 KiB of the byte 7 on $socket, with the options KNOWN besides EXPORT_NAME and ABORT.
cat >server.py <<'END'
import os, socket, struct, sys, threading

known = {int(word) for word in sys.argv[1:]} | {1, 2}
SIZE, FLAGS = 65536, 0x1  # only that there are flags
listener = socket.socket(socket.AF_UNIX)
listener.bind(os.environ['socket'])
listener.listen(8)


def exactly(connection, count):
    data = b''
    while len(data) < count:
        more = connection.recv(count - len(data))
        if not more:
            raise EOFError('the client left')
        data += more
    return data


def serve_export(connection):
    while True:
        magic, flags, kind, cookie, offset, length = struct.unpack('>IHHQQI', exactly(connection, 28))
        if kind == 2:
            return 'goodbye'
        connection.sendall(struct.pack('>IIQ', 0x67446698, 0, cookie) + b'\7' * length)


def negotiate(connection):
    connection.sendall(b'NBDMAGICIHAVEOPT' + struct.pack('>H', 3))
    exactly(connection, 4)
    while True:
        magic, option, length = struct.unpack('>8sII', exactly(connection, 16))
        exactly(connection, length)
        if option not in known:
            return 'hung up on option %d' % option
        if option == 1:
            connection.sendall(struct.pack('>QH', SIZE, FLAGS))
            return serve_export(connection)
        connection.sendall(struct.pack('>QIII', 0x3E889045565A9, option, 1 if option == 2 else 0x80000001, 0))
        if option == 2:
            return 'abort'


def talk(connection):
    try:
        how = negotiate(connection)
    except (EOFError, OSError) as error:
        how = str(error)
    with open('hang_up.log', 'a') as log:
        log.write(how + '\n')
    connection.close()


while True:
    threading.Thread(target=talk, args=(listener.accept()[0],), daemon=True).start()
END
head -c 65536 /dev/zero | tr '\0' '\7' >expected
# try_server OPTION...: the options that this one knows.
servers=0
try_server() {
  servers=$((servers + 1))
  export socket="$tmp/s$servers"
  local uri="nbd+unix:///?socket=$socket"
  rm -f hang_up.log
  background server python3 server.py "$@"
  wait_for_socket "$socket"
  blk copy --connections=1 "$uri" ./copied
  expect_same copied expected "a copy from a server that knows options $*"
  expect_equal "$(blk info --size "$uri")" 65536 'blk info --size'
  expect_match "$(blk info --no-content "$uri")" 'export-size: 65536 \(64K\)' 'blk info'
  rm copied
}
try_server # hangs up on everything
expect_match "$(cat hang_up.log)" 'hung up on option'
try_server 7 # refuses GO in words
try_server 8 10 # and structured replies and contexts
try_server 3 6 7 8 9 10 11 1651272449 # refuses all, as it should
if grep 'hung up' hang_up.log; then fail 'blk asked a server for what it does not know'; fi
