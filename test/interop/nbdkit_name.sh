#!/bin/bash
# blk under the name nbdkit beside the real nbdkit: each line of nbdkit_cases.txt is a command that is run with both, in
# a folder of its own; standard output, exit status and the files left behind must be the same. A line that begins with
# `E ` compares standard error as well; one that begins with `> ` goes on with the command; `#` begins a comment.
# shellcheck source=test/interop/lib.sh
. "$LIB"
skip_unless_installed nbdkit nbdcopy nbdinfo nbdsh qemu-io tar xxd
skip_unless_installed /usr/sbin/sfdisk
skip_unless_python_has nbd python3-libnbd # for nbdsh, which takes the first python3 on PATH

real=$(command -v nbdkit)
mkdir real old
ln -s "$real" real/nbdkit
ln -s "$(command -v blk)" old/nbdkit

# outcome WHO COMMAND WITH_ERRORS: runs COMMAND in a new folder and prints all that can be compared.
outcome() (
  mkdir "$tmp/run"
  cd "$tmp/run"
  status=0
  errors=$tmp/errors
  PATH=$tmp/$1:/usr/bin:/usr/sbin:$PATH timeout 20 bash -c "$2" >"$tmp/output" 2>"$errors" </dev/null || status=$?
  cat "$tmp/output"
  if [ -n "$3" ]; then cat "$errors"; fi
  echo "status $status"
  find . -type f -o -type s | sort
) 2>&1

# What differs by its nature: names of private folders, numbers of processes.
normalise() { sed -E 's,/tmp/nbdkit[A-Za-z0-9]{6},/tmp/nbdkitXXXXXX,g; s,process [0-9]+,process N,g'; }

# Commands one a line, their line ends as \001.
commands() { grep -vE '^(#|$)' "${LIB%/*}/nbdkit_cases.txt" | sed -e ':a' -e 'N' -e '$!ba' -e 's/\n> /\x01/g'; }

cases=0 different=0
while IFS= read -r line; do
  line=${line//$'\001'/$'\n'}
  errors=''
  if [[ $line == 'E '* ]]; then errors=yes line=${line#E }; fi
  cases=$((cases + 1))
  outcome old "$line" "$errors" | normalise >actual
  rm -rf run
  # On a busy machine nbdkit is late at times, and its exitwhen crashes at its end: it is asked again, blk is not.
  for _ in 1 2 3 4 5; do
    outcome real "$line" "$errors" | normalise >expected
    ! cmp -s expected actual || break
    rm -rf run
  done
  if ! cmp -s expected actual; then
    different=$((different + 1))
    printf '%s\n' "$line"
    diff expected actual | sed 's/^/    /' | head -20 || true
    sed "s/^/    nbdkit's stderr: /" errors | head -5
  fi
  rm -rf run
done < <(commands)
echo "$cases commands, $different with another outcome"
[ $different = 0 ]
