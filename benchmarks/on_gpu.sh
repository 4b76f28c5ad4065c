#!/usr/bin/env bash
# All that there is to measure on a GPU, in two halves of 8 minutes each.
# It needs no network, ends by itself, and writes what it has as it comes.
set -euo pipefail

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  cat <<'HELP'
Usage: benchmarks/on_gpu.sh [first|second] [ARGUMENT ...]

first   that all ways to compute are equal on this device; steps of search and
        training and inference of DARTS_V2, the paper's network and MSDNet,
        float32 and bfloat16, batch 64 and 512; compile times and memory
second  checkouts of quark0/darts and MSDNet-PyTorch beside them, as they are,
        with channels last and mixed precision, and with torch.compile; an epoch
        of the paper's search and of its training

Writes gpu_first.json or gpu_second.json in OUT, by default benchmarks/results;
python benchmarks/tables.py puts them into benchmarks/README.md.

Environment:
  PYTHON=python3  an interpreter that has jax with a GPU, and torch for `second`
  WHEELS=DIR      wheels of what else it lacks; they are unpacked into a
                  temporary folder
  DARTS=DIR, MSDNET=DIR  the checkouts; without them their rows are skipped
  OUT=DIR         where results go
  SECONDS_IN_ALL=480  when to end

Arguments are those of benchmarks/on_gpu.py; --tiny is for a try on a CPU.
HELP
  exit
fi

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-python3}"
half="${1:-first}"
[[ $# == 0 ]] || shift

if [[ -n ${WHEELS:-} ]]; then
  site="$(mktemp -d)"
  trap 'rm -rf "$site"' EXIT
  "$python" -m pip install --quiet --no-index --no-deps --no-compile \
    --target "$site" "$WHEELS"/*.whl
fi
export PYTHONPATH="$root${site:+:$site}${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1
"$python" "$root/benchmarks/on_gpu.py" "$half" \
  --out "${OUT:-$root/benchmarks/results}" \
  --seconds "${SECONDS_IN_ALL:-480}" \
  ${DARTS:+--darts "$DARTS"} ${MSDNET:+--msdnet "$MSDNET"} "$@"
