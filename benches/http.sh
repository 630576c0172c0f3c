#!/usr/bin/env bash
# Requests per second and latency of the iris endpoint at 1, 16 and 64 connections.
#
# usage: http.sh [FLAG OF serve]...
#
# Measured: `wrk` (one thread) on loopback, keep-alive, HTTP/1.1, one row per request, release build, defaults of `serve`;
#   so JSON, a fresh instance and an inference per request, with the load generator on the same cores.
# Units: requests per second; microseconds; errors are requests that failed or did not answer 200.
# Left out: TLS, start-up, warm-up (WARM_UP_S at 64 connections), any other endpoint.
# Every figure is the median over ROUNDS; the levels take turns, so that a noisy minute touches all of them.
set -euo pipefail
cd "$(dirname "$0")/.."

ROUNDS=${ROUNDS:-5}
SECONDS_PER_RUN=${SECONDS_PER_RUN:-5}
WARM_UP_S=2
LEVELS="1 16 64"

# shellcheck source=benches/server.sh
. benches/server.sh
describe_machine
start_server "$@"
client model push "$iris" --name main.default.iris >/dev/null
client endpoint create iris --model main.default.iris --version 1 --wait >/dev/null

export TOKEN=$token
export BODY=$one_flower

# load CONNECTIONS SECONDS: one run, as the JSON line of wrk.lua.
load() {
    wrk --threads 1 --connections "$1" --duration "$2s" --latency --script benches/wrk.lua "$url/iris/invocations" |
        grep '^{'
}

load 64 "$WARM_UP_S" >/dev/null
runs=$home/runs
for ((round = 0; round < ROUNDS; round++)); do
    for level in $LEVELS; do
        load "$level" "$SECONDS_PER_RUN" | sed "s/^{/{\"connections\": $level, /" >>"$runs"
    done
done

# figure CONNECTIONS KEY: the values of one key over all rounds.
figure() {
    sed -n "s/^{\"connections\": $1,.*\"$2\": \([0-9]*\).*/\1/p" "$runs"
}

out=$results/http.json
: >"$out"
printf '%12s %12s %10s %10s %8s\n' connections requests/s p50_us p99_us errors
for level in $LEVELS; do
    rate=$(figure "$level" requests_per_s | median)
    p50=$(figure "$level" p50_us | median)
    p99=$(figure "$level" p99_us | median)
    errors=$(figure "$level" errors | awk '{ sum += $1 } END { print sum }')
    printf '%12s %12s %10s %10s %8s\n' "$level" "$rate" "$p50" "$p99" "$errors"
    echo "{\"connections\": $level, \"requests_per_s\": $rate, \"p50_us\": $p50, \"p99_us\": $p99, \"errors\": $errors}" >>"$out"
done
echo "written as JSON lines to $out"
