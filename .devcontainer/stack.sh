#!/usr/bin/env bash
# Sets a machine up for building and testing image-builder. `make`, CI and the
# dev container all go through this script. Run it without arguments for help.
# shellcheck source-path=SCRIPTDIR
set -euo pipefail

here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib.sh
. "$here/lib.sh"
# shellcheck source=packages.sh
. "$here/packages.sh"
# shellcheck source=services.sh
. "$here/services.sh"
# shellcheck source=images.sh
. "$here/images.sh"
# shellcheck source=newer.sh
. "$here/newer.sh"

usage() {
    cat <<USAGE
usage: stack.sh COMMAND [ARGUMENT...]

  install [browser]  install the Debian packages that are missing; those of the browser tests
  up [SERVICE...]    start the services and wait until each of them answers
  down [SERVICE...]  stop what 'up' started, and nothing else
  status             one line a service; exits 0 when all of them answer
  images [IMAGE...]  pull the base images, or make stand-ins of what cannot be pulled
  share IMAGE...     load base images into the newer engines that run
  forget [SERVICE...]
                     remove what workers built, and what is cached of it, from
                     engines and registries that 'up' started
  env                print the environment that fits the stack, as NAME=value lines
  repo OWNER/NAME [DIR]
                     create a repository on the git server, and push the
                     branches and tags of DIR to it; prints its URL

services: ${SERVICES[*]}
          ${NEWER_SERVICES[*]} (by name alone; of Debian's $NEWER_SUITE, NEWER_SUITE says which)
images:   ${IMAGES[*]}
state:    $STATE  (set IMAGE_BUILDER_STATE to move it)
USAGE
}

# Fails on a name that is not among the known ones.
check_names() { # WHAT "KNOWN..." NAME...
    local what=$1 known=$2 name
    shift 2
    for name in "$@"; do
        [[ " $known " == *" $name "* ]] || die "no $what is called '$name'; there are: $known"
    done
}

stack_up() {
    check_names service "${SERVICES[*]} ${NEWER_SERVICES[*]}" "$@"
    need_root
    lock_state
    local service
    local -a wanted=("$@")
    ((${#wanted[@]})) || wanted=("${SERVICES[@]}")
    # All are started before any is waited for, so that the slowest one sets the time.
    for service in "${wanted[@]}"; do start_service "$service"; done
    for service in "${wanted[@]}"; do await_service "$service"; done
}

stack_down() {
    check_names service "${SERVICES[*]} ${NEWER_SERVICES[*]}" "$@"
    need_root
    lock_state
    local i
    local -a wanted=("$@")
    ((${#wanted[@]})) || wanted=("${SERVICES[@]}" "${NEWER_SERVICES[@]}")
    for ((i = ${#wanted[@]} - 1; i >= 0; i--)); do stop_service "${wanted[i]}"; done
}

stack_status() {
    local service failed=0
    for service in "${SERVICES[@]}"; do describe_service "$service" || failed=1; done
    for service in "${NEWER_SERVICES[@]}"; do
        if is_ours "$service"; then describe_service "$service" || failed=1; fi
    done
    return "$failed"
}

stack_env() {
    cat <<ENV
RABBITMQ_URI=amqp://guest:guest@localhost:$AMQP_PORT/%2f
RABBITMQ_MANAGEMENT_URL=http://guest:guest@localhost:$MANAGEMENT_PORT
RABBITMQ_NODENAME=$RABBITMQ_NODE
POSTGRES_URL=$POSTGRES_URL
REGISTRY_URL=localhost:$REGISTRY_PORT
AUTH_REGISTRY_URL=localhost:$AUTH_REGISTRY_PORT
AUTH_REGISTRY_USERNAME=$REGISTRY_USER
AUTH_REGISTRY_PASSWORD=$REGISTRY_PASSWORD
GIT_SERVER_URL=$GIT_URL
GIT_SERVER_ROOT=$GIT_ROOT
GIT_SERVER_TOKEN=$GIT_TOKEN
IMAGE_BUILDER_STATE=$STATE
NEWER_DOCKER_HOST=unix://$RUN/newer-docker.sock
NEWER_CONTAINERD_DOCKER_HOST=unix://$RUN/newer-docker-containerd.sock
NEWER_RABBITMQ_URI=amqp://guest:guest@localhost:$NEWER_AMQP_PORT/%2f
NEWER_RABBITMQ_MANAGEMENT_URL=http://guest:guest@localhost:$NEWER_MANAGEMENT_PORT
NEWER_ROOT=$NEWER_ROOT
ENV
    [[ $ENGINE == unix://$DEFAULT_SOCKET ]] || echo "DOCKER_HOST=$ENGINE"
}

command=${1:-help}
(($# == 0)) || shift
case $command in
    install)
        check_names "group of packages" "browser" "$@"
        install_packages "missing_${1:+$1_}packages"
        ;;
    up) stack_up "$@" ;;
    down) stack_down "$@" ;;
    status) stack_status ;;
    images)
        check_names image "${IMAGES[*]}" "$@"
        make_images "$@"
        ;;
    share)
        check_names image "${IMAGES[*]}" "$@"
        load_newer_images "$@"
        ;;
    forget)
        need_root
        lock_state
        forget_builds "$@"
        ;;
    env) stack_env ;;
    repo) create_repository "$@" ;;
    help | -h | --help) usage ;;
    *)
        usage >&2
        exit 64
        ;;
esac
