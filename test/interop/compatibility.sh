#!/bin/bash
# docs/compatibility.md is what `./dev docs` writes: every backend and filter has its line in docs/peers.txt.
# shellcheck source=test/interop/lib.sh
. "$LIB"
root=$(cd "$(dirname "$LIB")/../.." && pwd)
"$root/test/write_compatibility" "$(command -v blk)" "$root/docs/peers.txt" new.md >/dev/null
diff -u "$root/docs/compatibility.md" new.md || fail 'docs/compatibility.md is stale; ./dev docs renews it'

# The check can fail: a table without its line for `memory` is refused.
grep -v '^plugin | memory ' "$root/docs/peers.txt" >less.txt
expect_status 1 "$root/test/write_compatibility" "$(command -v blk)" less.txt other.md 2>complaint
expect_match "$(cat complaint)" 'no line for the plugin `memory`'
