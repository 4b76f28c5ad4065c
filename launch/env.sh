# shellcheck shell=bash
# Sourced by the launchers. `prepare_environment [EXTRA]` makes the virtual
# environment, installs the project (with EXTRA) where anything changed, and
# exports what the program needs. Sets `root` and `venv`; changes no directory.

set -euo pipefail
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

refuse() {
  echo "launch: $*" >&2
  exit 2
}

prepare_environment() {
  local extra="${1:-}" interpreter="${PYTHON:-python3}" version
  version="$("$interpreter" -c \
    'import sys; print("%d.%d" % sys.version_info[:2])')" ||
    refuse "'$interpreter' does not run; install Python 3.11 or newer, or" \
      "name its interpreter: PYTHON=/path/to/python $0"
  [[ $version == 3.* && ${version#3.} -ge 11 ]] ||
    refuse "'$interpreter' is Python $version, and 3.11 or newer is needed;" \
      "name another interpreter: PYTHON=python3.13 $0"

  venv="$root/.venv${PYTHON:+-$version}"
  if [[ ! -d $venv/lib/python$version/site-packages/pip ]]; then
    echo "launch: making ${venv##*/} with Python $version" >&2
    "$interpreter" -m venv --clear "$venv"
  fi

  local constraints="$root/constraints-$version.txt" pins='newest releases'
  local files=("$root/setup.cfg" "$root/setup.py" "$root/pyproject.toml")
  local options=(--quiet --disable-pip-version-check)
  if [[ ${NEWEST:-} == 1 ]]; then
    options+=(--upgrade --upgrade-strategy eager)
  elif [[ -f $constraints ]]; then
    options+=(--constraint "$constraints")
    files+=("$constraints")
    pins="${constraints##*/}"
  fi

  # A stamp says what was installed; one with an extra also serves the plain
  # case. NEWEST=1 leaves none, as there may be newer releases the next time.
  local stamp="$venv/.installed${extra:+-$extra}" wanted
  wanted="$root $pins $(cat "${files[@]}" | cksum)"
  if [[ ${NEWEST:-} == 1 ]] || ! grep -qsxF "$wanted" "$stamp"*; then
    echo "launch: installing ms_ranas_jax${extra:+[$extra]} into" \
      "${venv##*/} ($pins); the first time this takes a minute or more" >&2
    rm -f "$venv/.installed"*
    "$venv/bin/python" -m pip install "${options[@]}" \
      --editable "$root${extra:+[$extra]}" ||
      refuse "the installation failed, as pip says above; NEWEST=1 $0 tries" \
        "the newest releases instead of $pins"
    [[ ${NEWEST:-} == 1 ]] || echo "$wanted" >"$stamp"
  fi
  tune_environment
}

# What makes programs start and run faster, unless it is set already.
tune_environment() {
  # Huge pages make a step on a CPU about a seventh faster. Compiled programs
  # are kept, so that a second run starts sooner.
  : "${GLIBC_TUNABLES:=glibc.malloc.hugetlb=1}"
  : "${JAX_COMPILATION_CACHE_DIR:=$root/.cache/jax}"
  : "${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:=0}"
  # Matrix products of XLA's own are as fast on CPUs as those that it leaves to
  # a library, and load from the cache in less time. XLA ends with an error at a
  # flag that it does not know, as a release newer than the pinned ones may.
  [[ ${NEWEST:-} == 1 ]] ||
    : "${XLA_FLAGS:=--xla_cpu_experimental_ynn_fusion_type=}"
  export GLIBC_TUNABLES JAX_COMPILATION_CACHE_DIR ${XLA_FLAGS+XLA_FLAGS}
  export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS
}

# `find_config ARGUMENT ...` sets `args`: the same, with configs/... looked for
# in the repository where it is not here.
find_config() {
  local arg path file
  args=()
  for arg; do
    path="${arg#--config=}"
    file="${path%%:*}" # a config may take an argument: configs/NAME.py:ARGUMENT
    if [[ $file == configs/* && ! -e $file && -e $root/$file ]]; then
      arg="${arg%"$path"}$root/$path"
    fi
    args+=("$arg")
  done
}

# `run COMMAND ...` runs it, or prints it where `dry_run` is 1.
run() {
  if [[ ${dry_run:-} == 1 ]]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# `take_dry_run "$@"` sets `dry_run`, and `args` to the arguments without the
# flag, which comes first.
take_dry_run() {
  dry_run=0
  if [[ ${1:-} == --dry-run ]]; then
    dry_run=1
    shift
  fi
  args=("$@")
}

# `pack_sources` packs the repository into `archive`: what is committed, what is
# changed and what is new, and nothing that git ignores.
pack_sources() {
  archive="$root/.cache/ms_ranas_jax.tar.gz"
  run mkdir -p "$root/.cache"
  # shellcheck disable=SC2016
  run bash -o pipefail -c \
    'git -C "$1" ls-files -coz --exclude-standard | tar -C "$1" --null -czf "$2" -T -' \
    pack "$root" "$archive"
}
