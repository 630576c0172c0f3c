#!/usr/bin/env bash
# Installs the clients of the Open Inference Protocol into $TESSERA_CACHE/open-inference, once for each version of their
# list. Apart from `guest-examples/setup.sh`, so that a new client of one protocol installs nothing else again.
#
# Run by `make test`, after `make setup`, which installs uv.
set -euo pipefail
cd "$(dirname "$0")/../.."

PATH="$TESSERA_CACHE/uv/bin:$PATH"
list=tests/python/open-inference.txt
venv=$TESSERA_CACHE/open-inference
stamp=$TESSERA_CACHE/stamps/open-inference

# Two checkouts may share the cache.
exec 9>"$TESSERA_CACHE/lock"
flock 9
key=$(sha256sum "$list" | cut -d ' ' -f 1)
if [ -x "$venv/bin/python" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$key" ]; then exit; fi
echo "setup: open-inference"
rm -rf "$venv" "$stamp"
uv venv --quiet --python '>=3.11,<3.14' "$venv"
uv pip install --quiet --python "$venv/bin/python" --requirement "$list"
echo "$key" >"$stamp"
