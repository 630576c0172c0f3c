#!/usr/bin/env bash
# Conformance of the backends: the ONNX project's cases for single operators, through a guest's wasi:nn.
#
#   tests/conformance/run.sh [EVERY]    each EVERYth case only; all by default, which takes about ten minutes
#
# With WRITE=1 the list of what tract supports is written anew. Run by `make conformance`, which installs uv and ONNX
# Runtime, and for some of the cases by `make test`; stops by itself, and its servers with it.
set -euo pipefail
cd "$(dirname "$0")/../.."

every=${1:-1}
PATH="$TESSERA_CACHE/uv/bin:$PATH"
venv=$TESSERA_CACHE/conformance
scratch=$(mktemp -d)
# What the backends say of the cases that they refuse.
log=$CARGO_TARGET_DIR/conformance.log
: >"$log"
source tests/server.sh
trap 'stop; rm -rf "$scratch"' EXIT

[ -x "$venv/bin/python" ] || uv venv --quiet --python '>=3.11' "$venv"
uv pip install --quiet --python "$venv" --requirement tests/conformance/requirements.txt

# check BACKEND ARGUMENT...
check() {
    start "$1"
    timeout 3600 "$venv/bin/python" tests/conformance/nodes.py --url "$url" --token "$(cat "$home/admin.token")" \
        --guest "$TESSERA_GUESTS/passthrough.wasm" --backend "$@" --every "$every"
    stop
}

check tract --supported tests/conformance/tract.txt ${WRITE:+--write}
check onnxruntime
