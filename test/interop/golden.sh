#!/bin/bash
# The exact text of help, lists and typical errors: a change of the command line shows in review. `./dev golden` renews
# the files of test/golden after a change that is meant.
# shellcheck source=test/interop/lib.sh
. "$LIB"
golden=$(dirname "$LIB")/../golden

# keep NAME STATUS COMMAND...: standard output and error and the exit status, as the file NAME has them.
keep() {
  local name=$1 expected=$2 status=0
  shift 2 # (a command that is not refused would serve: it is stopped)
  {
    printf '$ %s\n' "$*"
    timeout 10 "$@" 2>&1 || status=$?
  } >>"$name"
  expect_equal $status "$expected" "the exit status of $*"
}

keep help.txt 0 blk --help
keep help.txt 1 blk
keep list.txt 0 blk list
for tool in serve copy map info dump hash list help bench tls; do keep "help-$tool.txt" 0 blk "$tool" --help; done
for name in $(blk list | sed -n 's/^  \([a-z0-9-]*\) .*/\1/p'); do keep "help-name-$name.txt" 0 blk help "$name"; done

# What people mistype.
errors() { keep errors.txt 1 "$@"; }
errors blk sevre memory 1G
errors blk serve memroy 1G
errors blk serve
errors blk serve memory
errors blk serve memory 9E
errors blk serve memory 8E
errors blk serve memory 99999999999999999999
errors blk serve memory 1X
errors blk serve memory -1
errors blk serve memory 1G 2G
errors blk serve memory 1G size=2G
errors blk serve memory 1G alocator=zstd
errors blk serve memory 1G allocator=lzma
errors blk serve --flter=offset memory 1G
errors blk serve --filter=ofset memory 1G
errors blk serve -U
errors blk serve -U a -p 1 memory 1G
errors blk serve -p 99999 memory 1G
errors blk serve -p http memory 1G
errors blk serve file
errors blk serve file ./missing.img
errors blk copy
errors blk copy one
errors blk copy ./missing.img null:
errors blk copy memory:1M ./no-folder/file
errors blk copy memory:1M memory:512k
errors blk copy memory: null:
errors blk copy 'memory:1M(siz=3)' null:
errors blk copy 'offset(offset=1M+memory:1M' null:
errors blk copy nosuch:1M null:
errors blk copy nbd://127.0.0.1:1 null:
errors blk copy nbd+unix:///?socket=missing.socket null:
errors blk copy --request-size=1 memory:1M null:
errors blk copy --connections=0 memory:1M null:
errors blk copy -- [ memory:1M null:
errors blk map
errors blk map --offset=2M memory:1M
errors blk map -c no:such memory:1M
errors blk info --can fly memory:1M
errors blk info --list memory:1M
errors blk dump ./missing.img
errors blk help memroy

if [ -n "${BLK_GOLDEN_RENEW-}" ]; then
  mkdir -p "$golden"
  rm -f "$golden"/*.txt
  cp ./*.txt "$golden"
  exit
fi
diff -ru --label golden --label blk "$golden" . || fail 'the text differs; `./dev golden` renews it if this is meant'
