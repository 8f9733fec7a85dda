# Shared by the scripts in tools/: where things are, messages, logged stages. Sourced by bash.

set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
logs="$root/build/logs"
installed_targets='shmstored shmctl shmstore shmstore_static'  # what `cmake --install` needs
venv="$root/.venv"
# A second clone finds what the first has compiled.
export CCACHE_BASEDIR="$root" CCACHE_NOHASHDIR=1

if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    bold=$'\e[1m' dim=$'\e[2m' red=$'\e[31m' green=$'\e[32m' plain=$'\e[0m'
else
    bold='' dim='' red='' green='' plain=''
fi

say() { printf '%s\n' "$*"; }
heading() { printf '%s%s%s\n' "$bold" "$*" "$plain"; }
die() {
    printf '%serror:%s %s\n' "$red" "$plain" "$*" >&2
    exit 1
}

# usage_of FILE: the comment block at the head of a script is its --help.
usage_of() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p}' "$1"; }

failed_logs=()
# logged NAME CMD...: runs CMD with its output in build/logs/NAME.log. Prints one line with the
# time taken; on failure also the end of the log, and last what failed. Returns CMD's status.
logged() {
    local name=$1 log="$logs/$1.log" started=$SECONDS status=0
    shift
    mkdir -p "$logs"
    printf '  %-26s ' "$name"
    "$@" >"$log" 2>&1 || status=$?
    if ((status == 0)); then
        printf '%sok%s    %s%4d s%s\n' "$green" "$plain" "$dim" $((SECONDS - started)) "$plain"
    else
        printf '%sFAILED%s%s%4d s%s  (exit %d)\n' "$red" "$plain" "$dim" \
            $((SECONDS - started)) "$plain" "$status"
        printf -- '---- last lines of %s\n' "${log#"$root"/}"
        grep -avE '^SKIPPED \[|^(FAILED|ERROR) ' "$log" | tail -n 60
        printf -- '----\n'
        failures_of "$log"
        failed_logs+=("$log")
    fi
    return $status
}

# failures_of LOG: the lines of pytest, doctest, a compiler and CMake that say what failed.
failures_of() {
    grep -aE '^(FAILED|ERROR) |: (FATAL )?ERROR: |: (fatal )?error: |^CMake Error' "$1" |
        head -n 20 || true
}

# build PRESET [TARGET...]: configures when needed and builds.
build() {
    local preset=$1
    shift
    cd "$root"
    # A build folder of another source tree (a moved clone) cannot be reused.
    local cache="$root/build/$preset/CMakeCache.txt"
    if [[ -f $cache ]] && ! grep -qxF "CMAKE_HOME_DIRECTORY:INTERNAL=$root" "$cache"; then
        rm -rf "${root:?}/build/$preset"
    fi
    cmake --preset "$preset" || return
    cmake --build "build/$preset" ${1:+--target "$@"}
}

# install_package: puts the Python package, shmstored and shmctl into .venv, taking the client
# library and the programs from build/release. Nothing to do when none of its inputs changed.
install_package() {
    cd "$root"
    local stamp="$venv/package-installed" wanted
    wanted=$(find build/release/bin/shmstored build/release/bin/shmctl build/release/lib \
        include client/python cmake CMakeLists.txt pyproject.toml \
        -type f -not -name '*.pyc' -exec cksum {} + | sort -k 3)
    if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then return; fi
    # README is part of the metadata, and a folder of its own keeps a later `pip install .` apart.
    # (pip before 23.1, as Debian 12 has it, does not know -C.)
    "$venv/bin/python" -m pip install --disable-pip-version-check --no-deps --force-reinstall \
        --no-build-isolation --config-settings=build-dir=build/wheel-prebuilt \
        --config-settings=cmake.define.SHMSTORE_PREBUILT="$root/build/release" . || return
    printf '%s\n' "$wanted" >"$stamp"
}
