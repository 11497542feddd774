#!/bin/bash
# debian_source.sh PACKAGE DIR [PREPARE]
# Unpacks the source package PACKAGE of Debian into DIR and runs PREPARE there. The machine's apt settings stay
# as they are: a list of sources derived from the machine's own and a private state folder are used instead.
# The downloaded files are kept under ~/.cache/blk/sources, for the next checkout and for work without a network.
set -euo pipefail
package=$1
dir=$2
prepare=${3-}
cache=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/blk/sources
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

newest_dsc() {
  find "$cache" -name "${package}_*.dsc" 2>/dev/null | sort -V | tail -n 1
}

write_source_lists() {
  local list
  mkdir -p "$work/parts"
  for list in /etc/apt/sources.list.d/*.sources; do
    if [ -s "$list" ]; then
      sed 's/^Types:.*/Types: deb-src/' "$list" >"$work/parts/$(basename "$list")"
    fi
  done
  for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    if [ -s "$list" ]; then
      sed -nE 's/^deb(-src)? /deb-src /p' "$list" | sort -u >"$work/parts/$(basename "$list" .list).list"
    fi
  done
}

download() {
  local apt
  mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/download" "$cache"
  write_source_lists
  apt=(apt-get -qq
    -o Dir::Etc::sourcelist=/dev/null -o "Dir::Etc::sourceparts=$work/parts"
    -o "Dir::State::lists=$work/lists" -o "Dir::Cache=$work" -o APT::Sandbox::User=root)
  (cd "$work/download" && "${apt[@]}" update && "${apt[@]}" source --download-only --only-source "$package")
  mv "$work/download"/* "$cache/"
}

[ -n "$(newest_dsc)" ] || download
dpkg-source --no-check -x "$(newest_dsc)" "$work/tree" >/dev/null
rm -rf "$work/tree/debian" "$work/tree/.pc"
cp -a "$work/tree/." "$dir/"
if [ -n "$prepare" ]; then
  cd "$dir"
  bash "$prepare"
fi
