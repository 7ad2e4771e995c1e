#!/usr/bin/env bash
# Installs the nixpacks command that the tests hold the planner against, unless it is there already,
# and prints its path. Its version is that of the library in Cargo.toml.
set -euo pipefail

version=1.41.0
root=${IMAGE_BUILDER_STATE:-/var/lib/image-builder-dev}/tools
command=$root/bin/nixpacks

is_installed() { [[ $("$command" --version 2>/dev/null) == "nixpacks $version" ]]; }

if ! is_installed; then
    mkdir -p "$root"
    # One at a time; whoever waited finds it installed.
    exec 9>"$root/nixpacks.lock"
    flock 9
    if ! is_installed; then
        echo "nixpacks.sh: installing nixpacks $version, which takes one to three minutes" >&2
        # Nothing is gained by optimising it: it runs for some milliseconds a test.
        CARGO_PROFILE_DEV_DEBUG=false CARGO_PROFILE_DEV_STRIP=symbols \
            cargo install --quiet --debug --locked --force --root "$root" --version "$version" nixpacks >&2 9>&-
    fi
fi
echo "$command"
