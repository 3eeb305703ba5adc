#!/usr/bin/env bash
# Makes a patched verl: its 0.9.1 source distribution with every patch of verl/, in order.
#
#   bash patches/apply.sh [DIR]        DIR: where it goes, default ./verl-patched; it must not exist
#   pip install -e DIR
#
# VERL_SDIST=/path/to/verl-0.9.1.tar.gz uses an archive that is already there. PYTHON: default python3; its pip
# downloads the archive. PATCHES: another folder of patches.
set -euo pipefail

VERSION=0.9.1
SHA256=3e03d8816b2546b2c5580705671b8d0bb3f79b8364e7b5c56dbfc1245536ba22

fail() {
  echo "apply.sh: $*" >&2
  exit 1
}

target=${1:-./verl-patched}
patches=${PATCHES:-$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/verl}
[ $# -le 1 ] || fail "takes one folder, got $#"
[ ! -e "$target" ] || fail "$target exists; name another folder, or remove it first"
command -v git >/dev/null || fail "git is not installed; it applies the patches"
mkdir -p "$(dirname "$target")" || fail "cannot write to $(dirname "$target")"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
work=$(cd "$work" && pwd -P)
archive=${VERL_SDIST:-$work/verl-$VERSION.tar.gz}
if [ -z "${VERL_SDIST:-}" ]; then
  "${PYTHON:-python3}" -m pip download --quiet --no-deps --no-binary verl --dest "$work" "verl==$VERSION" ||
    fail "pip could not download verl $VERSION; see its message above, or name an archive with VERL_SDIST"
fi
[ -f "$archive" ] || fail "$archive does not exist"
echo "$SHA256  $archive" | sha256sum --check --status ||
  fail "$archive is not the source distribution of verl $VERSION that the patches are made for (its SHA-256 differs)"
mkdir "$work/tree"
tar -xzf "$archive" --strip-components=1 -C "$work/tree" || fail "$archive cannot be unpacked"

# Inside another repository `git apply` would take the paths for that repository's, and skip them without a word.
apply() {
  (cd "$work/tree" && env -u GIT_DIR -u GIT_WORK_TREE -u GIT_INDEX_FILE GIT_CEILING_DIRECTORIES="$work" git apply "$@")
}
count=0
for patch in "$patches"/*.patch; do
  [ -f "$patch" ] || fail "no patches in $patches"
  apply --check "$patch" || fail "$(basename "$patch") does not apply to verl $VERSION with the patches before it"
  apply "$patch" || fail "$(basename "$patch") failed half-way"
  echo "applied $(basename "$patch")"
  count=$((count + 1))
done
mv "$work/tree" "$target" || fail "cannot write $target"
echo "verl $VERSION with $count patches: $target (pip install -e $target)"
