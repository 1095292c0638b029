#!/bin/sh
# Builds or runs the fuzz targets:  run.sh build|run DIRECTORY [SECONDS]
# DIRECTORY is for what is built and found.  All targets together take SECONDS.
set -eu
[ $# -ge 2 ] || { echo "usage: $0 build|run DIRECTORY [SECONDS]" >&2; exit 2; }
verb=$1
mkdir -p "$2"
dir=$(cd "$2" && pwd)
seconds=${3:-120}
cd "$(dirname "$0")"
PATH=$PATH:$dir/bin
# cargo-fuzz needs switches that a stable compiler has only for its own bootstrap.
export RUSTC_BOOTSTRAP=1

cannot() { echo "make: serverswap cannot be fuzzed here: $1" >&2; exit 1; }
command -v cargo-fuzz >/dev/null || cannot "cargo-fuzz is missing (cargo install cargo-fuzz)"
build() { cargo fuzz build --fuzz-dir . --target-dir "$dir/target" --sanitizer "$1" >"$dir/build.log" 2>&1; }
# Without the address sanitizer what is asserted is still found.
sanitizer=address
build address || { sanitizer=none; build none; } || cannot "the targets do not build (see $dir/build.log)"
[ "$verb" = run ] || exit 0

jobs=$(nproc)
[ "$jobs" -le 4 ] || jobs=4
one() {
    mkdir -p "$dir/corpus/$1"
    # First what is kept, then what was found the last time; new finds go to the first directory.
    cargo fuzz run --fuzz-dir . --target-dir "$dir/target" --sanitizer "$sanitizer" "$1" \
        "$dir/corpus/$1" "corpus/$1" -- \
        -max_total_time=$((seconds * jobs / 4)) -max_len=4096 -timeout=10 >"$dir/$1.log" 2>&1 || {
        tail -n 40 "$dir/$1.log" >&2
        return 1
    }
    echo "$1: $(grep -a DONE "$dir/$1.log")"
}

status=0
set --
for target in lines words records arguments; do
    one "$target" &
    set -- "$@" "$!"
    if [ $# -ge "$jobs" ]; then
        wait "$1" || status=1
        shift
    fi
done
for pid; do
    wait "$pid" || status=1
done
exit "$status"
