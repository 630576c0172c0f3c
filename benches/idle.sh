#!/usr/bin/env bash
# What an endpoint that nobody calls costs: memory while it is idle, and time to its first answer.
#
# Measured, release build, on loopback:
#   1. first answer: from connecting to the last byte, by `curl`, after the endpoint has lost its instance template and
#      its graph (--component-idle-ms, --graph-idle-ms); beside it the same call while everything is in memory.
#      Median and worst of SAMPLES.
#   2. memory of the server with 0, 1 and MANY deployed endpoints, all scaled to zero: resident (VmRSS) and the part of
#      it that is no file's page (RssAnon).
# Units: milliseconds; mebibytes.
# Left out: reading the artifacts from a cold disk (the page cache is warm), the load of large graphs.
set -euo pipefail
cd "$(dirname "$0")/.."

SAMPLES=${SAMPLES:-20}
MANY=${MANY:-100}
IDLE_MS=500
# Twice the idle time and a sweep of the ladder: nothing of the endpoint is left in memory then.
SCALED_TO_ZERO_S=2

# shellcheck source=benches/server.sh
. benches/server.sh
describe_machine
start_server --component-idle-ms "$IDLE_MS" --graph-idle-ms "$IDLE_MS"

# call_ms: one call of the iris endpoint, in milliseconds; fails unless it is answered with 200.
call_ms() {
    curl --fail --silent --show-error --output /dev/null --write-out '%{time_total}\n' --data "$one_flower" \
        --header "Authorization: Bearer $token" --header 'Content-Type: application/json' "$url/iris-1/invocations" |
        awk '{ printf "%.2f\n", $1 * 1000 }'
}

# memory_mib KEY: a line of the server's /proc status.
memory_mib() {
    awk -v key="$1:" '$1 == key { printf "%.1f", $2 / 1024 }' "/proc/$server/status"
}

report_memory() {
    sleep "$SCALED_TO_ZERO_S"
    resident=$(memory_mib VmRSS) anonymous=$(memory_mib RssAnon)
    printf '%10s %14s %14s\n' "$1" "$resident" "$anonymous"
    echo "{\"endpoints\": $1, \"resident_mib\": $resident, \"anonymous_mib\": $anonymous}" >>"$out"
}

create() {
    client endpoint create "iris-$1" --model main.default.iris --version 1 --wait >/dev/null
}

out=$results/idle.json
: >"$out"
printf '%10s %14s %14s\n' endpoints resident_MiB anonymous_MiB
report_memory 0
client model push "$iris" --name main.default.iris >/dev/null
create 1
report_memory 1

for ((sample = 0; sample < SAMPLES; sample++)); do
    sleep "$SCALED_TO_ZERO_S"
    call_ms >>"$home/cold"
    call_ms >>"$home/warm"
done

for ((endpoint = 2; endpoint <= MANY; endpoint++)); do create "$endpoint"; done
report_memory "$MANY"

printf '%10s %14s %14s\n' call median_ms worst_ms
for kind in cold warm; do
    middle=$(median <"$home/$kind") worst=$(sort -g "$home/$kind" | tail -n 1)
    printf '%10s %14s %14s\n' "$kind" "$middle" "$worst"
    echo "{\"call\": \"$kind\", \"median_ms\": $middle, \"worst_ms\": $worst}" >>"$out"
done
echo "written as JSON lines to $out"
