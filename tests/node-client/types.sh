#!/bin/sh
# Checks the types of the Node client for both entry points. Without a network
# and without an earlier installation it is skipped. Argument: a directory in which
# the client is installed, if not the one of the source.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
dir=$root/target/node-types
tsc=$dir/node_modules/.bin/tsc

mkdir -p "$dir/node_modules"
[ -x "$tsc" ] || npm install --prefix "$dir" --no-save --silent typescript@5.9 || {
    echo "types.sh: no typescript to be had (skipped)" >&2
    exit 0
}
ln -sfn "${1:-$root/src/client/node}" "$dir/node_modules/serverswap"
cp "$here"/types/use.* "$dir"

check() {
    (cd "$dir" && "$tsc" --noEmit --strict --target es2022 --lib es2022,dom "$@")
}
for module in node16 nodenext; do
    check --module "$module" use.cts use.mts
done
check --module esnext --moduleResolution bundler use.mts
check --module commonjs --moduleResolution node10 --esModuleInterop use.cts
