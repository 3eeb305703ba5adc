#!/usr/bin/env bash
# Makes patches/verl/0004-cast.patch: CAST inside verl, from verl_cast's own files. Never edit that patch.
#
#   bash patches/build.sh              writes the patch
#   bash patches/build.sh FILE         writes it to FILE
#
# A file of verl_cast is copied, its imports are renamed. contrib/changes.patch is all that differs in it upstream;
# the other folders of contrib hold what only upstream has. Needs ruff; VERL_SDIST and PYTHON are as in apply.sh.
# Where changes.patch no longer applies, KEEP=DIR keeps the tree without it:
#
#   KEEP=/tmp/tree bash patches/build.sh; cd /tmp/tree
#   git apply --reject .../contrib/changes.patch      # and mend what was rejected
#   git diff -U1 >.../contrib/changes.patch
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
here=$PWD
target=$(realpath -m "${1:-verl/0004-cast.patch}")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir "$work/general"
cp verl/000[123]*.patch "$work/general"
PATCHES="$work/general" bash apply.sh "$work/verl" >/dev/null
tree=$work/verl
quiet_git() {
  env -u GIT_DIR -u GIT_WORK_TREE -u GIT_INDEX_FILE GIT_CONFIG_GLOBAL=/dev/null GIT_CONFIG_SYSTEM=/dev/null \
    GIT_AUTHOR_NAME="the verl_cast authors" GIT_AUTHOR_EMAIL=verl_cast@localhost GIT_AUTHOR_DATE="2026-11-29T12:00:00+0000" \
    GIT_COMMITTER_NAME=build GIT_COMMITTER_EMAIL=build@localhost \
    git -C "$tree" -c core.abbrev=10 -c gc.auto=0 "$@"
}
quiet_git init --quiet
quiet_git add --all --force
quiet_git commit --quiet --message base

# The rooms of the method. Left out: the baselines, advice, tools, the dump that tools read, what stock verl needs.
cast=verl/experimental/cast
mkdir -p "$tree/$cast"
(
  cd ../verl_cast
  find config advantage teacher training checks files.py wire.py -name '*.py' |
    grep -vE '/(baselines|attach|dump|advice|stack|privileged)\.py$' | xargs cp --parents --target-directory "$tree/$cast"
)
find "$tree/$cast" -name '*.py' -print0 | while IFS= read -r -d '' file; do
  {
    cat contrib/licence_header.txt
    sed -E \
      -e 's/^import verl_cast$/import verl/' \
      -e 's/^from verl_cast import/from verl.experimental.cast import/' \
      -e 's/verl_cast\.__version__/verl.__version__/g' \
      -e 's/\bverl_cast\./verl.experimental.cast./g' \
      -e 's/\bverl_cast (\{verl\.__version__\})/verl \1/' \
      -e 's/\[verl_cast( |\])/[cast\1/' "$file"
  } >"$file.new"
  mv "$file.new" "$file"
done

# The settings: the part of the packaged config under algorithm.cast, as a config group of verl.
settings=$tree/verl/trainer/config/algorithm/cast.yaml
sed -n '/^  cast:/,/^    dump:/p' ../verl_cast/config/cast_trainer.yaml | sed -e '1d;$d' -e 's/^    //' >"$settings"
"${PYTHON:-python3}" - "$settings" "$tree"/verl/trainer/config/_generated_*.yaml <<'END'
import re, sys
from omegaconf import OmegaConf

settings, *generated = sys.argv[1:]
lines = OmegaConf.to_yaml(OmegaConf.create({"cast": OmegaConf.load(settings)}))
block = "".join(f"  {line}\n" for line in lines.splitlines())
for path in generated:
    text = open(path).read()
    text, count = re.subn(r"(?m)^(  rollout_correction:\n(?:    .*\n)+)", lambda found: found[1] + block, text)
    assert count == 1, path
    open(path, "w").write(text)
END
cp -r contrib/docs contrib/examples contrib/tests contrib/verl "$tree"
(cd "$tree" && ruff check --no-cache --quiet --select I --fix --config pyproject.toml "$cast" &&
  ruff format --no-cache --quiet --config pyproject.toml "$cast")
quiet_git add --all --force
[ -z "${KEEP:-}" ] || cp -r "$tree" "$KEEP"
quiet_git apply "$here/contrib/changes.patch" || {
  echo "build.sh: contrib/changes.patch does not apply: a line that upstream has otherwise has changed in verl_cast." >&2
  echo "          The head of this script says how to make it anew." >&2
  exit 1
}
quiet_git add --all --force
quiet_git commit --quiet --file "$here/contrib/message.txt"
quiet_git format-patch -1 --stdout --zero-commit --no-signature >"$work/patch"
mv "$work/patch" "$target"
echo "$target: $(grep -c '^+' "$target") added lines"
