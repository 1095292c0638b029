#!/bin/bash
# Deploys over a real sshd, started here on a free port for this user alone: each ends with the deploy and has its status.
# Needs Debian's openssh-server and openssh-client; says so, and is not run, where they are missing.
#
#   tests/ssh.sh SERVERSWAP
set -euo pipefail
binary=$(realpath "${1:-target/release/serverswap}")
here=$(cd "$(dirname "$0")" && pwd)
sshd=$(command -v sshd || echo /usr/sbin/sshd)
if ! [ -x "$sshd" ] || ! command -v ssh >/dev/null; then
    echo "tests/ssh.sh: left out: no ssh and sshd here"
    exit 0
fi

dir=$(mktemp -d /tmp/sswssh.XXXXXX)
port=$((22000 + $$ % 8000))
server=
end() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    SERVERSWAP_RUN_DIR=$dir/run "$binary" -qq --takedown ":$((port + 1))" 2>/dev/null || true
    rm -rf "$dir"
}
trap end EXIT
fail() {
    echo "tests/ssh.sh: $*" >&2
    cat "$dir/sshd.log" "$dir/log" >&2 2>/dev/null || true
    exit 1
}
is() { # WHAT WANTED GOT
    [ "$2" = "$3" ] || fail "$1: wanted \"$2\", got \"$3\""
    echo "ok: $1: $3"
}

ssh-keygen -q -t ed25519 -N '' -f "$dir/host"
ssh-keygen -q -t ed25519 -N '' -f "$dir/key"
mkdir -p /run/sshd 2>/dev/null || true
# StrictModes would look at the directories above, which are everybody's.
"$sshd" -D -e -f /dev/null -p "$port" -h "$dir/host" -o ListenAddress=127.0.0.1 -o StrictModes=no -o UsePAM=no \
    -o AuthorizedKeysFile="$dir/key.pub" -o PermitRootLogin=yes -o PidFile=none 2>"$dir/sshd.log" &
server=$!
for _ in $(seq 200); do
    ssh-keyscan -p "$port" 127.0.0.1 >"$dir/known" 2>/dev/null && [ -s "$dir/known" ] && break
    sleep 0.05
done
if ! [ -s "$dir/known" ]; then
    echo "tests/ssh.sh: left out: sshd does not come up here: $(tail -n 1 "$dir/sshd.log")"
    exit 0
fi
# A caller that waits for the pipe, as a CI runner does: in 40 seconds the deploy is over, or something holds it.
over_ssh() {
    timeout 40 ssh -F /dev/null -i "$dir/key" -o UserKnownHostsFile="$dir/known" -o IdentitiesOnly=yes -p "$port" 127.0.0.1 \
        "cd '$dir' && export SERVERSWAP_RUN_DIR='$dir/run' && $1" 2>&1
}
answer() { python3 -c 'import sys, urllib.request as u; print(u.urlopen("http://127.0.0.1:%s/" % sys.argv[1], timeout=5).read().decode())' "$((port + 1))"; }
status_of() { local status=0; "$@" >"$dir/out" || status=$?; echo "$status"; }

unit="python3 '$here/servers/unit.py' $((port + 1))"
deploy="'$binary' -d --log log --ready-timeout 4"
is "a first deploy" 0 "$(status_of over_ssh "V=one $deploy $unit")"
is "it answers" one "$(answer | cut -d ' ' -f 1)"
is "the next one, through a pipe" 0 "$(status_of over_ssh "V=two $deploy $unit | tee copy")"
is "it answers" two "$(answer | cut -d ' ' -f 1)"
is "one in a substitution" 0 "$(status_of over_ssh "out=\$(V=three $deploy $unit 2>&1) && echo \"\$out\"")"
is "it answers" three "$(answer | cut -d ' ' -f 1)"
is "a version that crashes" 1 "$(status_of over_ssh "V=crash $deploy $unit")"
grep -q "| crashed: no database" "$dir/out" || fail "the caller does not see why: $(cat "$dir/out")"
is "a version that hangs" 124 "$(status_of over_ssh "V=hang $deploy $unit")"
is "the old version answers" three "$(answer | cut -d ' ' -f 1)"
is "a reload that fails" 1 "$(status_of over_ssh "V=crash '$binary' --reload --fresh :$((port + 1))")"
grep -q "| crashed: no database" "$dir/out" || fail "the caller does not see why: $(cat "$dir/out")"
is "a reload" 0 "$(status_of over_ssh "V=four '$binary' --reload --fresh :$((port + 1))")"
is "it answers after the session" four "$(answer | cut -d ' ' -f 1)"
echo "tests/ssh.sh: all is well"
