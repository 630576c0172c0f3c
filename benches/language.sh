#!/usr/bin/env bash
# Language models: the `smollm2` endpoint beside llama.cpp's own server, in one run.
#
# usage: language.sh [FLAG OF serve]...
#
# Measured: OpenAI's streamed completions, PROMPT_TOKENS tokens of prompt and TOKENS of answer (greedy, the end not allowed, so
#   that every answer is as long), at 1, 4 and 16 requests at a time, with both prompt caches off,
#     llama.cpp  its server, from PyPI's xllamacpp
#     tessera    the endpoint: request, prompt and answer pass a fresh sandbox
#   with the same file, THREADS threads and SEQUENCES sequences each, by language.py on loopback, on the same cores.
# Units: tokens of answers per second, all requests together; milliseconds from a request to the first text of its answer
#   (median, and the worst of 20); ratio is tokens per second over llama.cpp's in the same round.
# Then an answer of one token to a prompt of a few: its latency at one request at a time, and the difference of the medians,
#   which is what the sandbox, the checks and the accounting cost a request beside llama.cpp's server.
# With TARGET=gpu the model is on a GPU, for which a server needs llama.cpp's `libggml-cuda.so` (README.md), and nothing stands
#   beside it, since PyPI's server has none: TARGET=gpu SEQUENCES=64 LEVELS="1 8 32 64" TOKENS=128 benches/language.sh
# Left out: long contexts, prompts that share a beginning, grammars, warm-up.
# Every figure is the median over ROUNDS. The servers take turns.
set -euo pipefail
cd "$(dirname "$0")/.."

ROUNDS=${ROUNDS:-3}
LEVELS=${LEVELS:-1 4 16}
THREADS=${THREADS:-1}
TOKENS=${TOKENS:-32}
SEQUENCES=${SEQUENCES:-16}
TARGET=${TARGET:-cpu}
PROMPT_TOKENS=${PROMPT_TOKENS:-64}

# shellcheck source=benches/server.sh
. benches/server.sh
python=${TESSERA_PYTHON:-$cache/python/bin/python}
describe_machine
need "$models/smollm2/model.gguf" "make bench"
need "$python" "make bench"

names=tessera compared=()
if [ "$TARGET" = cpu ]; then
    names="llama.cpp tessera"
    rm -f "$scratch/address"
    "$python" benches/language.py peer "$models/smollm2/model.gguf" "$THREADS" "$SEQUENCES" >"$scratch/address" \
        2>>"$results/server.log" &
    await_address "$scratch/address"
    name_server llama.cpp "http://$(cat "$scratch/address")/v1"
    compared=(--compare server=llama.cpp)
fi

package=$scratch/smollm2
mkdir "$package"
cp "$models/smollm2/model.gguf" "$package/"
cat >"$package/tessera.toml" <<TOML
component = "stock:chat"
[graphs.model]
file = "model.gguf"
target = "$TARGET"
sequences = $SEQUENCES
context_tokens = 512
cache_tokens = $((512 * SEQUENCES))
intra_op_threads = $THREADS
TOML
start_server "$@"
deploy "$package" smollm2
name_server tessera "http://$(cat "$home/address")/v1"

# run NAME CONCURRENCY REQUESTS PROMPT_TOKENS TOKENS: a line of JSON.
run() {
    TOKEN=${token_of[$1]} "$python" benches/language.py load "${url_of[$1]}" smollm2 "${@:2}"
}

for name in $names; do run "$name" 4 4 "$PROMPT_TOKENS" "$TOKENS" >/dev/null; done
for ((round = 0; round < ROUNDS; round++)); do
    for level in $LEVELS; do
        for name in $names; do
            line=$(run "$name" "$level" $((level < 4 ? 4 : level * 2)) "$PROMPT_TOKENS" "$TOKENS")
            echo "{\"round\": $round, \"server\": \"$name\", ${line#\{}" >>"$runs"
        done
    done
done
figures language --by concurrency server "${compared[@]}" --median tokens_per_s first_p50_ms first_p95_ms

short=$scratch/short
for ((round = 0; round < ROUNDS; round++)); do
    for name in $names; do
        line=$(run "$name" 1 50 8 1)
        echo "{\"round\": $round, \"server\": \"$name\", ${line#\{}" >>"$short"
    done
done
runs=$short
figures language-short --by server --median whole_p50_ms first_p50_ms
