#!/usr/bin/env bash
# Builds the site of the documentation into .cache/site, and fails at a warning:
# launch/docs.sh [--serve [PORT]]
# With --serve it is then served at http://localhost:PORT, 8000 by default.
# PYTHON and NEWEST are as for local.sh.
set -euo pipefail

# shellcheck source=launch/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
case ${1:-} in
'' | --serve) ;;
*) refuse "'$1' is not known; give --serve, or nothing" ;;
esac
prepare_environment docs

site="$root/.cache/site"
# A page is looked at as a whole: what has not changed may link to what has.
"$venv/bin/python" -m sphinx -E -W --keep-going -q -b html "$root/docs" "$site"
echo "launch: $site/index.html"
if [[ ${1:-} == --serve ]]; then
  exec "$venv/bin/python" -m http.server "${2:-8000}" --directory "$site"
fi
