# shellcheck shell=bash disable=SC2034 # what looks unused is for the scripts that source this
# Sourced by the benches: servers of their own on free ports with empty homes, runs of load, their figures. All servers
# and homes are gone when the script ends.

cache=${TESSERA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tessera}
target=${CARGO_TARGET_DIR:-$PWD/target}
tessera=${TESSERA_BIN:-$target/dist/tessera}
# Not TESSERA_…: the server refuses variables of that kind that it does not know.
bare=${BARE_BIN:-$target/dist/tessera-bare}
# One library for the server and the baselines.
onnxruntime=${TESSERA_ONNXRUNTIME:-$cache/onnxruntime/libonnxruntime.so}
models=${TESSERA_MODELS:-$cache/models}
iris=$models/iris
minilm=$models/minilm
bench_models=$cache/bench-models
results=$target/benches
scratch=$(mktemp -d)
# Of the next server that is started: a script with several sets another before each.
home=$scratch/home
# The same body for every figure: one row, one answer.
flower='"columns": ["sepal_length", "sepal_width", "petal_length", "petal_width"], "data": [[5.1, 3.5, 1.4, 0.2]]'
one_flower="{\"dataframe_split\": {$flower}}"
# Bodies of a run of load, one a line, sent in turn.
flowers=$scratch/flowers
sentences=$PWD/benches/sentences.jsonl
runs=$scratch/runs
ticks_per_s=$(getconf CLK_TCK)
mkdir -p "$results"
: >"$results/server.log"
echo "$one_flower" >"$flowers"
trap stop_servers EXIT
trap 'exit 130' INT TERM

# start_server FLAG...: sets `server` (process id), `url` and `token`.
start_server() {
    need "$tessera" "cargo build --profile dist -p tessera"
    mkdir -p "$home"
    # On a busy machine a deploy may take long; how long is not measured here.
    TESSERA_COMPILE_TIMEOUT_MS=600000 "$tessera" serve --home "$home" --listen 127.0.0.1:0 "$@" \
        >>"$results/server.log" 2>&1 &
    await_address "$home/address"
    url=http://$(cat "$home/address")/serving-endpoints
    token=$(cat "$home/admin.token")
}

# start_bare ARGUMENT...: a baseline of benches/bare; sets `server` and `url`.
start_bare() {
    need "$bare" "cargo build --profile dist -p tessera-bare"
    rm -f "$scratch/address"
    "$bare" "$@" >"$scratch/address" 2>>"$results/server.log" &
    await_address "$scratch/address"
    url=http://$(cat "$scratch/address")
}

# await_address FILE: until the process just started has written where it listens; sets `server`.
await_address() {
    server=$!
    for _ in $(seq 600); do # at most 30 s
        if [ -s "$1" ]; then return; fi
        kill -0 "$server" 2>/dev/null || break
        sleep 0.05
    done
    tail -n 5 "$results/server.log" >&2
    fail "the server did not start: see above and $results/server.log"
}

stop_servers() {
    local running
    # The shell's own list: the number of a process that has ended may belong to another program by now.
    mapfile -t running < <(jobs -p)
    if [ "${#running[@]}" != 0 ]; then
        kill -TERM "${running[@]}" 2>/dev/null || true
        wait "${running[@]}" 2>/dev/null || true
    fi
    rm -rf "$scratch"
}

# client COMMAND...: the command line, at the server started last.
client() {
    "$tessera" "$@" --home "$home"
}

# deploy PACKAGE ENDPOINT: at the server started last; returns when it serves.
deploy() {
    need "$1" "make bench"
    client model push "$1" --name "main.default.$2" >/dev/null
    client endpoint create "$2" --model "main.default.$2" --version 1 --wait >/dev/null
}

# need FILE HOW: refuses to go on without what HOW makes.
need() {
    [ -e "$1" ] || fail "$1 is missing: '$2' makes it"
}

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
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

# What can be put under load, by a name of the script's choice: `name_server NAME URL` is for the server started last.
declare -A pid_of url_of token_of
name_server() {
    pid_of[$1]=$server
    url_of[$1]=$2
    token_of[$1]=${token:-}
}

# load NAME BODIES CONNECTIONS SECONDS: one run of wrk, one thread, as a line of JSON. Requests are POSTs of the lines of
# the file BODIES in turn, or GETs where it is empty. `cpu_ms` is what the server took meanwhile, in user and kernel,
# all threads, in steps of 10 ms.
load() {
    local before after line
    before=$(cpu_ticks "${pid_of[$1]}")
    line=$(TOKEN=${token_of[$1]} BODIES=$2 wrk --threads 1 --connections "$3" --duration "$4s" --timeout 10s --latency \
        --script benches/wrk.lua "${url_of[$1]}" | grep '^{')
    after=$(cpu_ticks "${pid_of[$1]}")
    echo "{\"cpu_ms\": $(((after - before) * 1000 / ticks_per_s)), ${line#\{}"
}

# Ticks in user and kernel. The name in parentheses may hold spaces, so fields count from behind it.
cpu_ticks() {
    sed 's/^.*) //' "/proc/$1/stat" | awk '{ print $12 + $13 }'
}

# measure LABELS NAME BODIES CONNECTIONS SECONDS: a run of load, noted in `runs` with LABELS, which are members of JSON.
measure() {
    local line
    line=$(load "${@:2}")
    echo "{$1, \"connections\": $4, ${line#\{}" >>"$runs"
}

# same_answer NAME OTHER BODIES: fails unless both answer the first of BODIES alike: a baseline must do the same work.
same_answer() {
    local name
    for name in "$1" "$2"; do
        head -n 1 "$3" | curl --fail --silent --show-error --header "Authorization: Bearer ${token_of[$name]}" \
            --header 'Content-Type: application/json' --data-binary @- "${url_of[$name]}" >"$scratch/answer.$name"
    done
    python3 benches/figures.py same "$scratch/answer.$1" "$scratch/answer.$2" || fail "'$1' and '$2' answer differently"
}

# figures NAME ARGUMENT...: the table of `runs`, also written as lines of JSON; the arguments are those of figures.py.
figures() {
    python3 benches/figures.py table "$runs" "$results/$1.json" "${@:2}"
    echo "written as JSON lines to $results/$1.json"
}
