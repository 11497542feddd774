#!/bin/bash
# TLS with certificates and with pre-shared keys, blk on either side: nbdkit, nbdcopy and nbdinfo (GnuTLS), qemu-nbd,
# qemu-img and nbd-client; Python's OpenSSL for what no honest client would send.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed certtool psktool openssl nbdkit nbdinfo nbdcopy qemu-img qemu-nbd nbd-client

# authority DIR: a CA. issue DIR NAME ROLE LINE...: NAME-cert.pem and NAME-key.pem of it.
authority() {
  mkdir "$1"
  certtool --generate-privkey --bits 2048 --outfile "$1/ca-key.pem" 2>/dev/null
  printf 'cn = %s\nca\ncert_signing_key\ncrl_signing_key\n' "$1" >"$1/ca.info"
  certtool --generate-self-signed --load-privkey "$1/ca-key.pem" --template "$1/ca.info" --outfile "$1/ca-cert.pem" 2>/dev/null
}
issue() {
  local folder=$1 name=$2 role=$3
  shift 3
  certtool --generate-privkey --bits 2048 --outfile "$folder/$name-key.pem" 2>/dev/null
  printf '%s\n' "cn = $name" "$role" encryption_key signing_key "$@" >"$name.info"
  certtool --generate-certificate --load-ca-certificate "$folder/ca-cert.pem" --load-ca-privkey "$folder/ca-key.pem" \
    --load-privkey "$folder/$name-key.pem" --template "$name.info" --outfile "$folder/$name-cert.pem" 2>/dev/null
}
authority good
issue good server tls_www_server 'dns_name = localhost' 'ip_address = 127.0.0.1'
issue good client tls_www_client
authority other
issue other server tls_www_server 'dns_name = localhost' 'ip_address = 127.0.0.1'
issue other client tls_www_client
mkdir only # the CA and no certificate of its own
cp good/ca-cert.pem only/
mkdir keys
psktool -u alice -p keys/keys.psk >/dev/null 2>&1
psktool -u bob -p keys/keys.psk >/dev/null 2>&1
mkdir wrong
psktool -u alice -p wrong/keys.psk >/dev/null 2>&1
blk copy sparse-random:16M disk.img
cp disk.img expected.img

# refused NAME COMMAND...: COMMAND fails in time, and not by a signal.
refused() {
  local what=$1 status=0
  shift
  timeout 20 "$@" >refused.txt 2>&1 || status=$?
  if [ $status = 0 ] || [ $status -ge 124 ]; then fail "$what: status $status instead of a refusal: $(tail -n 3 refused.txt)"; fi
}
qemu_x509() { # NAME DIR [OPTIONS]
  echo "tls-creds-x509,id=$1,dir=$2,endpoint=${3-client}"
}

# serving COMMAND...: a server of disk.img, by any program, listens on $port; ended by `stop`.
serving() {
  background server "$@"
  server=$background_pid
  wait_for_port "$port"
}
stop() {
  kill "$server"
  timeout 10 tail --pid="$server" -f /dev/null || fail 'the server does not end'
}

# clients_x509 TEXT: every client that there is, with certificates, of the server at $port.
clients_x509() {
  local uri="nbds://localhost:$port?tls-certificates=$PWD/good" object
  expect_match "$(nbdinfo "$uri")" 'with TLS' "nbdinfo of $1"
  for client in nbdcopy 'blk copy'; do
    rm -f copied.img
    $client "$uri" copied.img
    expect_same expected.img copied.img "$client from $1"
    $client expected.img "$uri"
  done
  expect_match "$(blk info "$uri")" 'with TLS' "blk info of $1"
  blk info "nbds://127.0.0.1:$port?tls-certificates=$PWD/good" >/dev/null
  object=$(qemu_x509 t0 "$PWD/good")
  qemu-img convert --object "$object" --image-opts -O raw "file.driver=nbd,file.host=localhost,file.port=$port,file.tls-creds=t0" copied.img
  expect_same expected.img copied.img "qemu-img from $1"
  refused "an unknown CA, $1, nbdinfo" nbdinfo "nbds://localhost:$port?tls-certificates=$PWD/other"
  refused "an unknown CA, $1, blk" blk info "nbds://localhost:$port?tls-certificates=$PWD/other"
  expect_match "$(cat refused.txt)" 'certificate'
  refused "another host, $1, blk" blk info "$uri&tls-hostname=example.com"
  expect_match "$(cat refused.txt)" '[Hh]ost ?name'
  blk info "nbds://localhost:$port?tls-certificates=$PWD/other&tls-verify-peer=false&tls-hostname=x" >/dev/null 2>&1 || refused_is_right "$1"
}
refused_is_right() { case $1 in *verifies*) ;; *) fail "$1: tls-verify-peer=false was not enough" ;; esac }

port=$(free_port)
for peers in '' --tls-verify-peer; do
  serving blk serve -p "$port" --tls=require --tls-certificates=good $peers file disk.img
  clients_x509 "blk ${peers:+that verifies}"
  if [ -n "$peers" ]; then
    for bad in only other; do
      refused "the client certificate of $bad" nbdinfo "nbds://localhost:$port?tls-certificates=$PWD/$bad"
      refused "the client certificate of $bad" blk info "nbds://localhost:$port?tls-certificates=$PWD/$bad&tls-verify-peer=false"
    done
  fi
  refused 'clear text' nbdinfo "nbd://localhost:$port"
  refused 'clear text' blk info "nbd://localhost:$port"
  expect_match "$(cat refused.txt)" 'TLS'
  expect_match "$(nbd-client -l localhost "$port" -cacertfile good/ca-cert.pem -certfile good/client-cert.pem -keyfile good/client-key.pem 2>&1)" \
    'Negotiation' 'nbd-client over TLS'
  stop
done
serving nbdkit -f -p "$port" --tls=require --tls-certificates=good file disk.img
clients_x509 nbdkit
stop
serving nbdkit -f -p "$port" --tls=require --tls-certificates=good --tls-verify-peer file disk.img
clients_x509 'nbdkit that verifies'
stop
serving qemu-nbd -t -e 8 -f raw -b localhost -p "$port" --object "$(qemu_x509 s0 "$PWD/good" server)" --tls-creds s0 disk.img
clients_x509 'qemu-nbd that verifies'
stop

# A revoked certificate, at either end.
printf 'crl_next_update = 100\ncrl_number = 1\n' >crl.info
crl() { # NAME OUTPUT
  certtool --generate-crl --load-ca-privkey good/ca-key.pem --load-ca-certificate good/ca-cert.pem \
    --load-certificate "good/$1-cert.pem" --template crl.info --outfile "$2" 2>/dev/null
}
cp -r good revoked
crl client revoked/ca-crl.pem
serving blk serve -p "$port" --tls=require --tls-certificates=revoked --tls-verify-peer file disk.img
refused 'a revoked client' nbdinfo "nbds://localhost:$port?tls-certificates=$PWD/good"
refused 'a revoked client' blk info "nbds://localhost:$port?tls-certificates=$PWD/good"
stop
crl server revoked/ca-crl.pem
serving blk serve -p "$port" --tls=require --tls-certificates=good file disk.img
refused 'a revoked server' blk info "nbds://localhost:$port?tls-certificates=$PWD/revoked"
expect_match "$(cat refused.txt)" 'revoked'
stop

# Pre-shared keys, TLS 1.3 and 1.2.
clients_psk() {
  local uri="nbds://alice@localhost:$port?tls-psk-file=$PWD/keys/keys.psk" priority
  for client in nbdcopy 'blk copy'; do
    rm -f copied.img
    $client "$uri" copied.img
    expect_same expected.img copied.img "$client from $1 with a key"
    $client expected.img "$uri"
  done
  blk info "nbds://localhost:$port?tls-psk-file=$PWD/keys/keys.psk&tls-username=bob" >/dev/null
  for priority in NORMAL NORMAL:-VERS-ALL:+VERS-TLS1.2; do
    qemu-img convert --object "tls-creds-psk,id=t0,dir=$PWD/keys,username=alice,endpoint=client,priority=$priority" --image-opts -O raw \
      "file.driver=nbd,file.host=localhost,file.port=$port,file.tls-creds=t0" copied.img
    expect_same expected.img copied.img "qemu-img from $1 with a key, $priority"
  done
  refused 'a wrong key' nbdinfo "nbds://alice@localhost:$port?tls-psk-file=$PWD/wrong/keys.psk"
  refused 'a wrong key' blk info "nbds://alice@localhost:$port?tls-psk-file=$PWD/wrong/keys.psk"
  sed 's/^alice/mallory/' keys/keys.psk >wrong/mallory.psk
  refused 'an unknown user' nbdinfo "nbds://mallory@localhost:$port?tls-psk-file=$PWD/wrong/mallory.psk"
  refused 'an unknown user' blk info "nbds://mallory@localhost:$port?tls-psk-file=$PWD/wrong/mallory.psk"
  refused 'certificates instead of a key' nbdinfo "nbds://localhost:$port?tls-certificates=$PWD/good"
  refused 'certificates instead of a key' blk info "nbds://localhost:$port?tls-certificates=$PWD/good"
}
serving blk serve -p "$port" --tls=require --tls-psk=keys/keys.psk file disk.img
clients_psk blk
stop
serving nbdkit -f -p "$port" --tls=require --tls-psk=keys/keys.psk file disk.img
clients_psk nbdkit
stop
serving qemu-nbd -t -e 8 -f raw -b localhost -p "$port" --object "tls-creds-psk,id=s0,dir=$PWD/keys,endpoint=server" --tls-creds s0 disk.img
clients_psk qemu-nbd
stop
serving blk serve -p "$port" --tls=require --tls-certificates=good file disk.img
refused 'a key instead of certificates' nbdinfo "nbds://alice@localhost:$port?tls-psk-file=$PWD/keys/keys.psk"
refused 'a key instead of certificates' blk info "nbds://alice@localhost:$port?tls-psk-file=$PWD/keys/keys.psk"
stop

# --tls=on: the client chooses; --tls=off: nobody has it. $tls and $uri tell the command of --run.
run() { blk serve --tls-psk=keys/keys.psk "$@"; }
expect_match "$(run memory 1M --run 'nbdinfo "$uri"; echo "tls=$tls"')" 'without TLS.*' 'TLS by choice, without'
key="tls-psk-file=$PWD/keys/keys.psk"
expect_match "$(run memory 1M --run "nbdinfo \"nbds+unix://alice@/?socket=\$unixsocket&$key\"")" 'with TLS' 'TLS by choice, with'
expect_match "$(run memory 1M --run "blk info \"nbds+unix://alice@/?socket=\$unixsocket&$key\"; echo tls=\$tls")" 'tls=1'
expect_match "$(run --tls=require memory 1M --run 'echo "$uri $tls"')" "^nbds\+unix://\?socket=.*&tls-psk-file=.*keys.psk 2$"
expect_equal "$(run --tls=off memory 1M --run 'echo "$uri $tls"' | grep -c 'nbd+unix')" 1
refused 'TLS of a server without' blk serve memory 1M --run "blk info \"nbds+unix://alice@/?socket=\$unixsocket&$key\""
expect_match "$(cat refused.txt)" 'TLS is required'
refused 'TLS of a server without' nbdkit memory 1M --run "blk info \"nbds+unix://alice@/?socket=\$unixsocket&$key\""
# tls=on of the nbd backend takes what it gets; nbds:// in a stack does not.
blk serve memory 1M --run "blk info \"nbd(socket=\$unixsocket,tls-psk=keys/keys.psk,tls-username=alice)\"" >/dev/null
run memory 1M --run "blk info \"nbd(socket=\$unixsocket,tls-psk=keys/keys.psk,tls-username=alice)\" | grep 'with TLS'" >/dev/null
refused 'tls=require' blk serve memory 1M --run "blk info \"nbd(socket=\$unixsocket,tls-psk=keys/keys.psk,tls-username=alice,tls=require)\""
# A proxy that takes TLS off, and one that puts it on.
serving blk serve -p "$port" --tls=require --tls-psk=keys/keys.psk file disk.img
blk serve nbd "uri=nbds://alice@localhost:$port?$key" --run 'blk copy "$uri" copied.img'
expect_same expected.img copied.img 'a proxy'
stop

# Mistakes are said before anybody connects.
expect_status 1 blk serve --tls=require memory 1M --run true 2>error.txt
expect_match "$(cat error.txt)" 'tls init'
expect_status 1 blk serve --tls-certificates=nowhere memory 1M --run true 2>error.txt
expect_match "$(cat error.txt)" 'nowhere/server-cert.pem'
echo 'alice 0011' >bad.psk
expect_status 1 blk serve --tls-psk=bad.psk memory 1M --run true 2>error.txt
expect_match "$(cat error.txt)" 'bad.psk:1: not USER:HEXKEY'
expect_status 1 blk serve --tls-psk=keys/keys.psk --tls-verify-peer memory 1M --run true 2>error.txt
cp -r good mixed
cp other/server-key.pem mixed/
expect_status 1 blk serve --tls-certificates=mixed memory 1M --run true 2>error.txt
expect_match "$(cat error.txt)" 'mixed/server-key.pem'

# What no honest client does, and what a server must not remember or say.
all='tls12 tls13 tls11 forgotten injected clear_text_for_tls twice small_records truncated'
blk serve --tls=on --tls-certificates=good -U raw.socket memory 1M \
  --run "/usr/bin/python3 -W ignore ${LIB%/*}/tls_raw.py raw.socket good $all" || fail 'tls_raw.py'
blk serve --tls=require --tls-certificates=good -U raw.socket -e disk memory 1M \
  --run "/usr/bin/python3 -W ignore ${LIB%/*}/tls_raw.py raw.socket good tls13 refused_in_clear export_name_in_clear injected twice" || fail 'tls_raw.py'
blk serve --tls=require --timeout=1 --tls-certificates=good -U raw.socket memory 1M \
  --run "/usr/bin/python3 -W ignore ${LIB%/*}/tls_raw.py raw.socket good stalled tls13" || fail 'a stalled TLS handshake'
