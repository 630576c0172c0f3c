# shellcheck shell=bash disable=SC2034 # what looks unused is for the scripts that source this
# Sourced by the benches: a server of their own on a free port, with an empty home, gone when the script ends.

cache=${TESSERA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tessera}
target=${CARGO_TARGET_DIR:-$PWD/target}
tessera=${TESSERA_BIN:-$target/release/tessera}
iris=${TESSERA_MODELS:-$cache/models}/iris
results=$target/benches
home=$(mktemp -d)
# The same body for every figure: one row, one answer.
flower='"columns": ["sepal_length", "sepal_width", "petal_length", "petal_width"], "data": [[5.1, 3.5, 1.4, 0.2]]'
one_flower="{\"dataframe_split\": {$flower}}"
mkdir -p "$results"
trap stop_server EXIT
trap 'exit 130' INT TERM

# start_server FLAG...: sets `server` (process id), `url` and `token`.
start_server() {
    "$tessera" serve --home "$home" --listen 127.0.0.1:0 "$@" >"$results/server.log" 2>&1 &
    server=$!
    for _ in $(seq 600); do # at most 30 s
        if [ -s "$home/address" ] || ! kill -0 "$server" 2>/dev/null; then break; fi
        sleep 0.05
    done
    if ! [ -s "$home/address" ]; then
        echo "the server did not start: see $results/server.log" >&2
        exit 1
    fi
    url=http://$(cat "$home/address")/serving-endpoints
    token=$(cat "$home/admin.token")
}

stop_server() {
    if [ -n "${server:-}" ]; then
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" || true
    fi
    rm -rf "$home"
}

client() {
    "$tessera" "$@" --home "$home"
}

# What was measured on: a figure without it says nothing.
describe_machine() {
    local cpu
    cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
    echo "$(nproc) cores, ${cpu:-unknown processor}, load $(cut -d ' ' -f 1 /proc/loadavg) at the start"
}

# median: the middle one of the numbers on standard input.
median() {
    sort -g | awk '{ number[NR] = $1 } END { print number[int((NR + 1) / 2)] }'
}
