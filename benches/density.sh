#!/usr/bin/env bash
# What thousands of endpoints cost that are deployed and idle: memory, restart, list, metrics, first answer.
#
# usage: density.sh [FLAG OF serve]...
#
# Measured, release build, on loopback, with ENDPOINTS endpoints of MODELS registered models with one version each:
#   1. deploy: from the first request until the last endpoint is ready, created by 16 connections.
#   2. memory per endpoint: RssAnon, which is no file's page, and VmRSS, which is all, less the same of another server,
#      divided by ENDPOINTS. After a restart and after a list: less that of an empty server. When all have been deployed,
#      and when CALLED of them have been called: less that of a server with one endpoint, which was called CALLED times;
#      so without what the calls themselves leave (libraries, the pool of instances). All endpoints are asleep each time.
#      Then CALLED others are called: what memory grows by now, divided by CALLED, is what each endpoint that was ever
#      called keeps; what the first CALLED left beyond that is left once.
#   3. restart: from starting the process until it says that it is ready.
#   4. list and metrics: from connecting to the last byte; size of the answer.
#   5. first answer of SAMPLES random endpoints, each 200: from connecting to the last byte.
# Units: bytes per endpoint; seconds; milliseconds.
# Left out: a cold disk (the page cache is warm); memory that the kernel uses for the files.
set -euo pipefail
cd "$(dirname "$0")/.."

ENDPOINTS=${ENDPOINTS:-10000}
MODELS=${MODELS:-1}
CALLED=${CALLED:-1000}
SAMPLES=${SAMPLES:-50}
IDLE_MS=2000
# Long after the idle time: all are asleep then, the look for leftovers that follows a start has ended, and so have the threads
# that read records, whose memory is given back 12 s after the last endpoint went to sleep.
ASLEEP_S=20
CONNECTIONS=16

# shellcheck source=benches/server.sh
. benches/server.sh
describe_machine
out=$results/density-$MODELS.json
: >"$out"
# All in one workspace, which usually may have 1,000.
flags=(--component-idle-ms "$IDLE_MS" --graph-idle-ms "$IDLE_MS" --workspace-endpoints-max "$ENDPOINTS" "$@")

# memory KEY: a line of the server's /proc status, in KiB.
memory() {
    awk -v key="$1:" '$1 == key { print $2 }' "/proc/$server/status"
}

report() {
    printf '%-44s %14s\n' "$1" "$2"
    echo "{\"endpoints\": $ENDPOINTS, \"models\": $MODELS, \"figure\": \"$1\", \"value\": $2}" >>"$out"
}

# baseline: what later figures are compared with.
baseline() {
    sleep "$ASLEEP_S"
    anonymous=$(memory RssAnon) resident=$(memory VmRSS)
}

# report_memory WHEN: bytes per endpoint over the baseline.
report_memory() {
    sleep "$ASLEEP_S"
    report "RssAnon bytes per endpoint, $1" $((($(memory RssAnon) - anonymous) * 1024 / ENDPOINTS))
    report "VmRSS bytes per endpoint, $1" $((($(memory VmRSS) - resident) * 1024 / ENDPOINTS))
}

# now: seconds.
now() {
    date +%s.%N
}

# since START: seconds.
since() {
    awk -v start="$1" -v end="$(now)" 'BEGIN { printf "%.2f", end - start }'
}

# send_all: requests of a curl config on standard input, over CONNECTIONS connections; fails unless all are answered
# with less than 400.
send_all() {
    curl --parallel --parallel-max "$CONNECTIONS" --no-progress-meter --fail-early --config -
}

# each FROM TO TEMPLATE: a curl config with a request per number, which stands where the template has @; % is the number
# of its model.
each() {
    # Not by -v, which takes backslashes away.
    template=$3 awk -v from="$1" -v to="$2" -v models="$MODELS" -v token="$token" 'BEGIN {
        for (number = from; number <= to; number++) {
            request = ENVIRON["template"]
            gsub("@", number, request)
            gsub("%", (number - 1) % models + 1, request)
            if (number > from) print "next"
            print request
            printf "fail\noutput = \"/dev/null\"\nheader = \"Authorization: Bearer %s\"\n", token
        }
    }'
}

# The models are one in all but a text file, so each has a package of its own, and the compiled component is shared.
push_models() {
    local registry=$api/mlflow/unity-catalog json='header = "Content-Type: application/json"' file
    each 1 "$MODELS" "url = \"$registry/registered-models/create\"
$json
data = \"{\\\"name\\\": \\\"main.default.iris@\\\"}\"" | send_all
    each 1 "$MODELS" "url = \"$registry/model-versions/create\"
$json
data = \"{\\\"name\\\": \\\"main.default.iris@\\\"}\"" | send_all
    for file in MLmodel model.onnx serving_input_example.json; do
        each 1 "$MODELS" "url = \"$api/fs/files/Models/main/default/iris@/1/$file?overwrite=true\"
upload-file = \"$iris/$file\"" | send_all
    done
    each 1 "$MODELS" "url = \"$api/fs/files/Models/main/default/iris@/1/requirements.txt?overwrite=true\"
request = PUT
data = \"model @\"" | send_all
    each 1 "$MODELS" "url = \"$registry/model-versions/finalize\"
$json
data = \"{\\\"name\\\": \\\"main.default.iris@\\\", \\\"version\\\": \\\"1\\\"}\"" | send_all
}

create_endpoints() {
    each "$1" "$2" 'url = "'"$api"'/serving-endpoints"
header = "Content-Type: application/json"
data = "{\"name\": \"iris-@\", \"config\": {\"served_entities\": [{\"entity_name\": \"main.default.iris%\", \"entity_version\": \"1\"}]}}"' |
        send_all
}

# all_ready COUNT: nothing is left to deploy. Ends the bench if something failed.
all_ready() {
    local list
    list=$(curl --fail --silent --header "Authorization: Bearer $token" "$api/serving-endpoints")
    if [[ $list == *UPDATE_FAILED* ]]; then
        echo "an endpoint could not be deployed: see $results/server.log" >&2
        exit 1
    fi
    [ "$(grep -o '"ready":"READY","config_update":"NOT_UPDATING"' <<<"$list" | wc -l)" = "$1" ]
}

# fetch URL: seconds and bytes.
fetch() {
    curl --fail --silent --show-error --output /dev/null --write-out '%{time_total} %{size_download}\n' \
        --header "Authorization: Bearer $token" "$1"
}

# call NAME [FROM]: CALLED calls; the endpoint is NAME, in which @ is the number of the call, from FROM on (1).
call() {
    local escaped=${one_flower//\"/\\\"} from=${2:-1}
    each "$from" "$((from + CALLED - 1))" 'url = "'"$url/$1"'/invocations"
header = "Content-Type: application/json"
data = "'"$escaped"'"' | send_all
}

# first_answer_ms NUMBER
first_answer_ms() {
    curl --fail --silent --show-error --output /dev/null --write-out '%{time_total}\n' --data "$one_flower" \
        --header "Authorization: Bearer $token" --header 'Content-Type: application/json' "$url/iris-$1/invocations" |
        awk '{ printf "%.2f\n", $1 * 1000 }'
}

start() {
    start_server "${flags[@]}"
    api=${url%/serving-endpoints}/api/2.0
}

stop() {
    kill -TERM "$server"
    wait "$server"
}

start
baseline
empty_anonymous=$anonymous empty_resident=$resident
push_models
create_endpoints 1 1
until all_ready 1; do sleep 0.1; done
call iris-1
baseline

begun=$(now)
create_endpoints 2 "$ENDPOINTS"
until all_ready "$ENDPOINTS"; do sleep 1; done
report 'deploy, s' "$(since "$begun")"
report_memory 'deployed'
called_anonymous=$anonymous called_resident=$resident

stop
begun=$(now)
start
fetch "${url%/serving-endpoints}/ready" >/dev/null
report 'restart, s' "$(since "$begun")"
anonymous=$empty_anonymous resident=$empty_resident
report_memory 'restarted'

read -r seconds bytes < <(fetch "$api/serving-endpoints")
report 'list, s' "$seconds"
report 'list, bytes' "$bytes"
report_memory 'listed'

for number in $(shuf --input-range="1-$ENDPOINTS" --head-count="$SAMPLES"); do first_answer_ms "$number"; done >"$home/first"
report 'first answer, median ms' "$(median <"$home/first")"
report 'first answer, worst ms' "$(sort -g "$home/first" | tail -n 1)"

call 'iris-@'
read -r seconds bytes < <(fetch "${url%/serving-endpoints}/metrics")
report 'metrics, s' "$seconds"
report 'metrics, bytes' "$bytes"
anonymous=$called_anonymous resident=$called_resident
report_memory "$CALLED called"
called=$(memory RssAnon)
call 'iris-@' "$((CALLED + 1))"
sleep "$ASLEEP_S"
report 'RssAnon bytes per further endpoint called' $((($(memory RssAnon) - called) * 1024 / CALLED))
echo "written as JSON lines to $out"
