#!/usr/bin/env bash
# Builds the server with all optimisations (profile `dist`) and a profile of itself under load, so that the compiler knows
# which branches are taken and what belongs together: a request takes a fifth to a third less processor time. The server is
# built twice for it, which takes an hour on two cores.
#
# usage: release.sh               says where it wrote the server, below $CARGO_TARGET_DIR/profiled; its libraries lie beside it
#        release.sh --profdata    says which llvm-profdata it uses
#
# The load is that of the benches: a model of a few microseconds, one of a millisecond, sentence embeddings, at 1, 16 and
# 64 connections, and their deploys. Both builds have the same features, which are part of the names in the profile; it is
# made anew each time, since another compiler or other sources would not know it.
set -euo pipefail
cd "$(dirname "$0")/.."

out=${CARGO_TARGET_DIR:-$PWD/target}/profiled
triple=$(rustc -vV | sed -n 's/^host: //p')
server=$out/build/$triple/dist/tessera
guests=${TESSERA_GUESTS:-${CARGO_TARGET_DIR:-$PWD/target}/guests}

# build WHAT FLAG: the server with the flag of rustc, for this machine's own triple, so that build scripts go without it.
build() {
    echo "release: building the server $1"
    RUSTFLAGS=$2 CARGO_TARGET_DIR=$out/build TESSERA_GUESTS=$guests \
        cargo build --profile dist -p tessera --features llama --target "$triple"
}

# The compiler's own tool, or Debian's: it must read what this compiler's programs write.
profdata() {
    command -v "$(rustc --print sysroot)/lib/rustlib/$triple/bin/llvm-profdata" llvm-profdata-{22,21,20,19} | head -n 1
}

exercise() {
    # shellcheck source=benches/server.sh
    . benches/server.sh
    start_server --onnxruntime "$onnxruntime" --log-level warn
    local model level
    for model in "$iris" "$bench_models/mlp" "$bench_models/mlpbig" "$minilm"; do
        deploy "$model" "$(basename "$model")"
        name_server "$(basename "$model")" "$url/$(basename "$model")/invocations"
    done
    for level in 1 16 64; do
        load iris "$flowers" "$level" 5
        for model in mlp mlpbig; do load "$model" "$bench_models/$model/example.json" "$level" 3; done
        load minilm "$sentences" "$((level / 4 + 1))" 5
    done
    stop_servers
}

profdata=$(profdata || true)
if [ -z "$profdata" ]; then
    echo "release: llvm-profdata is missing: 'make release' installs it" >&2
    exit 1
elif [ "${1:-}" = --profdata ]; then
    echo "$profdata"
    exit
fi
mkdir -p "$out"
rm -rf "$out/raw"
build "with counters" "-Cprofile-generate=$out/raw"
(TESSERA_BIN=$server exercise) >/dev/null
"$profdata" merge --output "$out/tessera.profdata" "$out/raw"
build "with its profile" "-Cprofile-use=$out/tessera.profdata"
echo "release: $server"
