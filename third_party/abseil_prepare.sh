#!/bin/bash
# Runs in the unpacked tree of Abseil.
# Debian pins Abseil's own string_view, optional, any and variant. We want the standard ones, and an inline
# namespace of our own so that the two kinds can never be linked together by accident.
set -euo pipefail
options=absl/base/options.h
sed -i -E \
  -e 's/^(#define ABSL_OPTION_USE_STD_[A-Z_]+) [0-9]$/\1 1/' \
  -e 's/^(#define ABSL_OPTION_INLINE_NAMESPACE_NAME) .*/\1 blk_std/' $options
if [ "$(grep -cE '^#define ABSL_OPTION_USE_STD_[A-Z_]+ 1$' $options)" != 4 ]; then
  echo "abseil: $options no longer has the four USE_STD options; look at it again" >&2
  exit 1
fi
# Debian's `platforms` does not know WebAssembly; any processor that is not ours does for its select().
sed -i -E 's/@platforms\/\/cpu:wasm(32|64)/@platforms\/\/cpu:ppc/' absl/BUILD.bazel
