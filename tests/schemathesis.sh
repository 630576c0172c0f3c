#!/usr/bin/env bash
# Checks the server's OpenAPI document, then asks the server everything that it allows, and much that it does not: no answer
# may be a 5xx, or have a status, a media type or a form that the document does not say. A minute or two; by itself, because
# it installs clients of its own.
#
#   tests/schemathesis.sh [EXAMPLES]    examples per route, 8 by default; more find more
#
# Run by `make schema`, which installs uv; stops by itself, and its server with it.
set -euo pipefail
cd "$(dirname "$0")/.."

examples=${1:-8}
PATH="$TESSERA_CACHE/uv/bin:$PATH"
venv=$TESSERA_CACHE/schemathesis
scratch=$(mktemp -d)
source tests/server.sh
trap 'stop; rm -rf "$scratch"' EXIT

[ -x "$venv/bin/schemathesis" ] || uv venv --quiet "$venv"
uv pip install --quiet --python "$venv" --requirement tests/python/schemathesis.txt

start home
curl --silent --fail "$url/openapi.json" | "$venv/bin/openapi-spec-validator" -
checks=not_a_server_error,unsupported_method,status_code_conformance,content_type_conformance,response_schema_conformance
ask() {
    timeout 400 "$venv/bin/schemathesis" run "$url/openapi.json" \
        --header "Authorization: Bearer $(cat "$home/admin.token")" --checks "$checks" \
        --phases examples,coverage,fuzzing --max-examples "$examples" --request-timeout 10 "$@"
}
# It sends what it was answered, so these come last: they take the caller's own token and rights away. Without rotations,
# which go on in the background and would slow down what comes after them.
last='^(tokens\.delete|token_management\.delete|(users|groups)\.(replace|patch|delete))$'
ask --exclude-operation-id-regex "$last|^keys\.rotate$"
ask --include-operation-id-regex "$last"
