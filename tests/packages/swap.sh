#!/bin/sh
# A swap with an installed serverswap and its client. Arguments: the program, and the directory in which
# require('serverswap') finds the client.
set -eu
program=$1
export NODE_PATH="$2"
unset SERVERSWAP_FD SERVERSWAP_INODE SERVERSWAP_SOCKET SERVERSWAP_GENERATION NOTIFY_SOCKET
work=$(mktemp -d)
export SERVERSWAP_RUN_DIR="$work/run"
port=$(node -p 'const s = require("net").createServer().listen(0); const { port } = s.address(); s.close(); port')

clean_up() {
    "$program" -q --takedown ":$port" >/dev/null 2>&1 || :
    rm -rf "$work"
}
trap clean_up EXIT
trap 'exit 1' HUP INT TERM
fail() {
    echo "tests/packages/swap.sh: $*" >&2
    sed 's/^/    /' "$work/log" >&2
    exit 1
}

cat >"$work/server.js" <<END
const serverswap = require('serverswap');
const server = require('http').createServer((request, response) => response.end(process.env.SERVERSWAP_GENERATION));
serverswap.readyFor(':$port', () => server.listen($port));
serverswap.onTakedown(':$port', server, () => process.exit());
END
for generation in 1 2 3; do
    "$program" -d "$work/server.js" >>"$work/log" 2>&1 || fail "generation $generation: status $?"
    answer=$(node -e 'fetch("http://127.0.0.1:" + process.argv[1]).then((r) => r.text()).then(console.log)' "$port")
    [ "$answer" = "$generation" ] || fail "generation $generation: the answer was $answer"
done
# The users are looked up, which a static program does by itself.
"$program" --status | grep -q "^:$port	3	.*	$(id -un)	serving	" || fail "--status says otherwise"
"$program" --takedown ":$port" >>"$work/log" 2>&1 || fail "--takedown: status $?"
[ -z "$("$program" --status)" ] || fail "a server is left"
