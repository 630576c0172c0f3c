#!/usr/bin/env bash
# Builds guests: crates that become components.
#
#   sdk/build-guests.sh [OUT [CRATE...]]
#
# OUT    folder for CRATE.wasm (default: guests/ in the cargo target folder)
# CRATE  package names (default: every guest of the workspace)
#
# The compiler is found in this order, so that nothing is installed that is not needed:
#   1. rustup's toolchain, if it has a WebAssembly target (rustup target add wasm32-unknown-unknown)
#   2. Debian's rustc-web, cargo-web and rust-web-src, which build the standard library themselves; installed if missing
# Cargo decides what is out of date; a second call does nothing and takes about a second.
set -euo pipefail

cd "$(dirname "$0")/.."
target_dir=${CARGO_TARGET_DIR:-$PWD/target}
build_dir=$target_dir/guests-build
out=${1:-$target_dir/guests}

# Frees 512 KiB for the stack: enough for deep JSON and regular expressions. It lies below the data, so that an overflow
# leaves the memory and traps instead of running over the data.
flags="-Ctarget-feature=+simd128 -Clink-arg=-zstack-size=524288 -Clink-arg=--stack-first"
# No WASI means no randomness: a guest whose dependencies ask for some defines where it comes from.
flags+=' --cfg getrandom_backend="custom"'

fail() {
    echo "build-guests: $*" >&2
    exit 1
}

# Every workspace crate that is a cdylib, by its package name.
all_guests() {
    local manifest
    grep -l '"cdylib"' sdk/stock/*/Cargo.toml guest-examples/*/Cargo.toml tests/guests/*/Cargo.toml 2>/dev/null |
        while read -r manifest; do sed -n 's/^name = "\(.*\)"/\1/p;T;q' "$manifest"; done
}

# Sets `target` and `cargo`: the command that builds for it.
choose_toolchain() {
    local installed=""
    if command -v rustup >/dev/null; then installed=$(rustup target list --installed); fi
    for target in wasm32-unknown-unknown wasm32-wasip1 wasm32-wasip2; do
        if grep -qx "$target" <<<"$installed"; then
            cargo=(cargo)
            return
        fi
    done
    target=wasm32-unknown-unknown
    install_debian_toolchain
    # RUSTC_BOOTSTRAP lets a stable compiler build the standard library from source, which Debian ships no wasm build of.
    cargo=(env RUSTC=/usr/bin/rustc RUSTC_BOOTSTRAP=1 "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=$(find_linker)"
        /usr/bin/cargo -Zbuild-std=std,panic_abort)
}

install_debian_toolchain() {
    local packages=(rustc-web cargo-web rust-web-src) as_root=()
    if dpkg-query --show --showformat='${db:Status-Status}\n' "${packages[@]}" 2>/dev/null |
        awk '$1 == "installed" { n++ } END { exit n != 3 }'; then
        return
    fi
    command -v apt-get >/dev/null ||
        fail "no WebAssembly compiler; run: rustup target add wasm32-unknown-unknown"
    if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
    echo "build-guests: installing ${packages[*]}" >&2
    "${as_root[@]}" apt-get update -qq >&2
    "${as_root[@]}" apt-get install -y -qq --no-install-recommends "${packages[@]}" >&2 ||
        fail "cannot install ${packages[*]}; or run: rustup target add wasm32-unknown-unknown"
}

# Debian's compiler comes without the WebAssembly linker; rustup's brings it along.
find_linker() {
    local sysroot
    sysroot=$(rustc --print sysroot)
    find "$sysroot/lib/rustlib" -path '*/bin/rust-lld' -print -quit | grep . ||
        command -v wasm-ld || fail "no rust-lld in $sysroot; install Rust with rustup, or the package lld"
}

if [ $# -gt 1 ]; then guests=("${@:2}"); else mapfile -t guests < <(all_guests); fi
choose_toolchain
[ -d "$build_dir" ] || echo "build-guests: compiling ${#guests[@]} components, which takes minutes the first time" >&2

cargo build --quiet --package tessera-componentize --target-dir "$build_dir"
componentize=$build_dir/debug/tessera-componentize

RUSTFLAGS=$flags "${cargo[@]}" build --quiet --profile guest --target "$target" --target-dir "$build_dir" --lib \
    "${guests[@]/#/--package=}"

mkdir -p "$out"
for guest in "${guests[@]}"; do
    module=$build_dir/$target/guest/${guest//-/_}.wasm
    component=$out/$guest.wasm
    if [ "$module" -nt "$component" ] || [ "$componentize" -nt "$component" ]; then
        "$componentize" "$module" "$component"
        echo "$component: $(wc -c <"$component") bytes"
    fi
done
