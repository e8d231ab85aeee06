# Processes that a script starts, and their end; sourced after common.bash, not run. Gives:
#   $work               a directory of the script's own, gone at its end; in $work_in, where that is set
#   start NAME COMMAND…, stop NAME, until_true WHAT COMMAND…, free_port, start_mongod BINARY DIRECTORY CACHE_GB
# Whatever was started is stopped by its own pid when the script ends, however it ends; when it fails, the end of what
# each process wrote is shown.
work=$(mktemp -d ${work_in:+-p "$work_in"})
declare -A pids=()

finish() {
  local status=$? file
  trap - EXIT INT TERM
  if ((status != 0)); then
    for file in "$work"/*.log "$work"/*/error.log; do
      [[ ! -s $file ]] || { say "--- the end of ${file#"$work"/}"; tail -n 20 "$file" | cut -c -400 >&2; }
    done
    say "--- $(basename "$0"): FAILED with $status"
  fi
  if ((${#pids[@]})); then
    kill -TERM "${pids[@]}" 2>/dev/null || true
    for _ in {1..50}; do
      kill -0 "${pids[@]}" 2>/dev/null || break
      sleep 0.1
    done
    kill -KILL "${pids[@]}" 2>/dev/null || true
  fi
  wait || true # for all of them, so that nobody writes any more
  rm -rf "$work"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# start NAME COMMAND…: in the background, its output in NAME.log.
start() {
  local name=$1
  shift
  : >"$work/$name.log" # there from now on, for whoever waits for what is in it
  "$@" >"$work/$name.log" 2>&1 &
  pids[$name]=$!
}

# stop NAME: by SIGTERM, and waits for its end; sets $ended to its exit code.
stop() {
  kill -TERM "${pids[$1]}" 2>/dev/null || true # it may have ended by itself
  ended=0
  wait "${pids[$1]}" || ended=$?
  unset "pids[$1]"
}

# until_true WHAT COMMAND…: asks again until it succeeds; fails when a process has ended or after $patience (30) seconds.
until_true() {
  local what=$1 deadline=$((SECONDS + ${patience:-30})) name
  shift
  until "$@"; do
    for name in "${!pids[@]}"; do
      kill -0 "${pids[$name]}" 2>/dev/null || die "$name ended while we waited for $what"
    done
    ((SECONDS < deadline)) || die "waited in vain for $what"
    sleep 0.05
  done
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

# start_mongod BINARY DIRECTORY CACHE_GB: as `mongod`, until it takes connections; sets $mongo_port. On a port that was free a
# moment ago, and on another when it no longer is.
start_mongod() {
  local deadline
  mkdir -p "$2"
  for _ in 1 2 3 4 5; do
    mongo_port=$(free_port)
    start mongod "$1" --port "$mongo_port" --bind_ip 127.0.0.1 --dbpath "$2" --nounixsocket --wiredTigerCacheSizeGB "$3"
    deadline=$((SECONDS + 60))
    until grep -qs '"Waiting for connections"' "$work/mongod.log"; do
      ((SECONDS < deadline)) || die 'mongod does not start'
      kill -0 "${pids[mongod]}" 2>/dev/null || { unset 'pids[mongod]'; continue 2; }
      sleep 0.05
    done
    return
  done
  die 'mongod does not start'
}
