#!/usr/bin/env bash
# Runs the program on a TPU pod slice of Google Cloud; --help says how.
set -euo pipefail

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  cat <<'HELP'
Usage: launch/tpu_pod.sh [--dry-run] NAME --config=configs/NAME.py
           --workdir=DIR [FLAG ...]

Asks for a TPU slice (a queued resource called NAME) and waits for it, installs
this repository on all of its hosts, runs the program on all of them, fetches
the work directory and deletes the slice. --dry-run prints every command
instead, and reaches nothing.

The hosts share no disk: DIR is in a bucket, gs://BUCKET/runs/NAME, or below a
file system that you mount on all of them, such as Filestore; MOUNT can do that.

Environment:
  PROJECT, ZONE      as of gcloud; by default those of its configuration
  TYPE=v5litepod-16  accelerator type
  VERSION=v2-alpha-tpuv5-lite  runtime version, see the list for the type
  MOUNT=COMMAND      run on every host before the program
  KEEP=1             do not delete the slice

If it is interrupted, or the slice is taken away, the same command goes on from
the last checkpoint in DIR. A slice that is still there is used again.
HELP
  exit
fi

# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
take_dry_run "$@"
set -- ${args[@]+"${args[@]}"}
name="${1:-}"
[[ $name =~ ^[a-z][a-z0-9-]*$ ]] ||
  refuse "give a name for the slice first, of small letters, digits and '-'"
shift
workdir=''
for arg; do
  [[ $arg == --workdir=* ]] && workdir="${arg#--workdir=}"
done
[[ -n $workdir ]] ||
  refuse "give --workdir=gs://BUCKET/NAME, or a disk that all hosts share"

where=()
[[ -z ${PROJECT:-} ]] || where+=("--project=$PROJECT")
[[ -z ${ZONE:-} ]] || where+=("--zone=$ZONE")
tpus=(gcloud compute tpus)

on_all() {
  run "${tpus[@]}" tpu-vm ssh "$name" ${where[@]+"${where[@]}"} --worker=all "--command=$1"
}

state() {
  "${tpus[@]}" queued-resources describe "$name" ${where[@]+"${where[@]}"} \
    '--format=value(state.state)' 2>/dev/null || true
}

if [[ $dry_run != 1 && $(state) =~ ^(FAILED|SUSPENDED)$ ]]; then
  # It was taken away: another one is asked for.
  run "${tpus[@]}" queued-resources delete "$name" ${where[@]+"${where[@]}"} \
    --force --quiet
fi
if [[ $dry_run == 1 || -z $(state) ]]; then
  run "${tpus[@]}" queued-resources create "$name" ${where[@]+"${where[@]}"} \
    "--node-id=$name" "--accelerator-type=${TYPE:-v5litepod-16}" \
    "--runtime-version=${VERSION:-v2-alpha-tpuv5-lite}"
fi
if [[ $dry_run != 1 ]]; then
  until [[ $(state) == ACTIVE ]]; do
    case "$(state)" in
      FAILED | SUSPENDED) refuse "the slice $name is $(state); try again" ;;
      '') refuse "gcloud does not tell the state of $name; is it logged in?" ;;
    esac
    echo "launch: waiting for $name ($(state))" >&2
    sleep 30
  done
fi

pack_sources
run "${tpus[@]}" tpu-vm scp "$archive" "$name:ms_ranas_jax.tar.gz" \
  ${where[@]+"${where[@]}"} --worker=all
on_all "mkdir -p ms_ranas_jax && tar xzf ms_ranas_jax.tar.gz -C ms_ranas_jax && cd ms_ranas_jax && python3 -m venv .venv && .venv/bin/pip install --quiet 'jax[tpu]' -e '.[gcs]'"
[[ -z ${MOUNT:-} ]] || on_all "$MOUNT"
command='cd ms_ranas_jax && .venv/bin/python -m ms_ranas_jax.main --coordinator=auto'
for arg; do
  command+=" $(printf '%q' "$arg")"
done
on_all "$command"
if [[ $workdir == gs://* ]]; then
  run gcloud storage cp --recursive "$workdir" .
else
  run "${tpus[@]}" tpu-vm scp --recurse "$name:$workdir" . ${where[@]+"${where[@]}"} \
    --worker=0
fi
if [[ ${KEEP:-} != 1 ]]; then
  run "${tpus[@]}" queued-resources delete "$name" ${where[@]+"${where[@]}"} --force --quiet
fi
