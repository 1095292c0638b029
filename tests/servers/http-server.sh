#!/bin/sh
# The server of Python's standard library, with a file that tells the generation. Arguments: a Python, a port.
set -e
mkdir -p "www$SERVERSWAP_GENERATION"
echo "$SERVERSWAP_GENERATION $$" >"www$SERVERSWAP_GENERATION/index.html"
exec "$1" -m http.server "$2" --protocol HTTP/1.1 --directory "www$SERVERSWAP_GENERATION"
