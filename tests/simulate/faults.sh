#!/bin/sh
# Puts each fault of tests/simulate/faults back into a copy of the source and shows that the simulation finds it:
# faults.sh DIRECTORY.  What is built is below DIRECTORY.
set -eu
[ $# -eq 1 ] || { echo "usage: $0 DIRECTORY" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
root=$(cd "$(dirname "$0")/../.." && pwd)
# Seconds in which each has to be found.
within=60

# One crate for all: what it needs beside the standard library is compiled once.
crate=$dir/crate
mkdir -p "$crate"
cat >"$crate/Cargo.toml" <<END
[package]
name = "simulate"
version = "0.0.0"
edition = "2024"

[dependencies]
$(grep '^nix = ' "$root/Cargo.toml")

[[bin]]
name = "simulate"
path = "tests/simulate/main.rs"

[profile.release]
opt-level = 2
debug-assertions = true

[workspace]
END

status=0
for fault in "$root"/tests/simulate/faults/*.patch; do
    name=$(basename "$fault" .patch)
    rm -rf "$crate/src" "$crate/tests"
    mkdir -p "$crate/tests"
    cp -R "$root/src" "$crate/src"
    cp -R "$root/tests/simulate" "$crate/tests/simulate"
    cp "$root/Cargo.lock" "$crate/Cargo.lock"
    # A copy has the time of its original, and cargo goes by that.
    find "$crate/src" "$crate/tests" -name '*.rs' -exec touch {} +
    patch -s -p1 -d "$crate" <"$fault"
    CARGO_TARGET_DIR=$dir/target cargo build --quiet --release --manifest-path "$crate/Cargo.toml"
    if SEED=1 SIMULATE=$within "$dir/target/release/simulate" >"$dir/$name.log" 2>&1; then
        echo "$name: not found within $within seconds" >&2
        status=1
    else
        echo "$name: $(tail -n 1 "$dir/$name.log" | sed 's/:.*//') ($(tail -n 2 "$dir/$name.log" | head -n 1))"
    fi
done
exit "$status"
