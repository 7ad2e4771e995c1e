#!/usr/bin/env bash
# What the Makefile's targets do. Run it without arguments for help.
#
# Services come from `docker compose` where that is there and the images can be pulled, and from
# Debian's packages elsewhere (stack.sh). What answers already is used as it is.
# shellcheck source-path=SCRIPTDIR
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
root=${here%/*}
cd "$root"

# A forge's token is for the demo alone: neither daemons nor compilers get to see it.
demo_token=${TOKEN:-}
unset TOKEN MAKEFLAGS MFLAGS MAKEOVERRIDES

# shellcheck source=lib.sh
. "$here/lib.sh"
# shellcheck source=services.sh
. "$here/services.sh"
# shellcheck source=images.sh
. "$here/images.sh"
# shellcheck source=newer.sh
. "$here/newer.sh"
# shellcheck source=replicas.sh
. "$here/replicas.sh"

NEEDS_SOMETHING=69 # exit code: something that is needed is not available

usage() {
    cat <<USAGE
usage: ops.sh services | up | logs | down | prep | devc | demo | test | newer | chaos | soak | bench | browser | lint | manifests
The Makefile says what each of them does.
USAGE
}

stack() { "$here/stack.sh" "$@"; }

heading() { printf '\n==> %s\n' "$*" >&2; }

# --- services -------------------------------------------------------------------

# True where the compose file can be used: the plugin is there, its images can be had, and
# nothing else has the broker's or the registry's port.
compose_ready() {
    engine_answers && compose_is_new || return 1
    # The workers' settings: some versions of Compose start no other service either where they lack.
    settings_file
    ! compose_runs || return 0
    mkdir -p "$STATE" 2>/dev/null || true
    can_pull "$(compose_image rabbitmq)" || return 1
    ! port_taken "$AMQP_PORT" && ! port_taken "$REGISTRY_PORT"
}

# Compose reads config/.env as it stands (`format: raw`) from 2.30 on.
compose_is_new() {
    local version
    version=$(docker compose version --short 2>/dev/null) || return 1
    [[ $(printf '%s\n' 2.30.0 "${version#v}" | sort -V | head -n 1) == 2.30.0 ]]
}

compose_runs() { [[ $(compose ps -q rabbitmq 2>/dev/null) ]]; }

compose() { DOCKER_GID=$(engine_group) docker compose "$@"; }

compose_image() { # PREFIX
    awk -v prefix="$1" '$1 == "image:" && index($2, prefix) == 1 { print $2 }' docker-compose.yml
}

services() { # [SERVICE OF THE STACK...]
    if compose_ready; then
        compose up -d --wait rabbitmq registry registry-ui
        say "rabbitmq: amqp://guest:guest@localhost:$AMQP_PORT, management on http://localhost:$MANAGEMENT_PORT"
        say "registry: localhost:$REGISTRY_PORT, front end on http://localhost:8081"
        return
    fi
    stack install
    stack up docker rabbitmq registry
    say "No registry front end: Debian packages none, and its image cannot be pulled or its registry is"
    say "not the one of docker-compose.yml. To list what is in the registry:"
    say "  curl localhost:$REGISTRY_PORT/v2/_catalog"
}

# Whatever is chosen, the features of all packages are those of the whole: else what is compiled for one choice is compiled
# anew for the next.
cargo_test() { cargo test --workspace --features failpoints "$@"; }

# Everything that the tests need, the services of the compose file included where they can be had.
test_bed() {
    if compose_ready; then compose up -d --wait rabbitmq registry; fi
    stack install
    stack up
    stack images
    stack_environment
}

stack_environment() {
    set -a
    eval "$(stack env)"
    set +a
}

# --- set-up ---------------------------------------------------------------------

settings_file() {
    if [[ ! -e config/.env ]]; then
        # It may come to hold credentials.
        (umask 077 && cp config/.env.example config/.env)
        say "config/.env: made from config/.env.example"
    fi
}

prep() {
    settings_file
    stack install
    engine_answers || stack up docker
    stack images
}

# --- development ----------------------------------------------------------------

devc() {
    local image
    image=$(sed -n 's/^ARG BASE=//p' "$here/Dockerfile")
    local -a needs=()
    type -P devcontainer >/dev/null || needs+=("the devcontainer command (npm install -g @devcontainers/cli)")
    if ! engine_answers; then
        needs+=("a Docker Engine that answers at $ENGINE")
    elif ! has_image "$image" && ! can_pull "$image"; then
        needs+=("a registry that the image $image can be pulled from")
    fi
    if ((${#needs[@]})); then
        say "make devc: the dev container needs"
        printf '  - %s\n' "${needs[@]}" >&2
        say "Without it, 'make prep' sets this machine up in the same way."
        exit "$NEEDS_SOMETHING"
    fi
    devcontainer up --workspace-folder .
    exec devcontainer exec --workspace-folder . bash
}

run_tests() {
    local log=${CARGO_TARGET_DIR:-target}/test.log result=0
    heading "setting the machine up"
    test_bed
    stack forget
    "$here/nixpacks.sh" >/dev/null
    heading "testing"
    mkdir -p "${log%/*}"
    # They are waited for, not computed: while everything compiles.
    browser_packages >"$log.browser" 2>&1 &
    browser_packages_come=$!
    # What is older is of another run, see tests/canary.
    CANARY_SINCE=$(date +%s)
    export CANARY_SINCE
    # Most of what the tests do is waiting.
    export RUST_TEST_THREADS=${RUST_TEST_THREADS:-$((2 * $(nproc)))}
    cargo_test --no-fail-fast 2>&1 | tee "$log" || result=$?
    # The same, on the other broker.
    BROKER=embedded cargo_test --test chaos every_confirmed 2>&1 | tee -a "$log" || result=$?
    browser_tests "$log" seeded || result=$?
    test_on_newer "$log" "${OF_THE_STORE[@]}" || result=$?
    heading "what is left of the tests' secrets"
    cargo_test --test canary -- --nocapture 2>&1 | tee -a "$log" || result=$?
    in_short "$log"
    return "$result"
}

browser_packages() { stack install browser && npm --prefix tests/browser ci --prefer-offline --no-audit --no-fund; }

# The page in a browser: those of its tests, or all. The program is built, and its packages come, or are to be had.
browser_tests() { # LOG [TEST...]
    local log=$1
    shift
    heading "the page in a browser"
    if ! { if [[ ${browser_packages_come:-} ]]; then wait "$browser_packages_come"; else browser_packages >&2; fi; }; then
        [[ ! -e $log.browser ]] || cat "$log.browser" >&2
        say "the packages of the browser tests cannot be had, so the page was NOT looked at in a browser"
        return
    fi
    tests/browser/run "$@" 2>&1 | tee -a "$log"
}

browser() {
    local log=${CARGO_TARGET_DIR:-target}/browser.log
    heading "setting the machine up"
    test_bed
    mkdir -p "${log%/*}"
    : >"$log"
    heading "compiling (several minutes the first time)"
    cargo build --bin image-builder --example page-seed
    browser_tests "$log" "$@"
}

in_short() { # LOG
    heading "in short (all of it is in $1)"
    grep -E '^(==> |test result: |error: |✖ |ℹ (pass|fail) )|^test .* FAILED$' "$1" || true
    grep -E -A 2 '^thread .* panicked at' "$1" || true
}

# What speaks to engines and brokers, on newer ones alone.
newer() {
    local log=${CARGO_TARGET_DIR:-target}/newer.log result=0
    heading "setting the machine up"
    test_bed
    heading "compiling"
    cargo_test --no-run --test contract --test disk --test fleet --test canary
    mkdir -p "${log%/*}"
    : >"$log"
    test_on_newer "$log" "${OF_THE_BUILDER[@]}" || result=$?
    in_short "$log"
    return "$result"
}

OF_THE_BUILDER=(builder:: publishing::)
# What may differ with where an engine keeps its images. The rest is of the builder in it, which is the same one.
OF_THE_STORE=(builder::{conformance,inputs,pruning,pushing,secrets}:: publishing::)

# Runs the suites of what speaks to engines and brokers on newer ones than the machine's; what does not is not repeated.
# Two at a time: some of what they do is waiting.
test_on_newer() { # LOG TEST OF THE BUILDER ON CONTAINERD'S IMAGE STORE...
    local result=0 on_engines
    heading "testing on the engines and the broker of Debian's $NEWER_SUITE"
    {
        stack down "${NEWER_SERVICES[@]}" # those of another suite would answer in their place
        stack up "${NEWER_SERVICES[@]}" && stack forget newer-docker newer-docker-containerd &&
            stack share "$BUSYBOX_IMAGE" "$DEBIAN_IMAGE" && stack_environment
    } || return
    newer_engines "${@:2}" >"$1.engines" 2>&1 &
    on_engines=$!
    newer_others >"$1.others" 2>&1 || result=$?
    wait "$on_engines" || result=$?
    cat "$1.engines" "$1.others" >>"$1"
    rm -f "$1.engines" "$1.others"
    stack down "${NEWER_SERVICES[@]}"
    return "$result"
}

newer_engines() { # TEST ON CONTAINERD'S IMAGE STORE...
    local result=0
    suite "builder" DOCKER_HOST="$NEWER_DOCKER_HOST" -- contract "${OF_THE_BUILDER[@]}" || result=$?
    suite "builder, containerd's image store" DOCKER_HOST="$NEWER_CONTAINERD_DOCKER_HOST" \
        -- contract "$@" || result=$?
    suite "fleet" ENGINE_ROOT="$NEWER_ROOT" ENGINE_STORE=containerd -- fleet || result=$?
    return "$result"
}

newer_others() {
    local result=0
    suite "broker" RABBITMQ_URI="$NEWER_RABBITMQ_URI" \
        RABBITMQ_MANAGEMENT_URL="$NEWER_RABBITMQ_MANAGEMENT_URL" -- contract broker:: || result=$?
    suite "what is left in queues" RABBITMQ_URI="$NEWER_RABBITMQ_URI" \
        RABBITMQ_MANAGEMENT_URL="$NEWER_RABBITMQ_MANAGEMENT_URL" -- canary queues || result=$?
    suite "disk" ENGINE_ROOT="$NEWER_ROOT" -- disk || result=$?
    return "$result"
}

# Runs a test target, or those tests of it that are named, in this environment.
suite() { # TITLE NAME=value... -- TARGET [TEST...]
    local -a environment=()
    heading "$1 ($NEWER_SUITE)"
    shift
    while [[ $1 != -- ]]; do
        environment+=("$1")
        shift
    done
    (
        export "${environment[@]}"
        cargo_test --test "$2" -- "${@:3}"
    )
}

# A long run; `make test` has a short one. Its broker and its engine are its own.
chaos() {
    heading "setting the machine up"
    test_bed
    heading "chaos (logs and evidence: ${CARGO_TARGET_DIR:-target}/chaos)"
    RUNS=${RUNS:-500} cargo_test --test chaos -- --nocapture
}

# A long run on one worker; `make test` has a short one.
soak() {
    heading "setting the machine up"
    test_bed
    heading "soak (report: ${CARGO_TARGET_DIR:-target}/soak)"
    # A worker with a small budget prunes the engine, the build cache of all who use it included.
    local budget=
    if is_ours docker; then budget=1MB; fi
    SOAK_MINUTES=${SOAK_MINUTES:-30} SOAK_JOBS=${SOAK_JOBS:-3000} SOAK_CACHE_BUDGET=${SOAK_CACHE_BUDGET-$budget} \
        cargo_test --test soak -- --nocapture
}

# Figures for a quiet machine: whatever else runs is in them.
bench() {
    heading "setting the machine up"
    test_bed
    heading "compiling (several minutes the first time)"
    cargo bench --bench commands --bench scheduler --bench embedded
}

lint() {
    stack install
    if type -P rustup >/dev/null; then
        for tool in fmt clippy; do
            cargo "$tool" --version >/dev/null 2>&1 || rustup component add "${tool/#fmt/rustfmt}"
        done
    fi
    heading "format"
    cargo fmt --all --check
    heading "lints"
    cargo clippy --workspace --all-targets --features failpoints -- -D warnings
    # Cargo does not count those that run by their name alone among all.
    cargo clippy --workspace --features failpoints --test disk --test fleet --test canary -- -D warnings
    heading "documentation"
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items --features failpoints
    heading "scripts"
    shellcheck -x "$here"/*.sh .ci/run tests/browser/run tests/fuzz/run
    heading "dependencies"
    if ! cargo deny --version >/dev/null 2>&1; then
        say "cargo-deny is not installed, so licences, sources and advisories were NOT checked"
        say "(cargo install --locked cargo-deny)"
        return
    fi
    cargo deny check bans licenses sources
    if cargo deny fetch db; then
        cargo deny check advisories
    else
        say "the advisory database cannot be reached, so advisories were NOT checked"
    fi
}

# What config/kubernetes has, against the schemas that a package from PyPI brings.
manifests() {
    local python=$STATE/manifests/bin/python
    if ! "$python" -c 'import kubernetes_validate' 2>/dev/null; then
        if ! { python3 -m venv "$STATE/manifests" \
            && "$python" -m pip install --quiet kubernetes-validate==1.37.0; }; then
            say "the manifests were NOT checked: that needs python3 with venv, and kubernetes-validate from PyPI"
            exit "$NEEDS_SOMETHING"
        fi
    fi
    "$python" tests/kubernetes/check.py
}

demo() {
    heading "setting the machine up"
    if [[ ${REPO:-} ]]; then
        if compose_ready; then compose up -d --wait rabbitmq registry; fi
        stack install
        stack up docker registry
        if [[ ${BROKER:-} == rabbitmq ]]; then stack up rabbitmq; fi
        stack images
        stack_environment
    else
        test_bed
    fi
    if [[ $(engine_cli image inspect -f '{{index .Config.Labels "image-builder.stand-in"}}' "$NIXPACKS_IMAGE") ]]; then
        export DEMO_STAND_IN=$NIXPACKS_IMAGE
    fi
    heading "compiling (several minutes the first time)"
    cargo build --bin image-builder --example demo
    TOKEN=$demo_token exec "${CARGO_TARGET_DIR:-target}/debug/examples/demo"
}

command=${1:-help}
case $command in
    services | up | logs | down | prep | devc | newer | chaos | soak | bench | browser | lint | manifests | demo) "$command" ;;
    test) run_tests ;;
    help | -h | --help) usage ;;
    *)
        usage >&2
        exit 64
        ;;
esac
