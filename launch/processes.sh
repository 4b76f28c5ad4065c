#!/usr/bin/env bash
# Runs the program in several processes on this machine; --help says how.
set -euo pipefail

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  cat <<'HELP'
Usage: launch/processes.sh N [--dry-run] --config=configs/NAME.py [FLAG ...]

Runs N processes that are one run, each on its own devices, connected on this
machine. Only the first one's output is shown; the others write to
process-1.log and so on, in the current directory. When one fails, the others
are stopped; the same command goes on from the last checkpoint.

  launch/processes.sh 2 --config=configs/digits.py

--dry-run prints the commands. JAX_NUM_CPU_DEVICES=2 gives each process two CPU
devices; CUDA_VISIBLE_DEVICES is left to you. Else as launch/local.sh.
HELP
  exit
fi

# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
count="${1:-}"
[[ $count =~ ^[1-9][0-9]*$ ]] ||
  refuse "give the number of processes first: $0 2 --config=configs/digits.py"
shift
take_dry_run "$@"
if [[ $dry_run == 1 ]]; then
  venv="$root/.venv"
else
  prepare_environment
fi
find_config ${args[@]+"${args[@]}"}

port="${PORT:-$((20000 + RANDOM % 20000))}"
command=("$venv/bin/python" -m ms_ranas_jax.main ${args[@]+"${args[@]}"}
  "--coordinator=127.0.0.1:$port" "--num_processes=$count")
if [[ $dry_run == 1 ]]; then
  for ((id = 0; id < count; id++)); do
    run "${command[@]}" "--process_id=$id"
  done
  exit
fi

pids=()
stop() {
  kill "$@" ${pids[@]+"${pids[@]}"} 2>/dev/null || true
}
# The processes agree on where to stop, and save. Ctrl-C reaches them by itself;
# another signal would stop them at once.
trap : INT
trap 'stop -TERM' TERM
for ((id = 0; id < count; id++)); do
  if ((id == 0)); then
    "${command[@]}" "--process_id=$id" &
  else
    "${command[@]}" "--process_id=$id" >"process-$id.log" 2>&1 &
  fi
  pids+=($!)
done

status=0
for ((left = count; left > 0; left--)); do
  while :; do
    code=0
    wait -n || code=$?
    # More than 128: a signal came to this shell, and not an end of a process;
    # or a process died of one.
    running="$(jobs -rp | wc -l)"
    ((running >= left)) || break
  done
  if ((code != 0 && (status == 0 || status == 75))); then
    failed=$((code != 75 && code != status))
    status=$code
    if ((failed)); then
      echo "launch: a process ended with status $code (see process-*.log);" \
        "the others are stopped" >&2
      sleep 2
      stop -KILL
    fi
  fi
done
exit "$status"
