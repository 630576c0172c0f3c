#!/usr/bin/env bash
# How long the first answer of an endpoint takes that has left memory, and what it waits for.
#
# usage: cold.sh [FLAG OF serve]...
#
# Measured, release build, on loopback, for iris, minilm and smollm2: one call by `curl`, from connecting to the last byte; of
#   smollm2, a language model, an answer of one token to a short prompt, so the time to the first token;
#     warm       with everything in memory
#     cold       after the endpoint has lost its component and its graph (--component-idle-ms, --graph-idle-ms); their
#                files are still in the page cache
#     evicted    the same, with the files of the home dropped from the page cache too (posix_fadvise, no root needed)
#   and of it, as the server reports in x-tessera-cold-start,
#     component  mapping the compiled component
#     graphs     loading the graph into ONNX Runtime or llama.cpp; the rest is HTTP, the instance, the inference
# Units: milliseconds, median and worst of SAMPLES; read_mib is what the server read from the disk, in mebibytes: it
#   shows that `evicted` was, and `cold` was not.
# Left out: compiling (the compiled component is kept), starting the server, ONNX Runtime itself (loaded at the start),
#   disks behind a cache of the host.
set -euo pipefail
cd "$(dirname "$0")/.."

SAMPLES=${SAMPLES:-10}
MODELS=${MODELS:-iris minilm smollm2}
# Longer than the longest call, since it counts from a call's beginning.
IDLE_MS=2000
# The idle time, the check a quarter of it later, and time to give the memory back. A call that is too early is found out.
SCALED_TO_ZERO_S=3

# shellcheck source=benches/server.sh
. benches/server.sh
head -n 2 "$sentences" | tail -n 1 >"$scratch/sentence"
echo '{"prompt": "The sea is", "max_tokens": 1}' >"$scratch/prompt"
declare -A package=([iris]=$iris [minilm]=$minilm [smollm2]=$models/smollm2)
declare -A body=([iris]=$flowers [minilm]=$scratch/sentence [smollm2]=$scratch/prompt)
describe_machine
need "$onnxruntime" "make bench"
start_server --onnxruntime "$onnxruntime" --component-idle-ms "$IDLE_MS" --graph-idle-ms "$IDLE_MS" "$@"

# call MODEL KIND: one call, noted in `runs`.
call() {
    local total_s cold read_before read_after
    read_before=$(bytes_read)
    total_s=$(curl --fail --silent --show-error --output /dev/null --dump-header "$scratch/head" --write-out '%{time_total}' \
        --header "Authorization: Bearer $token" --header 'Content-Type: application/json' \
        --header 'x-tessera-want-cold-start: 1' --data-binary "@${body[$1]}" "$url/$1/invocations")
    read_after=$(bytes_read)
    cold=$(sed -n 's/^x-tessera-cold-start: \([^\r]*\).*/\1/ip' "$scratch/head")
    case $2:$cold in
        warm:rung=warm\;* | cold:rung=graph\;* | evicted:rung=graph\;*) ;;
        *) fail "a call that should have been $2 reports '$cold'" ;;
    esac
    echo "$cold" | sed 's/.*component_us=\([0-9]*\);graphs_us=\([0-9]*\).*/\1 \2/' |
        awk -v labels="\"model\": \"$1\", \"call\": \"$2\"" -v total_s="$total_s" -v read="$((read_after - read_before))" '{
            printf "{%s, \"total_ms\": %.3f, \"component_ms\": %.3f, \"graphs_ms\": %.3f, \"read_mib\": %.2f}\n",
                labels, total_s * 1000, $1 / 1000, $2 / 1000, read / 1048576 }' >>"$runs"
}

# Bytes that the server has had fetched from the disk, through read and through mapped pages.
bytes_read() {
    sed -n 's/^read_bytes: //p' "/proc/$server/io"
}

# evict: drops the home's files from the page cache. Only what is written and not mapped can be dropped.
evict() {
    python3 - "$home"/{blobs,artifacts,packages} <<'PYTHON'
import os, sys
for root in sys.argv[1:]:
    for folder, _, names in os.walk(root):
        for name in names:
            file = os.open(os.path.join(folder, name), os.O_RDONLY)
            os.fsync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)
PYTHON
}

for model in $MODELS; do
    deploy "${package[$model]}" "$model"
    for ((sample = 0; sample < SAMPLES; sample++)); do
        sleep "$SCALED_TO_ZERO_S"
        call "$model" cold
        call "$model" warm
        sleep "$SCALED_TO_ZERO_S"
        evict
        call "$model" evicted
    done
done
figures cold --by model call --median total_ms component_ms graphs_ms read_mib --worst total_ms
