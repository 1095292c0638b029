#!/bin/sh
# make install puts every file where it is looked for, npm can install the
# client from there without a network, and make uninstall leaves nothing.
set -eu
cd "$(dirname "$0")/.."

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
root=$work/root
log=$work/log

fail() {
    echo "tests/install.sh: $*" >&2
    [ ! -f "$log" ] || sed 's/^/    /' "$log" >&2
    exit 1
}
run() {
    "$@" >"$log" 2>&1 || fail "failed: $*"
}
# The umask of a careful administrator does not make files that others cannot read.
umask 077

run make install DESTDIR="$root" PREFIX=/usr

prefix=$root/usr
(cd "$root" && find . -type f | sed 's|^\./||' | LC_ALL=C sort) >"$work/found"
{
    echo etc/logrotate.d/serverswap
    echo usr/bin/serverswap
    echo usr/lib/systemd/system/serverswap@.service
    echo usr/lib/tmpfiles.d/serverswap.conf
    for file in index.d.mts index.d.ts index.js index.mjs package.json; do
        echo usr/lib/node_modules/serverswap/$file
    done
    echo usr/share/bash-completion/completions/serverswap
    echo usr/share/fish/vendor_completions.d/serverswap.fish
    echo usr/share/man/man1/serverswap.1
    echo usr/share/man/man7/serverswap.7
    echo usr/share/zsh/site-functions/_serverswap
} | LC_ALL=C sort >"$work/wanted"
diff "$work/wanted" "$work/found" >"$log" || fail "other files than wanted (<) were installed (>)"

(cd "$root" && find . -type f ! -perm 644 ! -path ./usr/bin/serverswap) >"$log"
[ ! -s "$log" ] || fail "not of mode 644"
(cd "$root" && find . -mindepth 1 -type d ! -perm 755) >"$log"
[ ! -s "$log" ] || fail "not of mode 755"

# The binary is the one that was built, and runs.
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
run "$prefix/bin/serverswap" --version
[ "$(cat "$log")" = "serverswap $version" ] || fail "wrong version, not $version"

# The unit names the binary and has no variable of the Makefile left.
unit=$prefix/lib/systemd/system/serverswap@.service
grep -qx "ExecStart=/usr/bin/serverswap \$OPTIONS -- \$COMMAND" "$unit" || fail "the unit starts something else"
! grep -q '@[A-Z]*@' "$unit" || fail "the unit has a variable left"
grep -qx 'd /run/serverswap 0755 root root -' "$prefix/lib/tmpfiles.d/serverswap.conf" || fail "the tmpfiles line is another"

# The client, as "npm install DIR" in the user's project has it.
[ "$(node -p 'require(process.argv[1]).version' "$prefix/lib/node_modules/serverswap/package.json")" = "$version" ] ||
    fail "the client has another version than the binary"
mkdir "$work/project"
echo '{"name":"project","version":"1.0.0","private":true}' >"$work/project/package.json"
(
    cd "$work/project"
    # A directory of its own: no file of this user counts, and no network is used.
    run env HOME="$work" npm_config_cache="$work/npm" npm install --offline --no-audit --no-fund \
        "$prefix/lib/node_modules/serverswap"
    run env -u SERVERSWAP_FD -u SERVERSWAP_SOCKET node -e "
        const { readyFor, onTakedown, serverUp, fail } = require('serverswap');
        onTakedown(':1', () => {});
        readyFor(':1', () => console.log('ready'));"
    [ "$(cat "$log")" = ready ] || fail "require('serverswap') does not work"
    run env -u SERVERSWAP_FD -u SERVERSWAP_SOCKET node --input-type=module -e "
        import { readyFor } from 'serverswap';
        await readyFor(':1');
        console.log('ready');"
    [ "$(cat "$log")" = ready ] || fail "import 'serverswap' does not work"
)

# The client in the binary is the one that is installed.
"$prefix/bin/serverswap" --client node >"$work/client.js"
cmp "$work/client.js" "$prefix/lib/node_modules/serverswap/index.js" >"$log" || fail "--client node prints another file"

# What is not ours stays.
echo mine >"$prefix/bin/other"
run make uninstall DESTDIR="$root" PREFIX=/usr
[ "$(cd "$root" && find . ! -type d)" = ./usr/bin/other ] || fail "uninstall left or took something"
[ ! -e "$prefix/lib/node_modules/serverswap" ] || fail "uninstall left the directory of the client"
# Twice is no error.
run make uninstall DESTDIR="$root" PREFIX=/usr

echo "tests/install.sh: ok"
