# Small functions that the scripts here share: refusals, toggles, and commands printed so that they can be pasted.
# shellcheck shell=bash

refuse() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

# toggle NAME: its value becomes 1 or 0.
toggle() {
  case ${!1} in
    1 | true) printf -v "$1" 1 ;;
    0 | false) printf -v "$1" 0 ;;
    *) refuse "$1=${!1} is neither on nor off; use 1 or true, 0 or false." ;;
  esac
}

# quoted WORDS...: one line that the shell reads as these words. Bash's own %q is harder to read (\[console\,file\]).
quoted() {
  local word line='' quote="'\\''"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,+@%-]*) word="'${word//"'"/"$quote"}'" ;;
    esac
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}
