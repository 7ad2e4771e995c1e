# shellcheck shell=bash
# The base images that builds start from. Where they can be pulled they are;
# elsewhere stand-ins are made of Debian's packages under the same names, each
# with the label image-builder.stand-in, so that nobody takes one for the real
# image. Only what is missing is made.

DEBIAN_IMAGE=debian:bookworm-slim
BUSYBOX_IMAGE=busybox:1.35 # Debian 12's version; for builds that need a shell and no more
NODE_IMAGE=node:18-slim # the versions of Node.js and Python are Debian 12's
PYTHON_IMAGE=python:3.11-slim
NIXPACKS_IMAGE=ghcr.io/railwayapp/nixpacks:ubuntu-1745885067
IMAGES=("$DEBIAN_IMAGE" "$BUSYBOX_IMAGE" "$NODE_IMAGE" "$PYTHON_IMAGE" "$NIXPACKS_IMAGE")

CA_BUNDLE=/etc/ssl/certs/ca-certificates.crt

make_images() { # [IMAGE...]
    local image
    local -a wanted=("$@")
    ((${#wanted[@]})) || wanted=("${IMAGES[@]}")
    engine_answers || die "images: no Docker engine answers at $ENGINE; run 'stack.sh up docker' first"
    need_root
    lock_state
    for image in "${wanted[@]}"; do ensure_image "$image"; done
}

ensure_image() { # IMAGE
    local started=$SECONDS
    if has_image "$1"; then
        say "$1: there already"
    elif can_pull "$1"; then
        engine_cli pull -q "$1" >/dev/null || die "pulling $1 failed"
        say "$1: pulled in $((SECONDS - started)) s"
    else
        make_stand_in "$1"
        say "$1: stand-in made in $((SECONDS - started)) s"
    fi
}

make_stand_in() { # IMAGE
    # Each is made on top of another one, which may itself be pulled or made.
    case $1 in
        "$DEBIAN_IMAGE") make_debian ;;
        "$BUSYBOX_IMAGE") make_busybox ;;
        "$NODE_IMAGE") on_top_of "$DEBIAN_IMAGE" "$1" node dockerfile_node ;;
        "$PYTHON_IMAGE") on_top_of "$DEBIAN_IMAGE" "$1" python dockerfile_python ;;
        "$NIXPACKS_IMAGE") on_top_of "$NODE_IMAGE" "$1" nixpacks dockerfile_nixpacks ;;
    esac
}

# Debian's own client has BuildKit built in; another one may need a plugin for it.
engine_cli() {
    local client=docker
    [[ ! -x /usr/bin/docker ]] || client=/usr/bin/docker
    DOCKER_BUILDKIT=1 DOCKER_HOST=$ENGINE "$client" "$@"
}

# Removes what workers built on the stack's own engines, what is cached of it, and what its own registries have: with
# thousands of images and tens of thousands of cached steps each answer of an engine is slow, and a search of a registry's
# million files as well.
forget_builds() { # [SERVICE...]
    local name at aside
    local -a all=(docker newer-docker newer-docker-containerd registry auth-registry)
    (($#)) || set -- "${all[@]}"
    for name in "$@"; do
        [[ " ${all[*]} " == *" $name "* ]] || die "forget: $name has nothing that workers built"
        is_ours "$name" || continue
        if [[ $name == *registry ]]; then
            stop_service "$name"
            aside=$(mktemp -d "$STATE/forgotten.XXXXXX")
            [[ ! -e $STATE/$name ]] || mv "$STATE/$name" "$aside"
            start_service "$name"
            await_service "$name"
            continue
        fi
        at=$("about_${name//-/_}")
        { ENGINE=$at engine_cli image prune -a -f --filter label=image-builder.build-key \
            && ENGINE=$at engine_cli builder prune -a -f; } >/dev/null ||
            die "$name: what workers built cannot be removed"
    done
    # While others go on: so many files take minutes.
    (rm -rf "$STATE"/forgotten.* >/dev/null 2>&1 9>&- &)
}

has_image() { engine_cli image inspect "$1" >/dev/null 2>&1; }

# Asks the engine whether the registry has the image; a "no" is kept for a day.
can_pull() { # IMAGE
    local image=$1 host=hub answer
    [[ $image != */*/* ]] || host=${image%%/*}
    local no="$STATE/cannot-pull-$host"
    if [[ $(find "$no" -mmin -1440 2>/dev/null) ]]; then return 1; fi
    if [[ $ENGINE == unix://* ]]; then
        answer=$(engine_api "/distribution/$image/json" -m 15 2>&1) || true
    else
        answer=$(engine_cli manifest inspect "$image" 2>&1) || answer=${answer:-none}
    fi
    if [[ ${answer,,} == *digest* ]]; then
        rm -f "$no"
        return 0
    fi
    say "$image cannot be pulled: ${answer:0:200}"
    say "(nothing on that registry is asked for again for a day; remove $no to ask earlier)"
    touch "$no"
    return 1
}

# --- debian -------------------------------------------------------------------

# The machine's own lines for Debian 12, third parties left out; none on other systems.
debian_sources() {
    # shellcheck disable=SC2016 # the dollars are apt's
    apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk '$2 ~ /^bookworm(-updates|-security)?$/ && $3 == "main" { print "deb", $1, $2, $3 }' | sort -u
}

# How this machine reaches its package sources: proxies, and checks it relaxes.
apt_settings() {
    apt-config dump | grep -iE '^Acquire::(https?::|Check-|Retries)' || true
}

# Certificates that the machine trusts and Debian does not, such as a proxy's: one a file.
extra_certificates() { # DIRECTORY
    awk -v dir="$1" '
        /^-----BEGIN CERTIFICATE-----/ { text = ""; inside = 1 }
        inside { text = text $0 "\n" }
        /^-----END CERTIFICATE-----/ {
            inside = 0
            if (FILENAME != bundle) known[text] = 1
            else if (!(text in known)) {
                file = sprintf("%s/machine-%d.crt", dir, ++n)
                printf "%s", text > file
                close(file)
                known[text] = 1
            }
        }' bundle="$CA_BUNDLE" /usr/share/ca-certificates/mozilla/*.crt "$CA_BUNDLE"
}

make_debian() {
    local work sources log=$LOG/debian-image.log
    work=$(mktemp -d "$STATE/image.XXXXXX")
    # shellcheck disable=SC2064 # the directory of now
    trap "rm -rf '$work'" EXIT
    mkdir "$work/certificates"
    extra_certificates "$work/certificates"
    apt_settings >"$work/90machine"
    sources=$(debian_sources)
    # Without lines of the machine's own, mmdebstrap knows Debian's mirror itself.
    [[ $sources ]] || sources=bookworm
    local -a options=(
        --variant=minbase --include=ca-certificates --format=tar
        --aptopt='Acquire::Languages "none"'
        --aptopt='APT::Install-Recommends "false"'
        --dpkgopt=force-unsafe-io
        --dpkgopt='path-exclude=/usr/share/man/*'
        --dpkgopt='path-exclude=/usr/share/doc/*'
        --dpkgopt='path-include=/usr/share/doc/*/copyright'
        --dpkgopt='path-exclude=/usr/share/locale/*'
        --customize-hook="cp '$work/90machine' \"\$1/etc/apt/apt.conf.d/90machine\""
        --customize-hook="mkdir -p \"\$1/usr/local/share/ca-certificates\""
        --customize-hook="cp -r '$work/certificates/.' \"\$1/usr/local/share/ca-certificates/\""
        --customize-hook="chroot \"\$1\" update-ca-certificates"
    )
    if [[ $sources == bookworm ]]; then
        mmdebstrap "${options[@]}" bookworm "$work/root.tar" </dev/null >"$log" 2>&1
    else
        mmdebstrap "${options[@]}" bookworm "$work/root.tar" - <<<"$sources" >"$log" 2>&1
    fi || {
        tail -n 20 "$log" >&2
        die "mmdebstrap failed; all of its output is in $log"
    }
    engine_cli import \
        --change 'LABEL image-builder.stand-in=debian' \
        --change "ENV SSL_CERT_FILE=$CA_BUNDLE" \
        --change "ENV PIP_CERT=$CA_BUNDLE" \
        --change "ENV NODE_EXTRA_CA_CERTS=$CA_BUNDLE" \
        --change 'CMD ["bash"]' \
        "$work/root.tar" "$DEBIAN_IMAGE" >/dev/null
    rm -rf "$work"
    trap - EXIT
}

# --- busybox ------------------------------------------------------------------

make_busybox() {
    local work root applet log=$LOG/busybox-image.log
    work=$(mktemp -d "$STATE/image.XXXXXX")
    # shellcheck disable=SC2064 # the directory of now
    trap "rm -rf '$work'" EXIT
    root=$work/root
    mkdir -p "$root"/{bin,etc,root,usr/bin}
    mkdir -m 1777 "$root/tmp"
    # Not installed: it would take the place of a busybox that the machine has.
    if ! (
        cd "$work"
        apt-get -q -o APT::Sandbox::User=root download busybox-static || {
            apt-get -q update
            apt-get -q -o APT::Sandbox::User=root download busybox-static
        }
        dpkg-deb -x busybox-static_*.deb package
        # Newer ones have it below usr.
        cp package/bin/busybox "$root/bin/" || cp package/usr/bin/busybox "$root/bin/"
    ) >"$log" 2>&1; then
        tail -n 20 "$log" >&2
        die "busybox-static cannot be had; all of the output is in $log"
    fi
    for applet in $("$root/bin/busybox" --list); do
        [[ -e $root/bin/$applet ]] || ln "$root/bin/busybox" "$root/bin/$applet"
    done
    ln -s ../../bin/env "$root/usr/bin/env"
    echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
    echo 'root:x:0:' >"$root/etc/group"
    tar -c -C "$root" --owner=0 --group=0 --numeric-owner . | engine_cli import \
        --change 'LABEL image-builder.stand-in=busybox' \
        --change 'CMD ["sh"]' \
        - "$BUSYBOX_IMAGE" >/dev/null
    rm -rf "$work"
    trap - EXIT
}

# --- images on top of Debian's ------------------------------------------------

on_top_of() { # BASE IMAGE LABEL DOCKERFILE-FUNCTION
    local log=$LOG/$3-image.log variable
    has_image "$1" || ensure_image "$1"
    local -a arguments=()
    for variable in http_proxy https_proxy no_proxy; do
        [[ ! ${!variable:-} ]] || arguments+=(--build-arg "$variable")
    done
    "$4" | engine_cli build --network host --progress plain --label "image-builder.stand-in=$3" \
        --build-arg "BASE=$1" "${arguments[@]}" -t "$2" - >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        die "building the stand-in for $2 failed; all of the log is in $log"
    }
}

dockerfile_node() {
    cat <<'DOCKERFILE'
ARG BASE
FROM ${BASE}
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends nodejs npm \
 && apt-get clean && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 1000 node && useradd --uid 1000 --gid node --shell /bin/bash --create-home node
CMD ["node"]
DOCKERFILE
}

dockerfile_python() {
    cat <<'DOCKERFILE'
ARG BASE
FROM ${BASE}
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        python3 python3-pip python3-venv python-is-python3 \
 && apt-get clean && rm -rf /var/lib/apt/lists/* \
 && rm -f /usr/lib/python3.*/EXTERNALLY-MANAGED
CMD ["python3"]
DOCKERFILE
}

dockerfile_nixpacks() {
    cat <<'DOCKERFILE'
ARG BASE
FROM ${BASE}
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends \
        python3 python3-pip python3-venv python-is-python3 php-cli git curl \
 && apt-get clean && rm -rf /var/lib/apt/lists/* \
 && rm -f /usr/lib/python3.*/EXTERNALLY-MANAGED
RUN for name in nix-env nix-collect-garbage; do \
        printf '#!/bin/sh\necho "%s: a stand-in without Nix; the packages are those of the image" >&2\n' "$name" > "/usr/bin/$name" \
     && chmod 755 "/usr/bin/$name" || exit 1; \
    done
WORKDIR /app
DOCKERFILE
}
