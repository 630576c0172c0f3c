#!/usr/bin/env bash
# How much of the machine is left of it: requests per second, latency and processor time, from bare hyper to Tessera.
#
# usage: ladder.sh [FLAG OF serve]...
#
# Measured: for three models, one row per request and JSON both ways, at 1, 16, 64 and 256 connections,
#     hyper      bare hyper, a fixed answer to a GET: what HTTP alone costs (once, with the tiny model)
#     bare+ort   hyper and ONNX Runtime, computed on the event loop: what a server without Tessera would do at best
#     tessera    the endpoint: token, fresh instance, sandboxed parsing, batching, as `serve` does by default
#   with the models
#     tiny       iris, four features: the computation is a few microseconds, so all else shows
#     mlp        128-256-256-10: ten microseconds
#     mlpbig     128-2048-2048-2048-10: a millisecond, so the computation and its batching show
#   by `wrk` (one thread) on loopback, keep-alive, HTTP/1.1, with the load generator on the same cores.
# Units: requests per second; microseconds; processor time of the server (user and kernel, all threads) in microseconds
#   per request; errors are requests that failed, or were answered 400 or above; ratio is requests per second over those
#   of bare+ort in the same round.
# Left out: TLS, HTTP/2, requests at a constant rate, several endpoints at a time, start-up, warm-up.
# Every figure is the median over ROUNDS (errors: the sum). The servers take turns within seconds of each other, so
# that a noisy minute touches all of them: trust the ratios, compare other figures only within one run.
set -euo pipefail
cd "$(dirname "$0")/.."

ROUNDS=${ROUNDS:-3}
SECONDS_PER_RUN=${SECONDS_PER_RUN:-3}
LEVELS=${LEVELS:-1 16 64 256}
MODELS=${MODELS:-tiny mlp mlpbig}

# shellcheck source=benches/server.sh
. benches/server.sh
declare -A package=([tiny]=$iris [mlp]=$bench_models/mlp [mlpbig]=$bench_models/mlpbig)
declare -A bodies=([tiny]=$flowers [mlp]=$bench_models/mlp/example.json [mlpbig]=$bench_models/mlpbig/example.json)
describe_machine
need "$onnxruntime" "make bench"

start_bare hyper
name_server "tiny hyper" "$url"
for model in $MODELS; do
    need "${package[$model]}" "make bench"
    start_bare onnx "$onnxruntime" "${package[$model]}/model.onnx"
    name_server "$model bare+ort" "$url"
done
start_server --onnxruntime "$onnxruntime" "$@"
for model in $MODELS; do
    deploy "${package[$model]}" "$model"
    name_server "$model tessera" "$url/$model/invocations"
    same_answer "$model bare+ort" "$model tessera" "${bodies[$model]}"
done

# turns WHAT...: calls `WHAT MODEL SERVER BODIES` for each server of each model.
turns() {
    local model kind body
    for model in $MODELS; do
        for kind in hyper bare+ort tessera; do
            if [ -z "${pid_of[$model $kind]:-}" ]; then continue; fi
            body=${bodies[$model]}
            if [ "$kind" = hyper ]; then body=; fi
            "$@" "$model" "$kind" "$body"
        done
    done
}

warm_up() {
    load "$1 $2" "$3" 16 1 >/dev/null
}

# run_once ROUND CONNECTIONS MODEL SERVER BODIES
run_once() {
    measure "\"round\": $1, \"model\": \"$3\", \"server\": \"$4\"" "$3 $4" "$5" "$2" "$SECONDS_PER_RUN"
}

turns warm_up
for ((round = 0; round < ROUNDS; round++)); do
    for level in $LEVELS; do
        turns run_once "$round" "$level"
    done
done
figures ladder --by model connections server --compare server=bare+ort \
    --median requests_per_s p50_us p99_us cpu_us_per_request --sum errors
