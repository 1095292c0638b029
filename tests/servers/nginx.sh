#!/bin/sh
# nginx, with a configuration that tells the generation. Arguments: what follows `listen`.
set -e
config=$PWD/nginx$SERVERSWAP_GENERATION.conf
sed "s/@LISTEN@/$*/; s/@GENERATION@/$SERVERSWAP_GENERATION/" "$(dirname "$0")/nginx.conf.in" >"$config"
# Where Debian has it, and users who are not root do not look.
PATH=$PATH:/usr/sbin
exec nginx -p "$PWD" -c "$config" -e stderr
