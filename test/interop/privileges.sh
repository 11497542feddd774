#!/bin/bash
# `blk serve -u USER -g GROUP`: root's rights are given up once everything is open, and for good.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless 'root' test "$(id -u)" = 0

# status FIELD: of the server.
status() { awk -v field="$1:" '$1 == field { $1 = ""; print substr($0, 2) }' "/proc/$server/status"; }
truncate -s 1M disk.img
chmod 600 disk.img
mkdir for_nobody
chown nobody for_nobody
chmod 711 .. . # the pidfile is written by nobody, as nbdkit does

# Only root may read the disk: it was opened before.
start() {
  background server blk serve -U "$PWD/for_nobody/socket" -P "$PWD/for_nobody/pid" "$@" file disk.img
  server=$background_pid
  wait_until 10 test -s for_nobody/pid
}
stop() {
  kill "$server"
  timeout 10 tail --pid="$server" -f /dev/null
  if [ -e for_nobody/socket ] || [ -e for_nobody/pid ]; then fail 'the socket or the pidfile stayed'; fi
}
uri="nbd+unix:///?socket=$PWD/for_nobody/socket"
for sandbox in on off; do
  report=$(blk serve -v memory 1M --run true 2>&1)
  if [ $sandbox = on ] && [[ $report == *'not bounded'* || $report == *'built with a sanitizer'* ]]; then continue; fi
  start --sandbox=$sandbox -u nobody -g daemon
  blk bench -w 50 -n 20 "$uri" >/dev/null
  user=$(id -u nobody) group=$(awk -F: '$1 == "daemon" { print $3 }' /etc/group)
  expect_equal "$(status Uid)" "$user $user $user $user"
  expect_equal "$(status Gid)" "$group $group $group $group"
  expect_equal "$(status Groups)" "$group"
  expect_match "$(status CapEff)" '^0+$'
  stop
done
start -u nobody
expect_equal "$(status Gid)" "$(id -g nobody) $(id -g nobody) $(id -g nobody) $(id -g nobody)" 'the group of -u alone'
stop
start --swap
# (Sanitizers make mlockall(2) do nothing.)
if is_product && [ "$(status VmLck | tr -dc 0-9)" -lt 1000 ]; then fail "--swap locked only $(status VmLck)"; fi
stop

expect_status 1 blk serve -u nosuchuser memory 1M --run true 2>error.txt
expect_match "$(cat error.txt)" 'nosuchuser'
expect_status 1 setpriv --reuid=nobody --clear-groups blk serve -u root memory 1M --run true 2>error.txt
