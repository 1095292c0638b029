#!/bin/sh
# The package of "make npm" is installed globally and locally, without a network, and used for swaps.
set -eu
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
log=$work/log
fail() {
    echo "tests/packages/npm.sh: $*" >&2
    [ ! -f "$log" ] || sed 's/^/    /' "$log" >&2
    exit 1
}
run() {
    "$@" >"$log" 2>&1 || fail "failed: $*"
}
# A home of its own: no file of this user counts.
npm_install() {
    run env HOME="$work" npm_config_cache="$work/npm" npm install --offline --no-audit --no-fund "$@"
}

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
package=$(cd "$target/npm" && pwd)/serverswap-$version.tgz
[ -f "$package" ] || fail "make npm has not made $package"

tar -tzf "$package" | LC_ALL=C sort >"$work/found"
for file in LICENSE README.md bin/serverswap index.d.mts index.d.ts index.js index.mjs man/serverswap.1 \
    man/serverswap.7 package.json; do
    echo "package/$file"
done | LC_ALL=C sort >"$work/wanted"
diff "$work/wanted" "$work/found" >"$log" || fail "other files than wanted (<) are packed (>)"

npm_install --global --prefix "$work/global" "$package"
program=$work/global/bin/serverswap
[ "$("$program" --version)" = "serverswap $version" ] || fail "another version than $version"
# The program itself: no interpreter, no library, no script around it.
readelf -h "$(readlink -f "$program")" >"$log" || fail "a script stands before the program"
for page in man1/serverswap.1 man7/serverswap.7; do
    [ -e "$work/global/share/man/$page" ] || fail "no manual $page"
done
tests/packages/swap.sh "$program" "$work/global/lib/node_modules"

mkdir "$work/project"
echo '{"name":"project","version":"1.0.0","private":true}' >"$work/project/package.json"
npm_install --prefix "$work/project" "$package"
tests/packages/swap.sh "$work/project/node_modules/.bin/serverswap" "$work/project/node_modules"
(
    cd "$work/project"
    run env -u SERVERSWAP_FD -u SERVERSWAP_SOCKET node --input-type=module -e "
        import { readyFor } from 'serverswap';
        await readyFor(':1');
        console.log('ready');"
    [ "$(cat "$log")" = ready ] || fail "import 'serverswap' does not work"
)
tests/node-client/types.sh "$work/project/node_modules/serverswap"

run env HOME="$work" npm uninstall --global --prefix "$work/global" serverswap
[ -z "$(find "$work/global" ! -type d)" ] || fail "npm uninstall left something"
echo "tests/packages/npm.sh: ok"
