#!/usr/bin/env bash
# What a GPU does for MiniLM (22 M parameters, float32): the same answers as the CPU, and how many more.
#
# Needs an NVIDIA driver, `make build`, and wrk and curl (`guest-examples/setup.sh bench`); installs ONNX Runtime with CUDA
# (2.5 GB) and the model by itself. Run from anywhere in the checkout.
#
# Measured, release build, on loopback, both targets in one server:
#   1. agreement: largest difference between the two targets over the components of SENTENCES embeddings (unit vectors);
#      fails above TOLERANCE. The CUDA provider multiplies in TF32, which keeps 10 bits of each factor.
#   2. sentences per second by sentences per request (one connection), and by connections (one sentence per request), each
#      the figure of one wrk run of SECONDS_PER_RUN; beside it the GPU's utilisation as nvidia-smi samples it meanwhile.
# Units: sentences per second; per cent of the time that any kernel ran.
# Left out: longer sentences, half precision, several GPUs, the load of the graph.
set -euo pipefail
cd "$(dirname "$0")/.."

SENTENCES=${SENTENCES:-64}
TOLERANCE=${TOLERANCE:-0.005}
SECONDS_PER_RUN=${SECONDS_PER_RUN:-5}
WARM_UP_S=2
BATCHES="1 8 32 128"
CONNECTIONS="1 8 32 128"

guest-examples/setup.sh minilm gpu
# shellcheck source=benches/server.sh
. benches/server.sh
describe_machine
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
library=$cache/onnxruntime-gpu/libonnxruntime.so
"$tessera" doctor --onnxruntime "$library"
start_server --onnxruntime "$library"
export TOKEN=$token

# deploy TARGET: the model as the endpoint minilm-TARGET.
deploy() {
    local package=$home/package-$1
    cp -R "${TESSERA_MODELS:-$cache/models}/minilm" "$package"
    echo "target = \"$1\"" >>"$package/tessera.toml"
    client model push "$package" --name "main.default.minilm_$1" >/dev/null
    client endpoint create "minilm-$1" --model "main.default.minilm_$1" --version 1 --wait
}

# body COUNT: a request of so many different sentences.
body() {
    local sentences
    sentences=$(seq "$1" | sed 's/.*/"Sentence number & is about a river, a bridge and the people who cross it."/' | paste -sd , -)
    echo "{\"input\": [$sentences]}"
}

embeddings() {
    body "$SENTENCES" | curl --fail --silent --show-error --data @- --header "Authorization: Bearer $token" \
        --header 'Content-Type: application/json' "$url/minilm-$1/invocations"
}

compare() {
    embeddings cpu >"$home/cpu.json"
    embeddings gpu >"$home/gpu.json"
    python3 - "$home/cpu.json" "$home/gpu.json" "$TOLERANCE" <<'PYTHON'
import json, sys
cpu, gpu = ([row["embedding"] for row in json.load(open(path))["data"]] for path in sys.argv[1:3])
assert len(cpu) == len(gpu)
worst = max(abs(a - b) for one, other in zip(cpu, gpu) for a, b in zip(one, other, strict=True))
print(json.dumps({"sentences": len(cpu), "largest_difference": worst}))
sys.exit(0 if worst <= float(sys.argv[3]) else "the GPU's answers differ from the CPU's by more than the tolerance")
PYTHON
}

# measure TARGET CONNECTIONS BATCH: one run, as a JSON line.
measure() {
    local figures utilisation
    body "$3" >"$home/body.json"
    BODY=$(cat "$home/body.json") && export BODY
    load "$1" "$2" "$WARM_UP_S" >/dev/null
    nvidia-smi --query-gpu=utilization.gpu --format=csv,noheader,nounits --loop-ms=200 --id=0 >"$home/utilisation" &
    local sampler=$!
    figures=$(load "$1" "$2" "$SECONDS_PER_RUN")
    kill "$sampler"
    wait "$sampler" 2>/dev/null || true
    utilisation=$(median <"$home/utilisation")
    python3 - "$figures" "$1" "$2" "$3" "${utilisation:-0}" <<'PYTHON'
import json, sys
figures, target, connections, batch, utilisation = json.loads(sys.argv[1]), *sys.argv[2:]
rate = round(figures["requests_per_s"] * int(batch), 1)
print(json.dumps({"target": target, "connections": int(connections), "batch": int(batch), "sentences_per_s": rate,
                  **figures, "gpu_utilisation_percent": float(utilisation)}))
PYTHON
}

# load TARGET CONNECTIONS SECONDS: one run of wrk, as the JSON line of wrk.lua.
load() {
    wrk --threads 1 --connections "$2" --duration "$3s" --timeout 30s --latency --script benches/wrk.lua \
        "$url/minilm-$1/invocations" | grep '^{'
}

deploy cpu
deploy gpu
out=$results/gpu.json
: >"$out"
compare | tee -a "$out"
for processor in cpu gpu; do
    for batch in $BATCHES; do measure "$processor" 1 "$batch" | tee -a "$out"; done
    for connections in $CONNECTIONS; do measure "$processor" "$connections" 1 | tee -a "$out"; done
done
echo "written as JSON lines to $out"
