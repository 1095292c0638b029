#!/bin/sh
# The package of "make deb" is looked at by lintian, installed below a directory, used for swaps, and purged.
set -eu
cd "$(dirname "$0")/../.."
target=${CARGO_TARGET_DIR:-target}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
log=$work/log
root=$work/root
fail() {
    echo "tests/packages/deb.sh: $*" >&2
    [ ! -f "$log" ] || sed 's/^/    /' "$log" >&2
    exit 1
}
run() {
    "$@" >"$log" 2>&1 || fail "failed: $*"
}

version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
package=$target/debian/serverswap_$version-1_$(dpkg --print-architecture).deb
[ -f "$package" ] || fail "make deb has not made $package"
head -n 1 src/install/debian/changelog | grep -q "($version-1)" || fail "src/install/debian/changelog has another version"

# Warnings are shown, errors are refused.
as_user=
[ "$(id -u)" -ne 0 ] || as_user=--allow-root
lintian $as_user --fail-on error "$package" || fail "lintian has found errors"

# Who is not root is root of a world of its own here.
as_root=
[ "$(id -u)" -eq 0 ] || as_root="unshare --map-root-user"
mkdir -p "$root/var/lib/dpkg/info" "$root/var/lib/dpkg/updates"
: >"$root/var/lib/dpkg/status"
# The libraries that it needs are those of this machine.
run $as_root dpkg --root="$root" --force-depends --install "$package"
for file in usr/bin/serverswap usr/share/man/man1/serverswap.1.gz usr/share/man/man7/serverswap.7.gz \
    usr/share/bash-completion/completions/serverswap usr/share/zsh/vendor-completions/_serverswap \
    usr/share/fish/vendor_completions.d/serverswap.fish usr/lib/systemd/system/serverswap@.service \
    usr/lib/tmpfiles.d/serverswap.conf etc/logrotate.d/serverswap usr/share/nodejs/serverswap/package.json \
    usr/share/doc/serverswap/copyright; do
    [ -f "$root/$file" ] || fail "no $file"
done
grep -qx "ExecStart=/usr/bin/serverswap \$OPTIONS -- \$COMMAND" "$root/usr/lib/systemd/system/serverswap@.service" ||
    fail "the unit starts something else"
[ "$("$root/usr/bin/serverswap" --version)" = "serverswap $version" ] || fail "another version than $version"
tests/packages/swap.sh "$root/usr/bin/serverswap" "$root/usr/share/nodejs"

# A log that is written to is copied and cut: what is appended later stands in the same file.
mkdir "$work/logs"
sed "s|/var/log/serverswap|$work/logs|" "$root/etc/logrotate.d/serverswap" >"$work/logrotate.conf"
chmod 644 "$work/logrotate.conf"
PATH=$PATH:/usr/sbin
run logrotate --debug --state "$work/state" "$work/logrotate.conf"
exec 8>>"$work/logs/8080.log"
echo old >&8
run logrotate --force --state "$work/state" "$work/logrotate.conf"
echo new >&8
exec 8>&-
[ "$(cat "$work/logs/8080.log.1") $(cat "$work/logs/8080.log")" = "old new" ] || fail "logrotate has lost a line"

run $as_root dpkg --root="$root" --purge serverswap
find "$root" ! -type d ! -path "$root/var/*" >"$log"
[ ! -s "$log" ] || fail "purge left something"
echo "tests/packages/deb.sh: ok"
