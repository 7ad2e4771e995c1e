# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154 # names shared with the other files
# A newer Docker Engine, with either image store, and a newer RabbitMQ beside those of the machine: services of the
# stack that are started by name alone. Their programs come from a newer suite of the Debian mirror that apt has, into
# a directory; nothing is installed. Sourced after services.sh.

NEWER_SERVICES=(newer-docker newer-docker-containerd newer-rabbitmq)

# 'trixie', the stable one (Docker 26.1, RabbitMQ 4.0), or 'sid', which moves (28.5 and 4.3 in 2026).
NEWER_SUITE=${NEWER_SUITE:-trixie}
NEWER_HOME=$STATE/newer/$NEWER_SUITE
NEWER_ROOT=$NEWER_HOME/root

NEWER_BRIDGE=ib-newer # an engine that shares docker0 may remove it
NEWER_BRIDGE_ADDRESS=172.29.26.1/24
NEWER_AMQP_PORT=5673
NEWER_MANAGEMENT_PORT=15673
NEWER_DISTRIBUTION_PORT=25673
NEWER_EPMD_PORT=4373

# Makes the root of the suite, unless it is there.
make_newer_root() {
    [[ ! -d $NEWER_ROOT ]] || return 0
    local log=$LOG/newer-root.log new=$NEWER_ROOT.new mirror started=$SECONDS
    local -a source=()
    mkdir -p "$NEWER_HOME"
    rm -rf --one-file-system "$new" # left by one that was interrupted
    apt_settings >"$NEWER_HOME/apt.conf"
    # shellcheck disable=SC2016 # the dollars are apt's
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        awk '$2 ~ /^(bookworm|trixie|forky|sid)$/ && $3 == "main" { print $1; exit }')
    # Without a line of the machine's own, mmdebstrap knows Debian's mirror itself.
    [[ ! $mirror ]] || source=("deb $mirror $NEWER_SUITE main")
    # shellcheck disable=SC2016 # mmdebstrap's shell reads them
    local no_starts='printf "#!/bin/sh\nexit 101\n" >"$1/usr/sbin/policy-rc.d"; chmod 755 "$1/usr/sbin/policy-rc.d"' \
        no_lists='rm -rf "$1"/var/lib/apt/lists/*'
    mmdebstrap --variant=minbase --mode=root --format=directory --aptopt="$NEWER_HOME/apt.conf" \
        --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
        --dpkgopt=force-unsafe-io --dpkgopt='path-exclude=/usr/share/doc/*' \
        --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --include=ca-certificates,docker.io,containerd,runc,iptables,rabbitmq-server,util-linux \
        --essential-hook="$no_starts" --customize-hook="$no_lists" \
        "$NEWER_SUITE" "$new" "${source[@]}" </dev/null >"$log" 2>&1 || {
        tail -n 20 "$log" >&2
        die "no root of Debian's $NEWER_SUITE could be made; all of mmdebstrap's output is in $log"
    }
    cp -L /etc/resolv.conf "$new/etc/resolv.conf"
    mv "$new" "$NEWER_ROOT"
    say "newer: $NEWER_SUITE made in $((SECONDS - started)) s"
}

# A daemon of the newer root. It sees the stack's state where it is.
start_in_root() { # NAME COMMAND...
    local name=$1
    shift
    make_newer_root
    start_daemon "$name" unshare --mount --pid --fork --kill-child --propagation private \
        "$here/in-root.sh" "$NEWER_ROOT" "$STATE" "$@"
}

# --- Docker Engine ------------------------------------------------------------

newer_engine_answers() { # NAME
    curl -fs -m 5 -o /dev/null --unix-socket "$RUN/$1.sock" http://engine/_ping
}

ready_newer_docker() { newer_engine_answers newer-docker; }
ready_newer_docker_containerd() { newer_engine_answers newer-docker-containerd; }
about_newer_docker() { about_newer_engine newer-docker; }
about_newer_docker_containerd() { about_newer_engine newer-docker-containerd; }
about_newer_engine() { echo "unix://$RUN/$1.sock"; }
start_newer_docker() { start_newer_engine newer-docker false; }
# With containerd's image store, which is the default from Docker 29 on.
start_newer_docker_containerd() { start_newer_engine newer-docker-containerd true; }

# The engine has the machine's network, so that it reaches registries on localhost. It writes no firewall rules: build
# steps without BUILDER_NETWORK=host reach nothing but the machine.
start_newer_engine() { # NAME WITH-CONTAINERD-STORE
    local name=$1
    prepare_cgroups
    make_newer_bridge
    # Left by one that was killed.
    rm -rf "${RUN:?}/$name.exec" "$RUN/$name.sock"
    echo "{\"features\": {\"containerd-snapshotter\": $2}}" >"$ETC/$name.json"
    start_in_root "$name" dockerd --config-file "$ETC/$name.json" --host "unix://$RUN/$name.sock" --pidfile "" \
        --data-root "$NEWER_HOME/$name" --exec-root "$RUN/$name.exec" \
        --bridge "$NEWER_BRIDGE" --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false
}

make_newer_bridge() {
    ! ip link show "$NEWER_BRIDGE" >/dev/null 2>&1 || return 0
    ip link add "$NEWER_BRIDGE" type bridge
    ip address add "$NEWER_BRIDGE_ADDRESS" dev "$NEWER_BRIDGE"
    ip link set "$NEWER_BRIDGE" up
}

# Gives the newer engines that run a base image of the machine's own.
load_newer_images() { # IMAGE...
    local name
    for name in newer-docker newer-docker-containerd; do
        is_ours "$name" || continue
        engine_cli save "$@" | ENGINE=unix://$RUN/$name.sock engine_cli load -q >/dev/null ||
            die "$name takes no image"
    done
}

# --- RabbitMQ -----------------------------------------------------------------

ready_newer_rabbitmq() {
    curl -fs -m 5 -o /dev/null -u guest:guest \
        "http://127.0.0.1:$NEWER_MANAGEMENT_PORT/api/health/checks/port-listener/$NEWER_AMQP_PORT"
}
about_newer_rabbitmq() {
    echo "amqp://guest:guest@localhost:$NEWER_AMQP_PORT, management on $NEWER_MANAGEMENT_PORT"
}

start_newer_rabbitmq() {
    local home=$NEWER_HOME/rabbitmq
    claim_port newer-rabbitmq "$NEWER_AMQP_PORT"
    claim_port newer-rabbitmq "$NEWER_MANAGEMENT_PORT"
    make_newer_root
    mkdir -p "$home" "$NEWER_ROOT$STATE"
    printf '%s\n' "listeners.tcp.1 = 127.0.0.1:$NEWER_AMQP_PORT" 'management.tcp.ip = 127.0.0.1' \
        "management.tcp.port = $NEWER_MANAGEMENT_PORT" 'log.console = true' 'log.file = false' \
        >"$ETC/newer-rabbitmq.conf"
    echo '[rabbitmq_management].' >"$ETC/newer-rabbitmq_plugins"
    # The number that the user has in there.
    chown -R --reference "$NEWER_ROOT/var/lib/rabbitmq" "$home"
    # Whoever becomes another user forgets that it is to end with unshare, unless told again.
    start_in_root newer-rabbitmq setpriv --pdeathsig KILL --reuid=rabbitmq --regid=rabbitmq --init-groups \
        env HOME=/var/lib/rabbitmq LC_ALL=C.UTF-8 \
        RUNNING_UNDER_SYSTEMD=1 \
        ERL_EPMD_PORT="$NEWER_EPMD_PORT" \
        ERL_EPMD_ADDRESS=127.0.0.1 \
        RABBITMQ_NODENAME=newer@localhost \
        RABBITMQ_DIST_PORT="$NEWER_DISTRIBUTION_PORT" \
        RABBITMQ_MNESIA_BASE="$home" \
        RABBITMQ_LOG_BASE="$home" \
        RABBITMQ_CONFIG_FILE="$ETC/newer-rabbitmq.conf" \
        RABBITMQ_ENABLED_PLUGINS_FILE="$ETC/newer-rabbitmq_plugins" \
        RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="+sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}" \
        /usr/lib/rabbitmq/bin/rabbitmq-server
}
