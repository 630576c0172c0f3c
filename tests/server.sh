# Sourced by scripts that want a server of their own. `scratch` is theirs and goes with them, and so does the server:
#   scratch=$(mktemp -d); trap 'stop; rm -rf "$scratch"' EXIT
server=

# start NAME: a server with an empty home on any port of the loopback interface; sets `home` and `url`.
start() {
    home=$scratch/$1
    mkdir "$home"
    "$TESSERA_BIN" serve --home "$home" --listen 127.0.0.1:0 --log-level error 2>>"${log:-/dev/stderr}" &
    server=$!
    for _ in $(seq 300); do
        if [ -s "$home/address" ]; then
            url=http://$(cat "$home/address")
            return
        fi
        kill -0 "$server" || return 1
        sleep 0.1
    done
    echo "the server was not ready within 30 seconds" >&2
    return 1
}

stop() {
    [ -z "$server" ] && return
    kill "$server" 2>/dev/null || true
    wait "$server" 2>/dev/null || true
    server=
}
