#!/bin/sh
# Says READY for a program that knows nothing of serverswap. Arguments: a port, a directory for files.
set -e
cd "$(mktemp -d "$2/XXXXXX")"
echo "$SERVERSWAP_GENERATION $$" >index.html
echo "READY :$1" >&"$SERVERSWAP_FD"
read -r go <&"$SERVERSWAP_FD"
[ "$go" = "GO :$1" ]
exec python3 -m http.server "$1"
