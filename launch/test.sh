#!/usr/bin/env bash
# Lint, format check, type check and tests:
# launch/test.sh [--lint | --all | PYTEST_ARGUMENT ...]
# Without arguments, the tests that are not marked slow; --all runs those too.
# Paths count from the repository. PYTHON and NEWEST are as for local.sh.
set -euo pipefail

# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
# LiteRT does not go with the newest releases of other libraries, see setup.cfg.
extras=test,docs,tflite
[[ ${NEWEST:-} != 1 ]] || extras='test,docs'
prepare_environment "$extras"
cd "$root"

"$venv/bin/python" -m ruff check .
"$venv/bin/python" -m ruff format --check .
"$venv/bin/python" -m pyrefly check --summary=none \
  --python-interpreter-path "$venv/bin/python"
"$venv/bin/python" -m pylint ms_ranas_jax
"$venv/bin/shellcheck" --external-sources launch/*.sh launch/slurm.sbatch \
  benchmarks/*.sh .ci/run
[[ ${1:-} != --lint ]] || exit 0
# The whole suite takes all cores, a file each, so that what the tests of a file
# share is made once; one more, since some tests wait for processes. Files go in
# the order of tests/conftest.py.
workers=(-n "$(($(getconf _NPROCESSORS_ONLN) + 1))" --dist loadfile)
workers+=(--no-loadscope-reorder)
if [[ $# == 0 ]]; then
  set -- -m 'not slow' "${workers[@]}"
elif [[ $1 == --all ]]; then
  shift
  [[ $# != 0 ]] || set -- "${workers[@]}"
fi
exec "$venv/bin/python" -m pytest "$@"
