#!/usr/bin/env bash
# Runs the program on this machine, from any directory; --help says how.
set -euo pipefail

if [[ ${1:-} == -h || ${1:-} == --help ]]; then
  cat <<'HELP'
Usage: launch/local.sh --config=configs/NAME.py [--workdir=DIR] [FLAG ...]

Makes the virtual environment where there is none, and runs
python -m ms_ranas_jax.main with the arguments given. Relative paths count from
the current directory; configs/... is also looked for in the repository.

  launch/local.sh --config=configs/digits.py   a first run, on real digits
  launch/local.sh --config=configs/digits.py --config.seed=1   with one change
  launch/local.sh --helpfull                   every flag of the program

Environment:
  PYTHON=python3.13  another interpreter, in .venv-3.13 instead of .venv
  NEWEST=1           the newest libraries instead of the pinned ones
  JAX_COMPILATION_CACHE_DIR=DIR  compiled programs, instead of .cache/jax
HELP
  exit
fi

# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
prepare_environment

find_config "$@"
exec "$venv/bin/python" -m ms_ranas_jax.main ${args[@]+"${args[@]}"}
