#!/bin/bash
# Brings a Debian machine to where "make test-servers" can run: the servers from Debian, Python packages, npm
# packages and what has to be compiled go below DIR. Installs only what is missing. Argument: DIR.
set -euo pipefail
mkdir -p "$1"
dir=$(cd "$1" && pwd)
cd "$(dirname "$0")"

packages=()
# Where Debian has its servers, and users who are not root do not look.
PATH=$PATH:/usr/sbin
want() { # COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || packages+=("$2")
}
want curl curl
want node nodejs
want npm npm
want python3 python3
python3 -c 'import ensurepip, venv' 2>/dev/null || packages+=(python3-venv)
want nginx nginx
want haproxy haproxy
want go golang-go
want javac default-jdk-headless
want openssl openssl
want redis-server redis-server
want caddy caddy
want lighttpd lighttpd
want apache2 apache2
want php php-cli
compgen -G '/usr/sbin/php-fpm*' >/dev/null || packages+=(php-fpm)
want puma puma
want unicorn unicorn
want uwsgi uwsgi
[ -e /usr/lib/uwsgi/plugins/python3_plugin.so ] || packages+=(uwsgi-plugin-python3)
want mosquitto mosquitto
want dnsmasq dnsmasq-base

if [ "${#packages[@]}" -gt 0 ]; then
    root() {
        if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
    }
    # A package of a server starts it. Nobody asked for one on port 80.
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'root rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' | root tee "$policy" >/dev/null
        root chmod 755 "$policy"
    fi
    root apt-get update -qq
    root env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends "${packages[@]}" >"$dir/apt.log" 2>&1 ||
        { cat "$dir/apt.log" >&2; exit 1; }
fi

# Whether FILE is missing or older than one of the sources.
stale() { # FILE SOURCE...
    local file=$1
    shift
    [ -e "$file" ] || return 0
    for source in "$@"; do
        [ ! "$source" -nt "$file" ] || return 0
    done
    return 1
}

if stale "$dir/venv/done" requirements.txt; then
    python3 -m venv "$dir/venv"
    "$dir/venv/bin/pip" install --quiet --disable-pip-version-check -r requirements.txt
    touch "$dir/venv/done"
fi
if stale "$dir/npm/done" npm/package.json npm/app.js; then
    mkdir -p "$dir/npm"
    cp npm/package.json npm/app.js "$dir/npm"
    (cd "$dir/npm" && npm install --no-audit --no-fund --no-package-lock --silent)
    touch "$dir/npm/done"
fi
if stale "$dir/web-go" web.go; then
    # Static: nothing of libc is there to be replaced.
    CGO_ENABLED=0 GOCACHE=$dir/go-cache go build -o "$dir/web-go" web.go
fi
if stale "$dir/web-go-new" web.go "$dir/venv/done"; then
    # A current one listens with MPTCP, where that of Debian does not.
    CGO_ENABLED=0 GOCACHE=$dir/go-cache "$dir/venv/bin/go" build -o "$dir/web-go-new" web.go
fi
if stale "$dir/cert.pem"; then
    openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -subj /CN=localhost \
        -keyout "$dir/key.pem" -out "$dir/cert.pem" 2>"$dir/openssl.log" || { cat "$dir/openssl.log" >&2; exit 1; }
fi
if stale "$dir/Web.class" Web.java; then
    javac -d "$dir" Web.java
fi
