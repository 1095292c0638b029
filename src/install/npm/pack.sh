#!/bin/sh
# Packs the npm package: the program, the manuals and the client. Arguments: a static program, its architecture as
# `uname -m` has it, and the directory for serverswap-VERSION.tgz.
set -eu
umask 022
bin=$1 arch=$2
mkdir -p "$3"
out=$(cd "$3" && pwd)
case $arch in
x86_64) cpu=x64 ;;
aarch64) cpu=arm64 ;;
*)
    echo "pack.sh: the npm package is not built for $arch" >&2
    exit 1
    ;;
esac
# It has to run where no library is: neither an interpreter nor a library is asked for.
if readelf -ld "$bin" | grep -q 'INTERP\|NEEDED'; then
    echo "pack.sh: $bin is not static" >&2
    exit 1
fi

rm -rf "$out/package" "$out"/serverswap-*.tgz
mkdir -p "$out/package/bin" "$out/package/man"
install -m 755 "$bin" "$out/package/bin/serverswap"
cd "$(dirname "$0")/../../.."
for file in src/client/node/index.* src/client/node/README.md LICENSE; do
    install -m 644 "$file" "$out/package"
done
install -m 644 man/serverswap.1 man/serverswap.7 "$out/package/man"
# The program is named itself, without a script around it: that would stay as its parent.
node -e '
    const fs = require("fs");
    const [from, to, cpu] = process.argv.slice(1);
    const client = JSON.parse(fs.readFileSync(from));
    const { files, engines, ...rest } = client;
    const json = {
        ...rest,
        bin: { serverswap: "bin/serverswap" },
        man: ["./man/serverswap.1", "./man/serverswap.7"],
        os: ["linux"],
        cpu: [cpu],
        files: ["bin", "man", ...files],
        engines,
    };
    fs.writeFileSync(to, JSON.stringify(json, null, 2) + "\n");
' src/client/node/package.json "$out/package/package.json" "$cpu"
cd "$out/package"
npm pack --silent --pack-destination "$out" >/dev/null
ls "$out"/serverswap-*.tgz
