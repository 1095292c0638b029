#!/bin/sh
# The main job of serverswap, to look at: a server that knows nothing of it is
# replaced several times under load, on a shared port.  Builds nothing: "make demo" does.  Leaves nothing behind.
set -eu
cd "$(dirname "$0")/.."

SERVERSWAP=${SERVERSWAP:-target/release/serverswap}
SWAPS=5

# Its own world: no server of this user is seen or touched.
unset SERVERSWAP_FD SERVERSWAP_INODE SERVERSWAP_SOCKET SERVERSWAP_GENERATION NOTIFY_SOCKET
work=$(mktemp -d)
export SERVERSWAP_RUN_DIR="$work/run"
port=$(node -e 'const s = require("net").createServer().listen(0, () => { console.log(s.address().port); s.close(); })')
load=

clean_up() {
    trap - EXIT HUP INT TERM
    exec 9>&-
    "$SERVERSWAP" -q --takedown ":$port" >/dev/null 2>&1 || :
    [ -z "$load" ] || wait "$load" || :
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' HUP TERM

say() { printf '\n%s\n\n' "$*"; }
show() { # what is run, and what it prints
    printf '  $ serverswap'
    for word in "$@"; do
        case $word in
            *' '*) printf " '%s'" "$word" ;;
            *) printf ' %s' "$word" ;;
        esac
    done
    echo
    status=0
    # Appended to: the servers go on writing there when this one has returned.
    : >"$work/out"
    "$SERVERSWAP" "$@" >>"$work/out" 2>&1 9>&- || status=$?
    sed 's/^/    /' "$work/out"
}
must() {
    show "$@"
    [ "$status" -eq 0 ] || { echo "demo: that failed with status $status" >&2; exit 1; }
}

say "1. A server like any other is started, and ten clients begin to ask it, without a pause."
must -d node tests/demo/plain.js "$port"
mkfifo "$work/stop"
node tests/demo/load.js "$port" <"$work/stop" >"$work/report" &
load=$!
exec 9>"$work/stop" # its end of file is their end
sleep 1             # not to wait for anything: so that there is something to see

say "2. The same command again is a new version taking over.  $SWAPS times:"
swap=0
while [ "$swap" -lt "$SWAPS" ]; do
    must -d node tests/demo/plain.js "$port"
    swap=$((swap + 1))
done

say "3. A broken new version changes nothing:"
show -d sh -c 'echo "no database"; exit 1'
[ "$status" -ne 0 ] || { echo "demo: a broken server was taken for a good one" >&2; exit 1; }
echo "    (status $status)"

say "4. Who serves now:"
if [ -t 1 ]; then
    # A terminal gets a table.
    echo "  $ serverswap --status"
    "$SERVERSWAP" --status 9>&-
else
    must --status
fi

say "5. What the clients saw:"
exec 9>&-
load_status=0
wait "$load" || load_status=$?
load=
cat "$work/report"
[ "$load_status" -eq 0 ] || { echo "demo: there were failures" >&2; exit 1; }
cat <<END

  Every generation answered, no connection failed, and the slow answers were
  finished by the server that had begun them.  Nothing was tried again here.  Old
  and new listened together, and the kernel steered each new connection to one of
  them: to the old server until the new one had proven that it accepts.
END

say "6. The last server is taken down:"
must --takedown ":$port"
must --status
echo "    (nobody)"
