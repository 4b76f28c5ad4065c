#!/usr/bin/env bash
# Runs the program on a GKE cluster with xpk; --help says how.
set -euo pipefail

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  cat <<'HELP'
Usage: launch/gke.sh [--dry-run] CLUSTER NAME --config=configs/NAME.py
           --workdir=DIR [FLAG ...]

Submits a workload called NAME to a cluster that xpk made
(github.com/AI-Hypercomputer/xpk), with this repository in its image. DIR is in
a bucket, gs://BUCKET/runs/NAME, or on a storage that the cluster mounts.
--dry-run prints the commands.

Environment:
  TPU_TYPE=v5litepod-16  of the workload
  BASE_IMAGE=python:3.13-slim  with Python 3.11 or newer
  RESTARTS=5             how often the workload is started again; it goes on
                         from the last checkpoint in DIR
HELP
  exit
fi

# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
take_dry_run "$@"
set -- ${args[@]+"${args[@]}"}
cluster="${1:-}" name="${2:-}"
[[ -n $cluster && $cluster != -* && -n $name && $name != -* ]] ||
  refuse "give the cluster and a name for the workload first; $0 --help"
shift 2
[[ " $*" == *' --config='* && " $*" == *' --workdir='* ]] ||
  refuse "give --config=... and --workdir=..., on a storage that outlives a pod"
command='pip install --quiet "jax[tpu]" -e ".[gcs]" && python -m ms_ranas_jax.main --coordinator=auto'
for arg; do
  command+=" $(printf '%q' "$arg")"
done
pack_sources
image="$root/.cache/gke"
run rm -rf "$image"
run mkdir "$image"
run tar -xzf "$archive" -C "$image"
run xpk workload create "--cluster=$cluster" "--workload=$name" \
  "--tpu-type=${TPU_TYPE:-v5litepod-16}" \
  "--base-docker-image=${BASE_IMAGE:-python:3.13-slim}" \
  "--script-dir=$image" "--max-restarts=${RESTARTS:-5}" "--command=$command"
