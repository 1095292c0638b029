#!/bin/sh
# Starts a server as its manual has it, with a configuration that tells the generation. Arguments: which one, a port,
# then what goes to the server.
set -e
here=$(dirname "$0")
name=$1 PORT=$2
shift 2
GENERATION=$SERVERSWAP_GENERATION
WWW=$PWD/www$GENERATION
export PORT GENERATION WWW
# Where Debian has servers, and users who are not root do not look.
PATH=$PATH:/usr/sbin
# What is served as files. Their workers may be another user's.
mkdir -p "$WWW"
echo "$GENERATION $$" >"$WWW/index.html"
chmod 711 "$PWD"

case $name in
apache)
    # One of this number that was killed has left it, and another process may have its pid.
    rm -f "$WWW/apache.pid"
    exec apache2 -f "$here/apache.conf" -D FOREGROUND "$@"
    ;;
caddy) HOME=$PWD XDG_CONFIG_HOME=$PWD XDG_DATA_HOME=$PWD exec caddy run --adapter caddyfile --config "$here/Caddyfile" ;;
dnsmasq)
    exec dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --user=root --pid-file= \
        --bind-interfaces --listen-address=127.0.0.1 --port="$PORT" --txt-record=generation.test,"$GENERATION" "$@"
    ;;
lighttpd) exec lighttpd -f "$here/lighttpd.conf" "$@" ;;
mosquitto)
    # The largest packet is what an MQTT client is told of a configuration.
    cat >"mosquitto$GENERATION.conf" <<END
listener $PORT 0.0.0.0
allow_anonymous true
persistence false
log_type error
max_packet_size $((1000 + GENERATION))
END
    exec mosquitto -c "mosquitto$GENERATION.conf" "$@"
    ;;
nginx)
    # Arguments: what follows `listen`, then `on` for a daemon.
    sed "s/@LISTEN@/$PORT $1/; s/@GENERATION@/$GENERATION/; s/@DAEMON@/${2:-off}/" "$here/nginx.conf.in" \
        >"nginx$GENERATION.conf"
    exec nginx -p "$PWD" -c "$PWD/nginx$GENERATION.conf" -e stderr
    ;;
php) exec php -S "0.0.0.0:$PORT" "$here/web.php" ;;
php-fpm)
    # Its name has its version.
    for fpm in /usr/sbin/php-fpm*; do :; done
    exec "$fpm" --allow-to-run-as-root --fpm-config "$here/php-fpm.conf" "$@"
    ;;
puma) exec puma --config - --environment production --silent --bind "tcp://0.0.0.0:$PORT" "$@" "$here/config.ru" ;;
redis)
    # The name for the system log, which is not used, takes any text.
    exec redis-server --port "$PORT" --protected-mode no --save '' --loglevel warning --syslog-ident "$GENERATION" "$@"
    ;;
unicorn) exec unicorn --env production --listen "0.0.0.0:$PORT" "$here/config.ru" ;;
uwsgi)
    exec uwsgi --plugin python3 --http-socket "0.0.0.0:$PORT" --chdir "$here" --module web:wsgi --master \
        --processes 2 --need-app --die-on-term --disable-logging
    ;;
*)
    echo "start.sh: $name is not known" >&2
    exit 2
    ;;
esac
