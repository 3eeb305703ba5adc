# Small functions that the scripts here share: refusals, toggles, and commands, started or printed for pasting.
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

# start RUN_DIR WORDS...: run verl's command, which logs its metrics in RUN_DIR; print it if DRY_RUN=1.
start() {
  local run=$1
  shift
  if [ "$DRY_RUN" = 1 ]; then
    quoted "$@"
    return
  fi
  mkdir -p "$run"
  # verl overwrites its metrics file at every start, so an earlier file is renamed.
  if [ -s "$run/metrics.jsonl" ]; then mv "$run/metrics.jsonl" "$run/metrics_until_$(date +%Y%m%d_%H%M%S).jsonl"; fi
  "$@"
}

# head_ip: this node's address, as other nodes reach it. HEAD_IP overrides it.
head_ip() {
  local address=${HEAD_IP:-$(hostname --ip-address | awk '{print $1}')}
  case $address in
    127.*) refuse "$address is this node's own loopback address, where no other node finds it; set HEAD_IP." ;;
  esac
  echo "$address"
}

# ray_token: all Ray processes of one cluster share a token. Otherwise a newer Ray's head requires the home directory's
# token, if one exists, and workers and drivers do not send that one. RAY_AUTH_TOKEN overrides it.
ray_token() {
  export RAY_AUTH_MODE=token
  RAY_AUTH_TOKEN=${RAY_AUTH_TOKEN:-$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')}
  export RAY_AUTH_TOKEN
}

# wait_for_nodes N: until the cluster at RAY_ADDRESS has N nodes. verl counts the GPUs when it starts.
wait_for_nodes() {
  local alive
  for _ in $(seq 30); do
    alive=$(python -c 'import ray; ray.init(log_to_driver=False); print(sum(n["Alive"] for n in ray.nodes()))' || true)
    [ "$alive" = "$1" ] && echo "Ray: $1 of $NNODES nodes at $RAY_ADDRESS" && return
    sleep 5
  done
  echo "Ray: ${alive:-none} in place of $1 nodes at $RAY_ADDRESS" >&2
  return 1
}
