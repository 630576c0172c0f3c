#!/usr/bin/env bash
# `make run`: serves on TESSERA_LISTEN, deploys the four example models, shows how to call them, stays up until Ctrl-C.
# All state is below TESSERA_HOME; a second run finds its endpoints there and deploys only what has changed.
set -euo pipefail

cd "$(dirname "$0")/.."
checkout=$PWD
cache=${TESSERA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tessera}
target=${CARGO_TARGET_DIR:-$checkout/target}
tessera=${TESSERA_BIN:-$target/dist/tessera}
listen=${TESSERA_LISTEN:-127.0.0.1:8080}
mkdir -p "${TESSERA_HOME:-.tessera}"
home=$(cd "${TESSERA_HOME:-.tessera}" && pwd)
started_in_s=60 # a first start creates keys and opens the store; a restart loads every endpoint

main() {
    trap stop EXIT
    trap 'stopping=yes; stop' INT TERM
    start
    deploy iris "$cache/models/iris"
    deploy minilm "$cache/models/minilm"
    assemble_filetype
    deploy filetype "$target/packages/filetype"
    deploy smollm2 "$cache/models/smollm2"
    show
    # `wait` also returns when a signal arrives; `stop` has then asked the server to drain.
    while running; do wait "$server" || true; done
    [ -n "${stopping:-}" ] || fail "the server has stopped"
}

start() {
    # The file says where a server accepts requests; one that is older than this run belongs to a server that is gone.
    local since=$home/demo/started
    mkdir -p "$home/demo"
    touch "$since"
    "$tessera" serve --home "$home" --listen "$listen" &
    server=$!
    for _ in $(seq $((started_in_s * 20))); do
        if ! running || [ "$home/address" -nt "$since" ]; then break; fi
        sleep 0.05
    done
    running || fail "the server did not start: its reason is above (TESSERA_LISTEN sets another address than $listen)"
    [ "$home/address" -nt "$since" ] || fail "the server was not ready after $started_in_s s"
    address=$(cat "$home/address")
}

# deploy NAME PACKAGE: registers the package and makes the endpoint, unless it already serves this very content.
deploy() {
    local name=$1 package=$2 model=main.default.$1 content version
    content=$(cd "$package" && find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -d ' ' -f 1)
    if [ "$(cat "$home/demo/$name" 2>/dev/null)" = "$content" ] && client endpoint get "$name" >/dev/null 2>&1; then
        echo "$name: deployed before, unchanged"
        return
    fi
    if client endpoint get "$name" >/dev/null 2>&1; then client endpoint delete "$name" >/dev/null; fi
    version=$(client model push "$package" --name "$model" --json | sed -n 's/.*"version": *"\{0,1\}\([0-9]*\).*/\1/p')
    client endpoint create "$name" --model "$model" --version "$version" --wait
    echo "$content" >"$home/demo/$name"
}

# The weights come from `make setup`, the component from `make guests`: together they are the package.
assemble_filetype() {
    rm -rf "$target/packages/filetype"
    mkdir -p "$target/packages"
    cp -R "$cache/models/filetype" "$target/packages/filetype"
    cp "$target/guests/filetype.wasm" "$target/packages/filetype/component.wasm"
}

client() {
    "$tessera" "$@" --home "$home"
}

show() {
    local call="curl -sS -H \"Authorization: Bearer \$(cat '$home/admin.token')\""
    local url="http://$address/serving-endpoints"
    cat <<TEXT

Tessera serves on http://$address
The token of its administrator is in $home/admin.token

A flower's species from four lengths in cm:
  $call -H 'Content-Type: application/json' $url/iris/invocations -d '{"dataframe_split": {"columns": ["sepal_length", "sepal_width", "petal_length", "petal_width"], "data": [[5.1, 3.5, 1.4, 0.2]]}}'

A sentence as a vector:
  $call -H 'Content-Type: application/json' $url/minilm/invocations -d '{"input": "How do I reset my password?"}'

What kind of file this is:
  $call -H 'Content-Type: application/octet-stream' $url/filetype/invocations --data-binary '@$checkout/README.md'

A language model, word by word, or as a conversation:
  $call -N -H 'Content-Type: application/json' $url/smollm2/invocations -d '{"messages": [{"role": "user", "content": "Name three rivers."}], "max_tokens": 60, "stream": true}'
  $tessera chat smollm2 --home '$home'

Ctrl-C stops the server.
TEXT
}

running() {
    [ -n "${server:-}" ] && kill -0 "$server" 2>/dev/null
}

# Asks the server to drain, and waits for it, however this script ends.
stop() {
    if running; then
        kill -TERM "$server" 2>/dev/null || true
        while running; do wait "$server" 2>/dev/null || true; done
    fi
    if [ -n "${stopping:-}" ]; then exit 0; fi
}

fail() {
    echo "make run: $*" >&2
    exit 1
}

main "$@"
