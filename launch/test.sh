#!/usr/bin/env bash
# Lint, format check and tests: launch/test.sh [--lint | PYTEST_ARGUMENT ...]
# Paths count from the repository. PYTHON and NEWEST are as for local.sh.
set -euo pipefail

# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
prepare_environment test
cd "$root"

"$venv/bin/python" -m ruff check .
"$venv/bin/python" -m ruff format --check .
"$venv/bin/shellcheck" --external-sources launch/*.sh launch/slurm.sbatch .ci/run
[[ ${1:-} == --lint ]] || exec "$venv/bin/python" -m pytest "$@"
