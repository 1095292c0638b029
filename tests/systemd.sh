#!/bin/bash
# The installed unit under a real systemd: a user instance in a mount and a control group namespace of its own, which ends
# with this script.  Needs root and Debian's systemd; says so, and is not run, where no such instance can be had.
#
#   tests/systemd.sh SERVERSWAP
set -euo pipefail
binary=$(realpath "${1:-target/release/serverswap}")
here=$(cd "$(dirname "$0")" && pwd)
systemd=/usr/lib/systemd/systemd
[ -x "$systemd" ] || systemd=/lib/systemd/systemd

left_out() { echo "tests/systemd.sh: left out: $*"; exit 0; }
[ "$(id -u)" -eq 0 ] || left_out "not root"
[ -x "$systemd" ] || left_out "no systemd here"
command -v systemctl >/dev/null || left_out "no systemctl here"

if [ -z "${SERVERSWAP_TEST_SYSTEMD-}" ]; then
    unshare -m true 2>/dev/null || left_out "no mount namespace may be made here"
    dir=$(mktemp -d /tmp/sswunit.XXXXXX)
    trap 'rm -rf "$dir"' EXIT
    # A control group of its own: systemd takes the one that it finds itself in for its root.
    for hierarchy in /sys/fs/cgroup/systemd /sys/fs/cgroup; do
        if mkdir "$hierarchy/serverswap-test.$$" 2>/dev/null; then
            group=$hierarchy/serverswap-test.$$
            break
        fi
    done
    [ -n "${group-}" ] || left_out "no control group may be made here"
    status=0
    # shellcheck disable=SC2016 # it is the inner shell that moves
    SERVERSWAP_TEST_SYSTEMD=$dir timeout 300 bash -c 'echo $$ >"$1/cgroup.procs" && exec unshare -m -C "$2" "$3"' \
        bash "$group" "$here/systemd.sh" "$binary" || status=$?
    # Empty groups, the inner ones first.
    find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
    exit "$status"
fi

dir=$SERVERSWAP_TEST_SYSTEMD
mkdir -p /run/systemd
mount -t tmpfs none /run/systemd
mkdir /run/systemd/system
export XDG_RUNTIME_DIR=$dir/run XDG_CONFIG_HOME=$dir/config SERVERSWAP_RUN_DIR=$dir/servers
units=$XDG_CONFIG_HOME/systemd/user
mkdir -p "$XDG_RUNTIME_DIR" "$units" "$dir/env"
chmod 700 "$XDG_RUNTIME_DIR"
port=$((20000 + $$ % 10000))

# The unit as it is installed, but for its paths.
sed -e "s|@BINDIR@/serverswap|$binary|; s|/etc/serverswap|$dir/env|" \
    -e "/^\[Service\]/a Environment=SERVERSWAP_RUN_DIR=$SERVERSWAP_RUN_DIR" \
    "$here/../src/install/systemd/serverswap@.service" >"$units/serverswap@.service"
printf '[Socket]\nListenStream=127.0.0.1:%s\nService=serverswap@socket.service\n' $((port + 1)) >"$units/serverswap-socket.socket"
env_file() { # NAME V PORT [OPTIONS]
    printf 'COMMAND=python3 %s/servers/unit.py %s\nOPTIONS=--ready-timeout 4 %s\nV=%s\n' "$here" "$3" "${4-}" "$2" >"$dir/env/$1.env"
}

SYSTEMD_LOG_TARGET=console "$systemd" --user >"$dir/systemd.log" 2>&1 &
manager=$!
end() {
    systemctl --user stop 'serverswap@*' serverswap-socket.socket 2>/dev/null || true
    kill -TERM "$manager" 2>/dev/null || true
    wait "$manager" 2>/dev/null || true
    umount /run/systemd
}
trap end EXIT
fail() {
    echo "tests/systemd.sh: $*" >&2
    systemctl --user status 'serverswap@*' --no-pager >&2 || true
    tail -50 "$dir/systemd.log" >&2
    exit 1
}
is() { # WHAT WANTED GOT
    [ "$2" = "$3" ] || fail "$1: wanted \"$2\", got \"$3\""
    echo "ok: $1: $3"
}
answer() { # PORT
    python3 -c 'import sys, urllib.request as u; print(u.urlopen("http://127.0.0.1:%s/" % sys.argv[1], timeout=5).read().decode())' "$1"
}
version() { answer "$1" | cut -d ' ' -f 1; }
status_of() { local status=0; "$@" >>"$dir/out" 2>&1 || status=$?; echo "$status"; }
main_pid() { systemctl --user show -P MainPID "serverswap@$1"; }

for _ in $(seq 200); do
    [ -S "$XDG_RUNTIME_DIR/systemd/private" ] && break
    sleep 0.05
done
[ -S "$XDG_RUNTIME_DIR/systemd/private" ] || left_out "systemd does not come up here: $(tail -n 1 "$dir/systemd.log")"

env_file shop one "$port"
is "start" 0 "$(status_of systemctl --user start serverswap@shop)"
is "it answers when start returns" one "$(version "$port")"
pid=$(main_pid shop)

env_file shop two "$port"
is "reload with a changed environment file" 0 "$(status_of systemctl --user reload serverswap@shop)"
is "the new version answers when reload returns" two "$(version "$port")"
is "the main pid stays" "$pid" "$(main_pid shop)"

for broken in crash hang; do
    env_file shop "$broken" "$port"
    is "reload of a version that has a $broken" 1 "$(status_of systemctl --user reload serverswap@shop)"
    is "the old version answers" two "$(version "$port")"
    is "the unit is active" active "$(systemctl --user is-active serverswap@shop)"
done
env_file shop three "$port"
is "reload after that" 0 "$(status_of systemctl --user reload serverswap@shop)"
is "the new version answers" three "$(version "$port")"
is "stop" 0 "$(status_of systemctl --user stop serverswap@shop)"
is "the unit has not failed" inactive "$(systemctl --user is-active serverswap@shop || true)"

# A socket unit: the listener stays with systemd, and is no proof that the server runs.
env_file socket one ""
is "start of the socket" 0 "$(status_of systemctl --user start serverswap-socket.socket)"
is "the first connection starts the server" one "$(version $((port + 1)))"
env_file socket two ""
is "reload" 0 "$(status_of systemctl --user reload serverswap@socket)"
is "the new version answers" two "$(version $((port + 1)))"
for broken in crash hang; do
    env_file socket "$broken" ""
    is "reload of a version that has a $broken" 1 "$(status_of systemctl --user reload serverswap@socket)"
    is "the old version answers" two "$(version $((port + 1)))"
done

env_file socket mute ""
is "reload of a version that accepts and says nothing" 0 "$(status_of systemctl --user reload serverswap@socket)"
is "the new version answers" mute "$(version $((port + 1)))"

# The service manager is told of a reload that HUP asks for, as Type=notify-reload does (systemd 253).
if [ "$(systemctl --version | sed -n '1s/systemd \([0-9]*\).*/\1/p')" -ge 253 ]; then
    mkdir "$units/serverswap@shop.service.d"
    printf '[Service]\nType=notify-reload\nExecReload=\n' >"$units/serverswap@shop.service.d/reload.conf"
    systemctl --user daemon-reload
    env_file shop four "$port"
    is "start as notify-reload" 0 "$(status_of systemctl --user start serverswap@shop)"
    before=$(answer "$port")
    is "reload as notify-reload" 0 "$(status_of systemctl --user reload serverswap@shop)"
    [ "$before" != "$(answer "$port")" ] || fail "the server is the same"
else
    echo "left out: Type=notify-reload needs systemd 253"
fi
echo "tests/systemd.sh: all is well"
