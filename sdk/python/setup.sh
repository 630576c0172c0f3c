#!/usr/bin/env bash
# Installs the Python package and what its tests need -> $TESSERA_CACHE/python-sdk. A second call does nothing, as long as
# the pinned requirements are what they were; the package itself is installed in place, so that its code may change.
#
# usage: setup.sh [torch]
#   torch  also PyTorch, transformers and sentence-transformers, 6 GB, whose tests are skipped otherwise
set -euo pipefail

cd "$(dirname "$0")/../.."
cache=${TESSERA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/tessera}
python=$cache/python-sdk/bin/python
mkdir -p "$cache/stamps"
exec 9>"$cache/lock"
flock 9

# The checkout is part of it: the package is found where it was installed from.
key=$({ pwd && cat sdk/python/setup.sh sdk/python/pyproject.toml sdk/python/tests/requirements.txt; } | sha256sum | cut -d ' ' -f 1)
export UV_PYTHON_DOWNLOADS=never
# guest-examples/setup.sh puts uv there, where the machine has none.
PATH="$PATH:$cache/uv/bin"
if [ ! -x "$python" ] || [ "$(cat "$cache/stamps/python-sdk" 2>/dev/null)" != "$key" ]; then
    echo "setup: python-sdk"
    rm -rf "$cache/stamps/python-sdk" "$cache/python-sdk"
    uv venv --quiet --python '>=3.11' "$cache/python-sdk"
    uv pip install --quiet --python "$python" --requirement sdk/python/tests/requirements.txt
    uv pip install --quiet --python "$python" --no-deps --editable sdk/python
    echo "$key" >"$cache/stamps/python-sdk"
fi
if [ "${1:-}" = torch ]; then
    echo "setup: python-sdk with torch"
    uv pip install --quiet --python "$python" --requirement sdk/python/tests/requirements-torch.txt
fi
