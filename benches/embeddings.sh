#!/usr/bin/env bash
# Sentence embeddings: the `minilm` endpoint beside a server that does the same without Tessera.
#
# usage: embeddings.sh [FLAG OF serve]...
#
# Measured: OpenAI's request with one English sentence (2 to 30 words, in turn: sentences.jsonl), JSON floats back, at 1, 4
#   and 16 connections,
#     bare       hyper, the `tokenizers` crate and ONNX Runtime, all on the event loops, one per core
#     tessera    the endpoint: the tokenizer runs in the sandbox, in a fresh instance for every request
#   by `wrk` (one thread) on loopback, keep-alive, HTTP/1.1, with the load generator on the same cores.
# Units: requests per second; microseconds; processor time of the server (user and kernel, all threads) in microseconds
#   per request; errors are requests that failed, or were answered 400 or above; ratio is requests per second over those
#   of bare in the same round.
# The kernel spreads connections over the loops of bare by chance: with few of them one loop may get all. Each run
#   connects anew, so ROUNDS evens it out.
# Left out: lists of texts, long texts, base64 answers, quantized models, warm-up. A p99 rests on SECONDS_PER_RUN times the
#   rate: at one connection on some hundred requests.
# Every figure is the median over ROUNDS (errors: the sum). The servers take turns.
set -euo pipefail
cd "$(dirname "$0")/.."

ROUNDS=${ROUNDS:-3}
SECONDS_PER_RUN=${SECONDS_PER_RUN:-5}
LEVELS=${LEVELS:-1 4 16}

# shellcheck source=benches/server.sh
. benches/server.sh
describe_machine
need "$onnxruntime" "make bench"
need "$minilm" "make bench"

start_bare embeddings "$onnxruntime" "$minilm"
name_server bare "$url"
start_server --onnxruntime "$onnxruntime" "$@"
deploy "$minilm" minilm
name_server tessera "$url/minilm/invocations"
same_answer bare tessera "$sentences"

for kind in bare tessera; do load "$kind" "$sentences" 4 1 >/dev/null; done
for ((round = 0; round < ROUNDS; round++)); do
    for level in $LEVELS; do
        for kind in bare tessera; do
            measure "\"round\": $round, \"server\": \"$kind\"" "$kind" "$sentences" "$level" "$SECONDS_PER_RUN"
        done
    done
done
figures embeddings --by connections server --compare server=bare \
    --median requests_per_s p50_us p99_us cpu_us_per_request --sum errors
