# shellcheck shell=bash
# Three workers in containers on one queue: by `docker compose` where its images can be had, else
# by `docker run` with the same settings as in docker-compose.yml.

WORKER_IMAGE='image-builder:latest'
REPLICAS=(1 2 3)
REPLICA_PORTS=(8080 8082 8083) # 8081 is the registry's front end
BASE_GLIBC=2.36                # the C library of $DEBIAN_IMAGE

# DRAIN_TIMEOUT (60 s), up to 20 s of handing back, and some more. It follows no setting: where
# DRAIN_TIMEOUT is longer, make it longer.
STOP_SECONDS=90

replica_name() { echo "image-builder-worker-$1"; }
replica_port() { echo "${REPLICA_PORTS[$1 - 1]}"; }

engine_socket() {
    [[ $ENGINE == unix://* ]] || die "the replicas need an engine on a socket of this machine, not $ENGINE"
    readlink -f "${ENGINE#unix://}"
}

# The group that may use the engine, which makes root unnecessary.
engine_group() { stat -c %g "$(engine_socket)"; }

up() {
    settings_file
    if compose_ready; then
        compose build worker-1 # the image of all three
        compose up -d --wait
        tell_replicas
        return
    fi
    services
    stack images "$DEBIAN_IMAGE"
    build_worker_image
    local n
    for n in "${REPLICAS[@]}"; do start_replica "$n"; done
    for n in "${REPLICAS[@]}"; do await_replica "$n"; done
    tell_replicas
}

tell_replicas() {
    local n
    say "Three replicas share one queue:"
    for n in "${REPLICAS[@]}"; do say "  http://127.0.0.1:$(replica_port "$n")/readyz"; done
    say "'make logs' follows them, 'make down' stops them."
}

build_worker_image() {
    local have target=${CARGO_TARGET_DIR:-target}
    have=$(getconf GNU_LIBC_VERSION)
    have=${have#* }
    if [[ $(printf '%s\n' "$have" "$BASE_GLIBC" | sort -V | tail -n 1) != "$BASE_GLIBC" ]]; then
        say "make up: no image with Rust in it can be pulled, and what is compiled on this machine (C library"
        say "$have) does not run on $DEBIAN_IMAGE ($BASE_GLIBC). It takes Debian 12, or a registry with images."
        exit "$NEEDS_SOMETHING"
    fi
    say "No image with Rust in it can be pulled: the worker is compiled on this machine and copied into its"
    say "image. An optimised build takes about ten minutes on two cores the first time."
    cargo build --release --locked --bin image-builder
    install -D -m 755 "$target/release/image-builder" target/image/image-builder
    engine_cli build -q --network host --build-arg BINARY=prebuilt -t "$WORKER_IMAGE" . >/dev/null
}

# config/.env in the form that `docker run` reads: values stand as they are there as well, but names have
# nothing around them. Quotes around a value are the worker's to take off.
replica_environment() {
    sed -nE '1s/^\xEF\xBB\xBF//; s/^[[:space:]]*(export[[:space:]]+)?([A-Za-z_][A-Za-z0-9_]*)[[:space:]]*=[[:space:]]*(.*)$/\2=\3/p' config/.env
}

start_replica() { # NUMBER
    local name port socket image state made_of
    name=$(replica_name "$1")
    port=$(replica_port "$1")
    socket=$(engine_socket)
    image=$(engine_cli image inspect -f '{{.Id}}' "$WORKER_IMAGE")
    made_of=$({ echo "$image" && replica_environment && declare -f start_replica; } | sha256sum | cut -c1-16)
    state=$(engine_cli inspect -f '{{.State.Running}} {{index .Config.Labels "image-builder.made-of"}}' "$name" 2>/dev/null) || state=
    if [[ $state == "true $made_of" ]]; then
        say "$name: runs already"
        return
    fi
    if [[ $state ]]; then stop_replicas "$name"; fi
    ! port_taken "$port" || die "$name: port $port is taken by something else"
    engine_cli run -d --name "$name" --label "image-builder.made-of=$made_of" \
        --network host \
        --group-add "$(engine_group)" --cap-drop ALL --security-opt no-new-privileges \
        --restart unless-stopped --stop-timeout "$STOP_SECONDS" \
        --log-opt max-size=10m --log-opt max-file=5 \
        --volume "$socket:/var/run/docker.sock" --volume "$name:/data" \
        --env-file <(replica_environment) --env DATA_DIR=/data --env "HTTP_ADDR=127.0.0.1:$port" \
        "$image" >/dev/null
    say "$name: started"
}

# Ready means that broker, engine and registry answer it.
await_replica() { # NUMBER
    local name deadline=$((SECONDS + 60))
    name=$(replica_name "$1")
    until engine_cli exec "$name" image-builder health --ready >/dev/null 2>&1; do
        if ((SECONDS >= deadline)); then
            say "--- the end of its log"
            engine_cli logs --tail 20 "$name" >&2 || true
            engine_cli exec "$name" image-builder health --ready >&2 || true
            die "$name is not ready after 60 s"
        fi
        sleep 0.2
    done
}

# Lets them drain, all at once.
stop_replicas() { # NAME...
    engine_cli stop "$@" >/dev/null
    engine_cli rm "$@" >/dev/null
}

existing_replicas() {
    local n
    for n in "${REPLICAS[@]}"; do
        engine_cli ps -a --filter "name=^$(replica_name "$n")\$" --format '{{.Names}}'
    done
}

logs() {
    if compose_runs; then
        compose logs -f --no-color --tail 200 worker-1 worker-2 worker-3 | read_log
        return
    fi
    local name
    local -a names
    mapfile -t names < <(existing_replicas)
    ((${#names[@]})) || die "no replica runs; 'make up' starts them"
    trap 'kill $(jobs -p) 2>/dev/null || true' EXIT
    trap 'exit 0' INT TERM
    exec > >(read_log)
    for name in "${names[@]}"; do
        engine_cli logs -f --tail 200 "$name" 2>&1 | sed -u "s/^/${name##*-} | /" &
    done
    wait
}

# JSON is for whoever collects the logs; on a terminal people read them.
read_log() {
    if [[ ! -t 1 ]]; then
        cat
        return
    fi
    local columns
    columns=$(tput cols 2>/dev/null) || columns=
    engine_cli run --rm -i --network none --env CLICOLOR_FORCE=1 --env COLUMNS="$columns" \
        ${NO_COLOR:+--env NO_COLOR="$NO_COLOR"} "$WORKER_IMAGE" read-log
}

down() {
    local -a names=()
    if engine_answers; then
        if compose_runs; then compose down; fi
        mapfile -t names < <(existing_replicas)
        if ((${#names[@]})); then
            say "replicas: draining (up to $STOP_SECONDS s)"
            stop_replicas "${names[@]}"
            say "replicas: stopped"
        fi
    fi
    # Only root can have started any of the stack.
    ((EUID != 0)) || stack down
}
