#!/bin/sh
# Brings a Debian or Ubuntu machine to where something can be built or run. Installs what is missing: on a terminal
# after one question, elsewhere if root or sudo does it without one. Otherwise it prints the line that installs it,
# and fails. Arguments: what for, `build`, `demo`, `test`, `check`, `nginx`, `deploy`, `simulate`, `packages`.
set -eu
# Where Debian has servers, and users who are not root do not look.
PATH=$PATH:/usr/sbin:/sbin

missing=
add() { # PACKAGE
    case " $missing " in
    *" $1 "*) ;;
    *) missing="$missing $1" ;;
    esac
}
want() { # COMMAND PACKAGE
    command -v "$1" >/dev/null 2>&1 || add "$2"
}
set_up() { # WHAT FOR
    case $1 in
    build)
        want make make
        want cc gcc
        [ -e /usr/include/stdio.h ] || add libc6-dev
        ;;
    demo)
        set_up build
        want node nodejs
        ;;
    test)
        set_up demo
        want npm npm
        want python3 python3
        want strace strace
        want ss iproute2
        want setpriv util-linux
        want openssl openssl
        want faketime faketime
        ;;
    check)
        set_up test
        want mandoc mandoc
        want shellcheck shellcheck
        ;;
    nginx)
        set_up demo
        want nginx nginx-light
        want haproxy haproxy
        ;;
    deploy)
        set_up test
        want systemctl systemd
        want sshd openssh-server
        want ssh openssh-client
        ;;
    simulate)
        set_up build
        want patch patch
        ;;
    packages)
        set_up test
        want readelf binutils
        want lintian lintian
        want logrotate logrotate
        ;;
    *)
        echo "tests/setup.sh: unknown: $1" >&2
        exit 2
        ;;
    esac
}
for purpose; do
    set_up "$purpose"
done
[ -n "$missing" ] || exit 0

if ! command -v apt-get >/dev/null 2>&1; then
    echo "serverswap needs what Debian has in these packages:$missing" >&2
    exit 1
fi
line="apt-get install --no-install-recommends$missing"
sudo=
[ "$(id -u)" -eq 0 ] || sudo=sudo
if [ -t 0 ] && [ -t 2 ]; then
    printf 'serverswap needs these packages:%s\nInstall them by %sapt-get? [Y/n] ' "$missing" "${sudo:+sudo }" >&2
    read -r answer
    case $answer in
    '' | [Yy]*) ;;
    *) answer=no ;;
    esac
elif [ -z "$sudo" ] || sudo -n true 2>/dev/null; then
    answer=yes
else
    answer=no
fi
if [ "$answer" = no ]; then
    echo "serverswap needs packages:  ${sudo:+sudo }$line" >&2
    exit 1
fi
# A package of a server starts it. Nobody asked for one on port 80.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    trap '$sudo rm -f "$policy"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' | $sudo tee "$policy" >/dev/null
    $sudo chmod 755 "$policy"
fi
echo "serverswap: ${sudo:+sudo }$line" >&2
$sudo apt-get update -qq
# shellcheck disable=SC2086 # the packages are words
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
