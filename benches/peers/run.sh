#!/usr/bin/env bash
# Tessera and its peers, side by side: the same model, the same load, one after the other in one run.
#
# usage: run.sh
#   PEERS="tessera mlflow"   which ones, by name; default: all of them (`run.sh --list` names them)
#   ROUNDS=3                 every figure is the median of these; in each, all peers take a turn
#   SECONDS_PER_RUN=3        length of one measurement; there is one at each of 1, 16 and 64 connections
#
# Measured: what peers.py says on top. Written to the terminal as a table and as JSON lines to
#   $CARGO_TARGET_DIR/benches/peers.json.
# Needs $TESSERA_BIN, or a release build of this repository.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."

if [ "${1:-}" = --list ]; then exec python3 "$here/peers.py" --list; fi

guest-examples/setup.sh onnxruntime iris bench

# shellcheck source=benches/server.sh
. benches/server.sh
export PATH="$PATH:$cache/uv/bin" # where setup.sh puts uv when the machine has none

# A home with the endpoint in it, as the peers find their model on the disk. The harness starts the server on it again.
# shellcheck disable=SC2119 # no flags: the defaults are measured
start_server
client model push "$iris" --name main.default.iris >/dev/null
client endpoint create iris --model main.default.iris --version 1 --wait >/dev/null
kill -TERM "$server"
wait "$server"
server=

describe_machine
SERVER_BIN=$tessera SERVER_HOME=$home IRIS=$iris VENVS=$cache/peers TOKEN=$token BODY_FRAME=$one_flower \
    RESULTS=$results python3 "$here/peers.py"
