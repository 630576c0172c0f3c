#!/usr/bin/env bash
# What batching brings and costs: the same endpoints with it, as `serve` does by default, and without.
#
# usage: batching.sh [FLAG OF serve]...
#
# Measured: two servers, the second with --batch-rows-max 1, one row or sentence per request, at 1, 16 and 64 connections,
#   for tiny (iris), mlpbig (128-2048-2048-2048-10, a millisecond) and minilm (sentences of 2 to 30 words, in turn),
#   by `wrk` (one thread) on loopback, keep-alive, HTTP/1.1, with the load generator on the same cores.
# Units: requests per second; microseconds; processor time of the server (user and kernel, all threads) in microseconds
#   per request; errors are requests that failed, or were answered 400 or above; ratio is requests per second over those
#   without batching in the same round.
# Left out: requests of several rows, several endpoints at a time, requests at a constant rate, warm-up.
# Every figure is the median over ROUNDS (errors: the sum). The servers take turns.
set -euo pipefail
cd "$(dirname "$0")/.."

ROUNDS=${ROUNDS:-3}
SECONDS_PER_RUN=${SECONDS_PER_RUN:-3}
LEVELS=${LEVELS:-1 16 64}
MODELS=${MODELS:-tiny mlpbig minilm}

# shellcheck source=benches/server.sh
. benches/server.sh
declare -A package=([tiny]=$iris [mlpbig]=$bench_models/mlpbig [minilm]=$minilm)
declare -A bodies=([tiny]=$flowers [mlpbig]=$bench_models/mlpbig/example.json [minilm]=$sentences)
describe_machine
need "$onnxruntime" "make bench"

# start_with_endpoints BATCHING FLAG OF serve...: a server and its endpoints.
start_with_endpoints() {
    local batching=$1 model
    home=$scratch/home-$batching
    start_server --onnxruntime "$onnxruntime" "${@:2}"
    for model in $MODELS; do
        deploy "${package[$model]}" "$model"
        name_server "$model $batching" "$url/$model/invocations"
        load "$model $batching" "${bodies[$model]}" 16 1 >/dev/null # warm-up
    done
}

start_with_endpoints off --batch-rows-max 1 "$@"
start_with_endpoints on "$@"
for ((round = 0; round < ROUNDS; round++)); do
    for model in $MODELS; do
        for level in $LEVELS; do
            for batching in off on; do
                measure "\"round\": $round, \"model\": \"$model\", \"batching\": \"$batching\"" "$model $batching" \
                    "${bodies[$model]}" "$level" "$SECONDS_PER_RUN"
            done
        done
    done
done
figures batching --by model connections batching --compare batching=off \
    --median requests_per_s p50_us p99_us cpu_us_per_request --sum errors
