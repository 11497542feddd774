# shellcheck shell=bash
# For the scripts of this folder: `. "$LIB"` is their first line. Each tries blk with real programs and ends with status
# 0; any command that fails ends it as a failure. The runner (test/run_interop) gives it `blk` first on PATH, an empty
# folder of its own as working folder (short enough for Unix sockets), and 300 seconds.
set -Eeuo pipefail

# shellcheck disable=SC2034  # for the scripts
tmp=$PWD
background_pids=()
exec {terminal}>&2 # where complaints go, even when a command under test has its errors in a file

fail() {
  printf 'FAILED: %s\n' "$*" >&"$terminal"
  exit 1
}

# The servers that `background` started, and nothing else, end with the script.
end_background() {
  local pid
  for pid in "${background_pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${background_pids[@]}"; do
    timeout 5 tail --pid="$pid" -f /dev/null || kill -KILL "$pid" 2>/dev/null || true
  done
}
trap end_background EXIT
trap 'printf "%s:%s: status %s from: %s\n" "$0" "$LINENO" "$?" "$BASH_COMMAND" >&"$terminal"' ERR

# is_product: bounds of memory and speed are those of the product; a sanitizer's build needs more of both.
is_product() { [ "${BLK_CONFIG-product}" = product ]; }

# skip_unless WHAT COMMAND...: the script needs something of this machine that nobody can install: WHAT, e.g.
# `skip_unless "/dev/fuse" test -w /dev/fuse`.
skip_unless() {
  local what=$1
  shift
  if ! "$@" >/dev/null 2>&1; then
    echo "needs $what"
    exit 77
  fi
}

# skip_unless_installed PROGRAM...: the same for programs; continuous integration counts this skip as a failure.
skip_unless_installed() {
  local program
  for program; do
    if ! command -v "$program" >/dev/null; then
      echo "needs the program $program"
      exit 77
    fi
  done
}

# skip_unless_python_has MODULE PACKAGE: Debian's own Python, for which Debian's PACKAGE brings MODULE.
skip_unless_python_has() {
  if ! /usr/bin/python3 -c "import $1" 2>/dev/null; then
    echo "needs the program /usr/bin/python3 with $1 of $2"
    exit 77
  fi
}

# expect_equal ACTUAL EXPECTED [WHAT]
expect_equal() {
  if [ "$1" != "$2" ]; then
    diff <(printf '%s\n' "$2") <(printf '%s\n' "$1") >&2 || true
    fail "${3-the value} is not as expected (<: expected, >: actual)"
  fi
}

# expect_match TEXT REGEX [WHAT]: REGEX is extended and matches somewhere in TEXT.
expect_match() {
  if ! grep -qE -- "$2" <<<"$1"; then fail "${3-the text} does not match $2: $1"; fi
}

# expect_same FILE FILE [WHAT]: equal bytes.
expect_same() {
  cmp -- "$1" "$2" >&2 || fail "${3-$1 and $2} differ"
}

# expect_status STATUS COMMAND...: COMMAND ends with exactly this exit status.
expect_status() {
  local expected=$1 status=0
  shift
  "$@" || status=$?
  if [ "$status" != "$expected" ]; then fail "exit status $status instead of $expected: $*"; fi
}

# background NAME COMMAND...: starts COMMAND, its output in NAME.log, its process id in $background_pid.
background() {
  local name=$1
  shift
  "$@" >"$name.log" 2>&1 &
  background_pid=$!
  background_pids+=("$background_pid")
}

# wait_until SECONDS COMMAND...: until COMMAND succeeds, tried 20 times a second.
wait_until() {
  local seconds=$1 deadline
  shift
  deadline=$(($(date +%s) + seconds))
  until "$@" >/dev/null 2>&1; do
    if [ "$(date +%s)" -ge "$deadline" ]; then fail "not within $seconds seconds: $*"; fi
    sleep 0.05
  done
}

# wait_for_socket PATH: somebody listens on this Unix socket (asked of the kernel, so that no connection is used up).
wait_for_socket() {
  wait_until 10 grep -qE "00010000 0001 .*[ /]$1\$" /proc/net/unix
}

# wait_for_port PORT: somebody listens on this TCP port of any address.
wait_for_port() {
  wait_until 10 grep -qhE "^ *[0-9]+: [0-9A-F]+:$(printf %04X "$1") [0-9A-F]+:0000 0A " /proc/net/tcp /proc/net/tcp6
}

# free_port: prints a TCP port nobody listens on.
free_port() {
  local port
  while :; do
    port=$((20000 + RANDOM % 12000))
    if ! grep -qhE ":$(printf %04X "$port") " /proc/net/tcp /proc/net/tcp6 2>/dev/null; then
      echo "$port"
      return
    fi
  done
}
